#!/usr/bin/env python3
"""Measure plash against its peers and against what it is built on.

Usage: bench.py [--rounds=N] [--debian=TAR] [--foreign=TAR] [--place=DIR] [--users=NAMES] [--big] [--only=WORDS]
                [--write]

Every command of a table runs in turn, round after round, so that they meet the same noise. hyperfine does the timing.
The rows are medians, their spread (half of the middle half), the ratio to the table's first row, and the peak of
memory. What is not installed, or fails here, is named and left out. plash is installed into a
temporary directory first, so that what users have is measured.

Options:
  --rounds=N    how often each command is timed [default: 20]
  --debian=TAR  a Debian root filesystem; without it mmdebstrap makes one
  --foreign=TAR  a root filesystem of another architecture, whose start is measured too
  --place=DIR   where all data goes; on a tmpfs, no disk is measured [default: /var/tmp]
  --users=NAMES  as root: ordinary users, between commas, for whom start times are measured too
  --big         an image of 500,000 files as well
  --only=WORDS  the tables to measure, by their first words, as in "start layers" [default: all]
  --write       write docs/benchmarks.md and its plots
"""

import datetime
import io
import json
import os
import platform
import pwd
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import plot

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAYERS = (1, 10, 50, 100, 250, 499)
IMAGES = (10, 100, 1000, 10000)
BIG = 500_000
PODMAN = (
    "--runtime=runc --network=host --cgroup-manager=cgroupfs"
    " --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024"
)
DOCKERD = "--bridge=none --iptables=false --ip6tables=false --storage-driver=overlay2"
PEERS = {
    "podman": "podman --version",
    "docker": "docker --version",
    "buildah": "buildah --version",
    "bwrap": "bwrap --version",
    "charliecloud": "ch-run --version",
    "proot": "dpkg-query -Wf '${Version}' proot",
    "systemd-nspawn": "systemd-nspawn --version",
    "GNU tar": "tar --version",
    "hyperfine": "hyperfine --version",
}


