"""Servers for tests: on loopback, on a free port, gone when the test ends."""

import contextlib
import functools
import hashlib
import os
import pwd
import socket
import subprocess
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Files:
    """An HTTP server of the dict `files`, path to bytes, with ranges, ETags and faults on demand."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.breaks, self.lies, self.stalls = {}, {}, set()
        self.redirects, self.etags, self.ranges = {}, True, True
        files = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                files.answer(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, request):
        path = (
            request.path.partition("://")[2].partition("/")[2].join(["/", ""])
            if "://" in request.path
            else request.path
        )
        self.requests.append((path, request.headers.get("Range")))
        if path in self.redirects:
            request.send_response(302)
            request.send_header("Location", self.redirects[path])
            request.send_header("Content-Length", "0")
            return request.end_headers()
        data = self.files.get(path)
        if data is None:
            return request.send_error(404)
        tag, start = '"' + hashlib.sha256(data).hexdigest()[:16] + '"', 0
        asked = request.headers.get("Range")
        if asked and self.ranges and request.headers.get("If-Range", tag) == tag:
            start = int(asked.partition("=")[2].partition("-")[0])
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data) - start + self.lies.get(path, 0)))
        if self.etags:
            request.send_header("ETag", tag)
        request.end_headers()
        body = data[start:]
        if path in self.breaks:
            request.wfile.write(body[: self.breaks.pop(path)])
            request.wfile.flush()
            if path in self.stalls:
                time.sleep(300)
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return None
        with contextlib.suppress(OSError):
            request.wfile.write(body)
        if path in self.lies:
            request.close_connection = True
        return None

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@contextlib.contextmanager
def running(words, ready, log, seconds=60, env=()):
    """Run a server until the `with` statement ends; ready() tells when it answers."""
    with open(log, "wb") as output:
        server = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **dict(env)},
        )
    try:
        end = time.monotonic() + seconds
        while not ready():
            assert server.poll() is None and time.monotonic() < end, open(log).read()[-2000:]
            time.sleep(0.1)
        yield server
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def registry(place):
    """A real registry with its data in the directory place, and its log in place/log; yields its host:port."""
    port = free_port()
    (place / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {place}/data\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )

    def ready():
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/").status == 200
        except OSError:
            return False

    with running(["docker-registry", "serve", place / "config.yml"], ready, place / "log"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def slurm(place, nodes, environment):
    """A Slurm of this user's own in the directory place; yields what srun(1) needs in its environment.

    Its nodes have 32 processors each. environment is a shell's lines that print `export NAME=VALUE` for each task (TaskProlog).
    """
    user = pwd.getpwuid(os.getuid()).pw_name
    host = socket.gethostname().partition(".")[0]
    for name in "munge", "state", "spool", "log":
        (place / name).mkdir(mode=0o700)
    for node in nodes:
        (place / "spool" / node).mkdir()
    (place / "key").write_bytes(os.urandom(1024))
    (place / "key").chmod(0o600)
    (place / "prolog").write_text("#!/bin/sh\n" + environment)
    (place / "prolog").chmod(0o755)
    each = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=100"
    listed = "\n".join(f"NodeName={node} Port={free_port()} {each}" for node in nodes)
    (place / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={place}/munge/socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/log/slurmctld
SlurmdLogFile={place}/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
TaskProlog={place}/prolog
KillWait=2
{listed}
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    env = {"SLURM_CONF": str(place / "slurm.conf")}
    daemons = [
        [
            "/usr/sbin/munged",
            "--foreground",
            "--force",
            f"--key-file={place}/key",
            f"--socket={place}/munge/socket",
            f"--pid-file={place}/munge/pid",
            f"--log-file={place}/munge/log",
            f"--seed-file={place}/munge/seed",
        ],
        ["/usr/sbin/slurmctld", "-D"],
        *(["/usr/sbin/slurmd", "-D", "-N", node] for node in nodes),
    ]

    def idle():
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%t"],
            env={**os.environ, **env},
            capture_output=True,
        )
        return done.stdout.split().count(b"idle")

    def ready(number):
        if number == 0:
            return (place / "munge/socket").exists()
        if number == 1:
            return not subprocess.run(
                ["scontrol", "ping"], env={**os.environ, **env}, capture_output=True
            ).returncode
        return idle() >= number - 1

    with contextlib.ExitStack() as opened:
        for number, words in enumerate(daemons):
            opened.enter_context(
                running(words, functools.partial(ready, number), place / f"log/{number}", env=env)
            )
        yield env


@contextlib.contextmanager
def sshd(place, names, environment):
    """An sshd of this user's own in the directory place; yields ssh's file of settings, in which the hosts names are it.

    environment is a dict of what is set for whoever logs in.
    """
    port = free_port()
    for name in "host", "user":
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True
        )
    if os.getuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    variables = " ".join(f"{name}={value}" for name, value in environment.items())
    (place / "sshd.conf").write_text(f"""
ListenAddress 127.0.0.1:{port}
HostKey {place}/host
AuthorizedKeysFile {place}/user.pub
PidFile none
StrictModes no
UsePAM no
MaxStartups 100
MaxSessions 100
SetEnv {variables}
""")
    (place / "ssh.conf").write_text(f"""
Host {" ".join(names)}
HostName 127.0.0.1
Port {port}
IdentityFile {place}/user
StrictHostKeyChecking no
UserKnownHostsFile {place}/known
LogLevel ERROR
""")

    def ready():
        return (
            subprocess.run(
                ["ssh", "-F", place / "ssh.conf", names[0], "true"], capture_output=True
            ).returncode
            == 0
        )

    with running(["/usr/sbin/sshd", "-D", "-e", "-f", place / "sshd.conf"], ready, place / "log"):
        yield place / "ssh.conf"