def sh(code, **options):
    """Run shell code that has to succeed; returns its output without the last newline."""
    done = subprocess.run(
        ["sh", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    if done.returncode:
        raise RuntimeError(f"{code}: {done.stderr.strip()}")
    return done.stdout.rstrip("\n")


class Bench:
    def __init__(self, place, options):
        self.place, self.rounds, self.options = place, int(options["--rounds"]), options
        self.users = options["--users"].split(",") if options["--users"] else []
        self.text, self.plots = [], {}

    def wanted(self, title):
        only = self.options["--only"]
        return only == "all" or title.lower().split()[0].strip(",:") in only.split()

    def say(self, line=""):
        print(line, flush=True)
        self.text.append(line)

    def table(self, title, commands, rounds=None, prepare=None, user=None):
        """Time commands, a dict of names to commands without shell syntax, and print a row for each.

        prepare is shell code to run before each one. Returns a dict of names to medians, in milliseconds.
        """
        times, peaks, missing = self.measure(commands, rounds, prepare, user)
        self.say(f"\n### {title}\n\n| | median | ± | ratio | peak |\n|---|--:|--:|--:|--:|")
        medians = {name: statistics.median(each) for name, each in times.items()}
        for name, each in times.items():
            low, _, high = statistics.quantiles(each, n=4)
            cell = name.replace("|", "\\|")
            self.say(
                f"| {cell} | {show(medians[name])} | {show((high - low) / 2)} |"
                f" {medians[name] / next(iter(medians.values())):.2f} | {peaks[name] / 1024:.0f} MiB |"
            )
        if missing:
            self.say("\nLeft out: " + "; ".join(missing) + ".")
        return medians

    def grid(self, title, label, columns):
        """Print what columns hold, a dict of numbers to dicts of names to medians, with the ratios to the first of each column."""
        self.say(
            f"\n### {title}\n\n| {label} | {' | '.join(f'{number:,}' for number in columns)} |\n|---|{'--:|' * len(columns)}"
        )
        for name in next(iter(columns.values())):
            self.say(
                f"| {name} | "
                + " | ".join(
                    f"{show(column[name])} ({column[name] / next(iter(column.values())):.2f})"
                    if name in column
                    else "–"
                    for column in columns.values()
                )
                + " |"
            )

    def measure(self, commands, rounds=None, prepare=None, user=None):
        """Time commands in turn; returns dicts of names to times and to peaks of memory, and the names that failed, with why."""
        times, peaks, missing = {}, {}, []
        for name, command in commands.items():
            try:
                if prepare:
                    sh(prepare)
                peaks[name] = self.once(command, user)
                times[name] = []
            except RuntimeError as error:
                missing.append(f"{name} ({error})")
        for _ in range(rounds or self.rounds):
            for name in times:
                times[name] += self.hyperfine(commands[name], prepare, user)
        return times, peaks, missing

    def once(self, command, user):
        """Run a command; returns the most memory, in KiB, of any of its processes. Raises RuntimeError."""
        if not shutil.which(shlex.split(command)[0]):
            raise RuntimeError("not installed")
        # A child of this process would count this one's memory too.
        report = f"{self.place}/peak"
        words = ["/usr/bin/time", "-f", "%M", "-o", report, *shlex.split(command)]
        open(report, "w").close()
        if user:
            shutil.chown(report, user)
        as_user = (
            {
                "user": user,
                "group": pwd.getpwnam(user).pw_gid,
                "extra_groups": [],
                "env": self.environment(user),
                "cwd": pwd.getpwnam(user).pw_dir,
            }
            if user
            else {}
        )
        with tempfile.TemporaryFile("w+") as said:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, **as_user
            )
            said.seek(0)
            if done.returncode:
                raise RuntimeError("fails here: " + " ".join(said.read().split())[-200:])
        with open(report, encoding="utf-8") as file:
            return int(file.read())

    def environment(self, user):
        """A user's environment: with their own store, beside root's."""
        return {
            **os.environ,
            "PLASH_DATA": f"{self.place}/{user}",
            "HOME": pwd.getpwnam(user).pw_dir,
            "USER": user,
        }

    def hyperfine(self, command, prepare, user):
        """The times of one round in ms: of one run, or of several where runs are short."""
        several = 1 if prepare else 5
        report = f"{self.place}/hyperfine.json"
        words = [
            "hyperfine",
            "--shell=none",
            f"--runs={several}",
            f"--export-json={report}",
            "--style=none",
            command,
        ]
        if prepare:
            sh(prepare)
        if user:
            open(report, "w").close()
            shutil.chown(report, user)
            words = ["runuser", "-u", user, "--", *words]
        subprocess.run(
            words,
            check=True,
            capture_output=True,
            env=self.environment(user) if user else None,
            cwd=pwd.getpwnam(user).pw_dir if user else None,
        )
        with open(report, encoding="utf-8") as file:
            return [1000 * each for each in json.load(file)["results"][0]["times"]]

    # What is measured, in the order of the page.

    def set_up(self):
        place = self.place
        os.environ.update(
            PLASH_DATA=f"{place}/data",
            PATH=f"{place}/bin:{os.environ['PATH']}",
            USER=pwd.getpwuid(os.getuid()).pw_name,
        )
        sh(f"make --silent -C {ROOT} install PREFIX={place}")
        with open(f"{place}/bin/plash-run", encoding="utf-8") as file:
            self.python = file.readline()[2:].split()[0]
        self.bare = f"{self.python} -IS -c pass"
        sh(
            f"plash pull:host && mkdir {place}/root && plash push:dir 1 {place}/root && plash push:tarfile 1 {place}/root.tar"
            f" && cd {place}/root && mkdir -p dev proc sys tmp home"
        )
        self.debian = f"{place}/debian.tar"
        if self.options["--debian"]:
            shutil.copy(self.options["--debian"], self.debian)
        else:
            sh(f"mmdebstrap --quiet --variant=minbase bookworm {self.debian}")

    def host(self):
        def first(command):
            try:
                return sh(command + " 2>&1").splitlines()[0]
            except (RuntimeError, IndexError):
                return "not installed"

        with open("/proc/cpuinfo", encoding="utf-8") as file:
            cpu = next(
                (line.partition(": ")[2].strip() for line in file if line.startswith("model name")),
                platform.machine(),
            )
        kind = sh(f"stat -f -c %T {self.place}")
        self.say(
            f"{datetime.date.today()}, {os.cpu_count()} × {cpu}, Linux {platform.release().partition('-')[0]}, data on {kind},"
            f" {self.rounds} rounds. plash {first('plash version').split()[-1]}, Python {sh(self.python + ' -V').split()[1]}.\n"
        )
        self.say("; ".join(f"{name}: {first(command)}" for name, command in PEERS.items()) + ".")
        driver = first(f"{self.podman} info --format '{{{{.Store.GraphDriverName}}}}'")
        self.say(
            f"\npodman keeps images by its storage driver {driver}, and runs with\n`{PODMAN}`;\n"
            f"dockerd with `{DOCKERD}`, and `docker run --network=host` with runc,\n"
            "its default; buildah with `--isolation=chroot`, without a runtime."
        )

    def start(self):
        root = f"{self.place}/root"
        docker = self.docker
        medians = self.table(
            "Start of a command (`true`), as root"
            if os.getuid() == 0
            else "Start of a command (`true`)",
            {
                "python3 -IS -c pass": self.bare,
                "plash-run": "plash-run 1 true",
                "plash run": "plash run 1 true",
                "unshare + chroot": f"unshare -m chroot {root} true",
                "bwrap": f"bwrap --bind {root} / --dev-bind /dev /dev --proc /proc true",
                "charliecloud": f"ch-run {root} -- true",
                "proot": f"proot -r {root} -w / true",
                "systemd-nspawn": f"systemd-nspawn -q --register=no --keep-unit -D {root} true",
                "podman run": f"{self.podman} run --rm {PODMAN} bench true",
                "docker run": f"{docker} run --rm --network=host bench true",
                "buildah run": f"{self.buildah} run --isolation=chroot bench true",
            },
        )
        self.plot("start", "Start of a command, and the ratio to Python's own start", medians)
        for user in self.users:
            data = self.environment(user)["PLASH_DATA"]
            os.mkdir(data)
            shutil.copytree(root, f"{root}-{user}", symlinks=True)
            sh(f"chown {user} {data} && chmod 755 {self.place} && chown -R {user} {root}-{user}")
            rows = {
                "python3 -IS -c pass": self.bare,
                "plash-run": "plash-run 1 true",
                "plash run": "plash run 1 true",
                "plash-build": "env PLASH_NO_SYNC=1 plash-build 1 true",
                "bwrap": f"bwrap --bind {root}-{user} / --dev-bind /dev /dev --proc /proc true",
                "charliecloud": f"ch-run {root}-{user} -- true",
                "proot": f"proot -r {root}-{user} -w / true",
            }
            pull = f"runuser -u {user} -- plash-pull:tarfile"
            sh(f"{pull} {self.place}/root.tar", env=self.environment(user))
            if self.options["--foreign"]:
                sh(f"{pull} {self.options['--foreign']}", env=self.environment(user))
                rows["plash-run, another architecture"] = "plash-run 2 true"
            with open("/etc/subuid", encoding="utf-8") as file:
                ids = "with" if f"{user}:" in file.read() else "without"
            self.table(
                f"Start of a command, as an ordinary user {ids} subordinate ids", rows, user=user
            )

    def steps(self):
        """Where the time of one run goes."""
        shutil.copy(f"{ROOT}/bench/steps.py", f"{self.place}/libexec/plash/steps.py")
        command = [self.python, "-SE", f"{self.place}/libexec/plash/steps.py"]
        columns = {sh("id -un"): self.step_medians(command)}
        for number, user in enumerate(self.users, 1):
            columns[f"ordinary user {number}"] = self.step_medians(
                ["runuser", "-u", user, "--", *command], self.environment(user)
            )
        self.say(
            f"\n### Where the time of `plash-run 1 true` goes\n\n| | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}"
        )
        for name in columns[sh("id -un")]:
            self.say(
                f"| {name} | "
                + " | ".join(f"{column[name]:.2f} ms" for column in columns.values())
                + " |"
            )
        self.say(
            "\nThe interpreter's own start, without its end, and `true` with the end of the namespaces are the rest."
        )

    def step_medians(self, command, env=None):
        found = {}
        for _ in range(self.rounds * 2):
            for line in subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=env
            ).stdout.splitlines():
                took, _, name = line.partition(" ")
                found.setdefault(name, []).append(float(took))
        return {name: statistics.median(each) for name, each in found.items()}

    def lookups(self):
        """The commands of one lookup, and the cached `do`."""
        sh(f"plash do pull:tarfile {self.place}/root.tar && plash do build true")
        # hyperfine is a session's child; each of its runs finds the session's image as a script's lines do.
        self.table(
            "Lookups",
            {
                "python3 -IS -c pass": self.bare,
                "plash-nodepath": "plash-nodepath 1",
                "plash-parent": "plash-parent 1",
                "plash-id": "plash-id 1",
                "plash-map": "plash-map",
                "plash-data": "plash-data",
                "plash-do pull:tarfile, cached": f"plash-do pull:tarfile {self.place}/root.tar",
                "plash-cache build, cached": "plash-cache build 1 true",
            },
        )

    def build(self):
        with open(f"{self.place}/Dockerfile", "w", encoding="utf-8") as file:
            file.write("FROM bench\nRUN true\n")
        self.table(
            "Build that does nothing (`true`)",
            {
                "plash build": "plash build 1 true",
                "plash build, PLASH_NO_SYNC=1": "env PLASH_NO_SYNC=1 plash build 1 true",
                "buildah bud": f"{self.buildah} bud -q --isolation=chroot --no-cache -f {self.place}/Dockerfile {self.place}/root/tmp",
                "docker build": f"env DOCKER_BUILDKIT=0 {self.docker} build -q --network=host --no-cache -f {self.place}/Dockerfile {self.place}/root/tmp",
            },
            rounds=max(3, self.rounds // 4),
        )

    def containerfile(self):
        """A Containerfile of 20 instructions that were all carried out before, and from the start."""
        directory = f"{self.place}/twenty"
        os.mkdir(directory)
        for number in range(4):
            with open(f"{directory}/file{number}", "w", encoding="utf-8") as file:
                file.write("x" * 10_000)
        lines = ["FROM bench"]
        for number in range(4):
            lines += [
                f"ENV VARIABLE{number}=value",
                f"WORKDIR /work{number}",
                f"COPY file{number} ./",
                f"RUN echo $VARIABLE{number} >result",
            ]
        lines += ["LABEL a=b", "EXPOSE 80", 'CMD ["cat", "result"]']
        with open(f"{directory}/Dockerfile", "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        sh("plash map bench 1")
        podman = f"{self.podman} build -q --runtime=runc --isolation=chroot --network=host"
        buildah = f"{self.buildah} bud -q --layers --isolation=chroot"
        docker = f"{self.docker} build -q --network=host"
        forget = f"rm -f {self.place}/data/cache/*"
        for title, option, prepare, rounds in (
            ("Containerfile of 20 instructions, all remembered", "", None, None),
            ("Containerfile of 20 instructions, from the start", "--no-cache", forget, 3),
        ):
            self.table(
                title,
                {
                    "plash build:file": f"plash build:file {directory}",
                    "podman build": f"{podman} {option} {directory}",
                    "buildah bud": f"{buildah} {option} {directory}",
                    "docker build, BuildKit": f"env DOCKER_BUILDKIT=1 {docker} {option} {directory}",
                    "docker build": f"env DOCKER_BUILDKIT=0 {docker} {option} {directory}",
                },
                rounds=rounds,
                prepare=prepare,
            )

    def registry(self):
        """An image of ten layers from a registry on loopback, and to it, where all of it is already."""
        sys.path.insert(0, f"{ROOT}/tests")
        import servers

        place = Path(self.place) / "registry"
        place.mkdir()
        directories = "doc perl perl5 zoneinfo common-licenses locale bash-completion info keyrings"
        env = {**os.environ, "PLASH_NO_SYNC": "1"}
        with servers.registry(place) as address:
            image = sh(f"plash pull:tarfile {self.debian}", env=env)
            for name in directories.split():
                code = f"mkdir -p /opt/{name}; cp -r /usr/share/. /opt/{name}"
                image = sh(f"plash build {image} '{code}'", env=env)
            sh(f"plash push:oci --tls-verify=false {image} {address}/ten:latest")
            store = f"{self.place}/pulled"
            forget = f"PLASH_DATA={store} plash purge --yes; {self.podman} rmi -af; rm -rf {self.place}/copy"
            self.table(
                "pull of an image of ten layers from a registry on loopback",
                {
                    "podman pull": f"{self.podman} pull -q --tls-verify=false {address}/ten",
                    "plash pull:oci": f"env PLASH_DATA={store} plash pull:oci --tls-verify=false {address}/ten",
                    "skopeo copy to files": f"skopeo copy -q --src-tls-verify=false docker://{address}/ten dir:{self.place}/copy",
                },
                rounds=3,
                prepare=forget,
            )
            sh(f"{self.podman} pull -q --tls-verify=false {address}/ten")
            self.table(
                "push of an image that the registry has",
                {
                    "podman push": f"{self.podman} push -q --tls-verify=false {address}/ten",
                    "plash push:oci": f"plash push:oci --tls-verify=false {image} {address}/ten",
                },
            )
            sh(f"{self.podman} rmi -af; plash rm --recursive 2")

    def layers(self):
        """Start against the number of layers."""
        columns = {}
        env = {**os.environ, "PLASH_NO_SYNC": "1"}
        for number in LAYERS:
            archive = f"{self.place}/layers.tar"
            write_layers(archive, f"{self.place}/root.tar", number)
            for engine in self.podman, self.docker:
                try:
                    sh(f"{engine} load -qi {archive} && {engine} tag layers:{number} layers")
                except RuntimeError as error:
                    print(f"{engine}: {number} layers: {error}", file=sys.stderr)
            image = sh(
                f"id=1; i=1; while [ $i -lt {number} ]; do d=$(plash mkdtemp); touch $d/$i;"
                " id=$(plash-stack $id $d); i=$((i+1)); done; echo $id",
                env=env,
            )
            times, _, _ = self.measure(
                {
                    "plash-run": f"plash-run {image} true",
                    "podman run": f"{self.podman} run --rm {PODMAN} layers:{number} true",
                    "docker run": f"{self.docker} run --rm --network=host layers:{number} true",
                },
                rounds=max(3, self.rounds // 4),
            )
            columns[number] = {name: statistics.median(each) for name, each in times.items()}
            if image != "1":
                sh(
                    f"plash rm $(p={image}; while q=$(plash parent $p); [ $q != 1 ]; do p=$q; done; echo $p); plash clean"
                )
        self.grid("Start against the number of layers", "layers", columns)
        self.say('\n–: podman and docker refuse as many ("max depth exceeded").')
        series = {
            name: [(number, column[name]) for number, column in columns.items() if name in column]
            for name in columns[1]
        }
        self.plot("layers", "Start of a command against the number of layers", series, "layers")

    def archives(self):
        """Import, export, removal."""
        place, few = self.place, max(3, self.rounds // 3)
        sh(f"xz -T0 -2 --keep {self.debian}")
        inside = "" if os.getuid() == 0 else "plash sudo "
        exclude = "" if os.getuid() == 0 else "--exclude=./dev/* "
        # Beside the images: where a filesystem puts a new directory's files can make a difference of ten times.
        plain = f"tar -xp --numeric-owner --xattrs --xattrs-include=* {exclude}-C {place}/out -f"
        reset = (
            f"{inside}rm -rf {place}/out; mkdir {place}/out; rm -f {place}/out.tar; for id in $(ls {place}/data/index); do"
            " [ $id -le 1 ] || plash rm $id; done; plash clean;"
            f" {self.podman} rmi -f imported; {self.docker} rmi -f imported; :"
        )
        for name, source, expand in (
            (".tar", self.debian, "cat"),
            (".tar.xz", self.debian + ".xz", "xz -T0 -dc"),
        ):
            self.table(
                f"Import of a Debian, {name}",
                {
                    "tar -x": f"{inside}sh -c '{expand} {source} | {plain} -'"
                    if name == ".tar.xz"
                    else f"{inside}{plain} {source}",
                    "plash pull:tarfile": f"plash-pull:tarfile {source}",
                    "plash pull:tarfile, PLASH_NO_SYNC=1": f"env PLASH_NO_SYNC=1 plash-pull:tarfile {source}",
                    "podman import": f"{self.podman} import -q {source} imported",
                    "docker import": f"{self.docker} import {source} imported",
                },
                few,
                reset,
            )
        sh(reset)
        number = sh(f"plash pull:tarfile {self.debian}")
        layer = sh(f"plash nodepath {number}") + "/_data/root"
        engines = {}
        for engine, words in ("podman", self.podman), ("docker", self.docker):
            try:
                sh(
                    f"{words} import {self.debian} debian && {words} create --name debian debian true"
                )
            except RuntimeError as error:
                print(error, file=sys.stderr)
            engines[f"{engine} export"] = f"{words} export -o {place}/out.tar debian"
        self.table(
            "Export of a Debian, .tar",
            {
                "tar -c of its one layer": f"{inside}tar -c --numeric-owner --xattrs --xattrs-include=* -C {layer} -f {place}/out.tar .",
                "plash push:tarfile": f"plash-push:tarfile {number} {place}/out.tar",
                "plash push:tarfile, PLASH_NO_SYNC=1": f"env PLASH_NO_SYNC=1 plash-push:tarfile {number} {place}/out.tar",
                **engines,
            },
            few,
            f"rm -f {place}/out.tar",
        )
        self.table(
            "Export of a Debian, .tar.zst",
            {
                "tar -c | zstd -T0": f"{inside}sh -c 'tar -c --numeric-owner --xattrs --xattrs-include=* -C {layer} . | zstd -qT0 >{place}/out.tar.zst'",
                "plash push:tarfile": f"plash-push:tarfile {number} {place}/out.tar.zst",
            },
            few,
            f"rm -f {place}/out.tar.zst",
        )
        again = (
            f"plash clean; {inside}rm -rf {place}/out; mkdir {place}/out; {inside}{plain} {self.debian};"
            f" plash map gone $(plash pull:tarfile {self.debian})"
        )
        self.table(
            "Removal of a Debian",
            {
                "rm -rf of its files": f"{inside}rm -rf {place}/out",
                "plash rm": "sh -c 'plash rm $(plash map gone)'",
                "plash rm && plash clean": "sh -c 'plash rm $(plash map gone) && plash clean'",
            },
            few,
            again,
        )
        sh(f"{inside}rm -rf {place}/out; plash rm {number}; plash clean")

    def images(self):
        """The store against the number of images."""
        columns = {}
        for number in IMAGES:
            env = {**os.environ, "PLASH_DATA": f"{self.place}/many", "PLASH_NO_SYNC": "1"}
            sh(f"plash pull:tarfile {self.place}/root.tar", env=env)
            subprocess.run(
                [self.python, "-c", MANY, str(number - 1)],
                env={**env, "PYTHONPATH": f"{self.place}/libexec/plash"},
                check=True,
            )
            old, os.environ["PLASH_DATA"] = os.environ["PLASH_DATA"], env["PLASH_DATA"]
            sh("plash map name 1")
            times, _, _ = self.measure(
                {
                    "python3 -IS -c pass": self.bare,
                    "plash-nodepath": f"plash-nodepath {number}",
                    "plash-map": "plash-map",
                    "plash-run": "plash-run 1 true",
                    "plash-clean": "plash-clean",
                }
            )
            copy = f"{self.place}/copy"
            shrinks, _, _ = self.measure(
                {"plash-shrink": f"env PLASH_DATA={copy} plash-shrink"},
                3,
                f"[ ! -e {copy} ] || plash sudo rm -rf {copy}; cp -a {self.place}/many {copy}",
            )
            columns[number] = {
                name: statistics.median(each) for name, each in {**times, **shrinks}.items()
            }
            os.environ["PLASH_DATA"] = old
            sh(f"plash sudo rm -rf {self.place}/many {copy}")
        self.grid("Commands against the number of images", "images", columns)

    def parallel(self):
        """Many runs: what they cost at once, and what they leave."""

        def spent(work):
            before, begun = os.times(), time.monotonic()
            work()
            after = os.times()
            return (
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system,
                time.monotonic() - begun,
            )

        def in_turn(number=200):
            for _ in range(number):
                subprocess.run(["plash-run", "1", "true"], check=True)

        def at_once():
            for process in [subprocess.Popen(["plash-run", "1", "true"]) for _ in range(200)]:
                assert process.wait() == 0

        def left():
            with open("/proc/self/mountinfo", encoding="utf-8") as file:
                mounts = len(file.readlines())
            return (
                mounts,
                len(os.listdir(f"{self.place}/data/tmp")),
                sum(
                    1
                    for pid in os.listdir("/proc")
                    if pid.isdigit() and f"{self.place}/data" in mountinfo(pid)
                ),
            )

        ratios, walls = [], []
        for _ in range(max(3, self.rounds // 4)):
            (one, wall), (many, wall_many) = spent(in_turn), spent(at_once)
            ratios.append(many / one)
            walls.append(wall_many / wall)
        self.say(
            f"\n### Two hundred at once\n\n200 `plash-run 1 true` at once take {statistics.median(ratios):.2f} times the cpu time of"
            f" 200 in turn ({min(ratios):.2f} to {max(ratios):.2f}), and {statistics.median(walls):.2f} of their time."
        )
        before = left()
        in_turn(1000)
        after = left()
        self.say(
            "\n### One thousand in turn\n\nMounts, entries in tmp/, and processes that have the store mounted: before"
            f" {before}, after {after}."
        )

    def big(self):
        """An image of many files."""
        source = f"{self.place}/big.tar"
        with tarfile.open(source, "w", format=tarfile.GNU_FORMAT) as tar:
            add_tree(tar, f"{self.place}/root.tar")
            for number in range(BIG):
                if number % 1000 == 0:
                    tar.addfile(entry(f"many/{number // 1000}", tarfile.DIRTYPE))
                tar.addfile(
                    entry(f"many/{number // 1000}/{number}", size=64), io.BytesIO(b"x" * 64)
                )
        inside, out = "" if os.getuid() == 0 else "plash sudo ", f"{self.place}/out"
        self.table(
            f"Import of {BIG:,} files",
            {
                "tar -x": f"{inside}tar -xp --numeric-owner --xattrs --xattrs-include=* -C {out} -f {source}",
                "plash pull:tarfile": f"plash-pull:tarfile {source}",
            },
            2,
            f"{inside}rm -rf {out}; mkdir {out}; for id in $(ls {self.place}/data/index); do [ $id -le 1 ] || plash rm $id; done; plash clean",
        )
        number = sh(f"plash pull:tarfile {source}")
        layer = sh(f"plash nodepath {number}") + "/_data/root"
        self.table(
            f"Export of {BIG:,} files",
            {
                "tar -c": f"{inside}tar -c --numeric-owner --xattrs --xattrs-include=* -C {layer} -f {self.place}/out.tar .",
                "plash push:tarfile": f"plash-push:tarfile {number} {self.place}/out.tar",
            },
            2,
            f"rm -f {self.place}/out.tar",
        )
        self.table(
            f"Start and build on {BIG:,} files",
            {"plash-run": f"plash-run {number} true", "plash build": f"plash build {number} true"},
            3,
        )
        self.table(
            f"Removal of {BIG:,} files",
            {
                "rm -rf": f"{inside}rm -rf {out}",
                "plash rm && plash clean": "sh -c 'plash rm $(plash map gone) && plash clean'",
            },
            2,
            f"{inside}rm -rf {out}; mkdir {out}; {inside}tar -xp -C {out} -f {source}; plash map gone $(plash pull:tarfile {source})",
        )

    def plot(self, name, title, values, label=None):
        self.plots[name] = plot.lines(title, label, values) if label else plot.bars(title, values)
        self.say(f"\n![{title}]({name}.svg)")

    @contextmanager
    def engines(self):
        """podman with its data in self.place, and a dockerd that does the same, for root, where there is one."""
        place = self.place
        self.podman = (
            f"podman --root {place}/podman --runroot {place}/podman-run --cgroup-manager=cgroupfs"
        )
        self.buildah = f"buildah --root {place}/podman --runroot {place}/podman-run"
        self.docker = f"docker -H unix://{place}/docker.sock"
        daemon = None
        if os.getuid() == 0 and shutil.which("dockerd"):
            with open(f"{place}/dockerd.log", "wb") as log:
                daemon = subprocess.Popen(
                    [
                        "dockerd",
                        *DOCKERD.split(),
                        "-H",
                        f"unix://{place}/docker.sock",
                        "--data-root",
                        f"{place}/docker",
                        "--exec-root",
                        f"{place}/docker-run",
                        "--pidfile",
                        f"{place}/docker.pid",
                    ],
                    stderr=log,
                )
            end = time.monotonic() + 60
            while (
                time.monotonic() < end
                and subprocess.run(
                    [*self.docker.split(), "version"], capture_output=True
                ).returncode
            ):
                time.sleep(0.5)
        try:
            for words in self.podman, self.docker:
                try:
                    sh(f"{words} import {place}/root.tar bench")
                except RuntimeError as error:
                    print(error, file=sys.stderr)
            subprocess.run(
                f"{self.buildah} from --name bench bench", shell=True, capture_output=True
            )
            yield
        finally:
            if daemon:
                daemon.terminate()
                daemon.wait()
            subprocess.run(
                f"{self.podman} rm -fa; {self.buildah} rm -a; umount {place}/podman/overlay {place}/docker-run/netns/default {place}/docker",
                shell=True,
                capture_output=True,
            )


# Makes so many images, each on image 1, in one process.
MANY = """
import os, sys
from plashlib import ids, store, work
ids.become_root()
for _ in range(int(sys.argv[1])):
    with work.NewLayer() as layer:
        os.mkdir(layer.root)
        layer.stack_on(store.image("1"))
"""


def mountinfo(pid):
    try:
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def show(milliseconds):
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"


def entry(name, kind=tarfile.REGTYPE, size=0):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, size, 0o755
    return info


def add_tree(tar, source):
    with tarfile.open(source) as given:
        for member in given:
            tar.addfile(member, given.extractfile(member) if member.isreg() else None)


def write_layers(archive, root, number):
    """A docker-archive of an image with that many layers, root's and one file each, named layers:NUMBER."""
    import hashlib

    layers = [root]
    for extra in range(1, number):
        layer = io.BytesIO()
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.addfile(entry(str(extra)))
        layers.append(layer.getvalue())
    with tarfile.open(archive, "w") as tar:
        digests = []
        for index, layer in enumerate(layers):
            if isinstance(layer, str):
                with open(layer, "rb") as file:
                    layer = file.read()
            digests.append(hashlib.sha256(layer).hexdigest())
            tar.addfile(entry(f"{index}.tar", size=len(layer)), io.BytesIO(layer))
        config = json.dumps(
            {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                    platform.machine(), platform.machine()
                ),
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": ["sha256:" + each for each in digests]},
                "history": [{"created_by": "bench"}] * number,
            }
        ).encode()
        manifest = json.dumps(
            [
                {
                    "Config": "config.json",
                    "RepoTags": [f"layers:{number}"],
                    "Layers": [f"{index}.tar" for index in range(number)],
                }
            ]
        ).encode()
        for name, content in ("config.json", config), ("manifest.json", manifest):
            tar.addfile(entry(name, size=len(content)), io.BytesIO(content))


def main(options):
    place = tempfile.mkdtemp(prefix="plash-bench-", dir=options["--place"])
    bench = Bench(place, options)
    try:
        bench.set_up()
        with bench.engines():
            bench.say(
                "# Benchmarks\n\nWritten by `make bench`; see bench/bench.py. Ratios are to the first row of a table. The peak is"
                " that of the\nlargest process of the command; for docker, that of its client alone.\n"
            )
            bench.host()
            for part in (
                "start",
                "steps",
                "lookups",
                "build",
                "containerfile",
                "registry",
                "layers",
                "archives",
                "images",
                "parallel",
            ):
                if bench.wanted(part):
                    getattr(bench, part)()
            if options["--big"] and bench.wanted("big"):
                bench.big()
    finally:
        subprocess.run([f"{place}/bin/plash", "sudo", "rm", "-rf", place], check=True)
    if options["--write"]:
        for name, drawn in {
            "benchmarks.md": "\n".join(bench.text) + "\n",
            **{f"{name}.svg": drawn for name, drawn in bench.plots.items()},
        }.items():
            with open(f"{ROOT}/docs/{name}", "w", encoding="utf-8") as file:
                file.write(drawn)


if __name__ == "__main__":
    import docopt

    sys.exit(main(docopt.docopt(__doc__)))
