"""pull:docker, with a real dockerd, a real registry and podman."""

import json
import os
import shutil
import signal
import subprocess
import time

import engines
import pytest
from requirements import need_program
from world import LIBEXEC, wait_for

IMAGE = "plash-test"
DOCKERFILE = f"""FROM {IMAGE}-base
RUN mkdir -p /d /e && touch /d/old /e/kept /f && chown 7:9 /f && chmod 4755 /f
RUN rm -rf /d && mkdir /d && touch /d/new && ln /f /g && rm -r /e
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory, host_tar):
    """A dockerd of its own, with an image of three layers."""
    need_program("dockerd", "docker")
    place = tmp_path_factory.mktemp("docker")
    with engines.docker(place) as engine:
        engine("import", str(capable(host_tar, place)), f"{IMAGE}-base")
        engine("build", "--network=none", "--tag", IMAGE, "-", input=DOCKERFILE.encode())
        yield engine


def capable(host_tar, place):
    """host_tar with a program that has a file capability, which setcap(8) gives as root does."""
    root = place / "root"
    root.mkdir()
    subprocess.run(["tar", "-xf", host_tar, "-C", root], check=True)
    shutil.copy(root / "usr/bin/true", root / "usr/bin/capable")
    subprocess.run(["/usr/sbin/setcap", "cap_net_raw+ep", root / "usr/bin/capable"], check=True)
    tar = place / "capable.tar"
    subprocess.run(
        ["tar", "--xattrs", "--xattrs-include=*", "-cf", tar, "-C", root, "."], check=True
    )
    return tar


@pytest.fixture
def pull(plash, docker):
    return lambda *words, **options: plash(
        "pull:docker", *words, env={"DOCKER_HOST": docker.env["DOCKER_HOST"]}, **options
    )


# Only root may start a dockerd.
pytestmark = [pytest.mark.only_for("root"), pytest.mark.slow]


def check(plash, number):
    """The image is the one that DOCKERFILE makes."""
    seen = (
        plash(
            "mounted",
            number,
            "sh",
            "-c",
            "find d e f g 2>/dev/null; stat -c '%u:%g %a %h' f g; ls -A",
        )
        .ok()
        .out
    )
    assert seen.splitlines()[:6] == ["d", "d/new", "f", "g", "7:9 4755 2", "7:9 4755 2"]
    assert ".dockerenv" not in seen
    assert plash("run", number, "true").ok()


@pytest.mark.parametrize("name", [IMAGE, f"{IMAGE}:latest"])
def test_a_local_image(plash, docker, pull, name):
    before = docker.containers()
    done = pull(name).ok()
    assert done.err == ""
    check(plash, done.id)
    assert (
        plash("mounted", done.id, "/usr/sbin/getcap", "usr/bin/capable").out
        == "usr/bin/capable cap_net_raw=ep\n"
    )
    assert docker.containers() == before


@pytest.mark.parametrize("how", ["tag", "digest", "no tag"])
def test_an_image_from_a_registry(plash, docker, pull, registry, how):
    name = f"{registry.address}/some/{IMAGE}"
    docker("tag", IMAGE, name)
    docker("push", name)
    digest = docker("inspect", "--format", "{{index .RepoDigests 0}}", name)
    docker("rmi", name)
    done = pull({"tag": f"{name}:latest", "digest": digest, "no tag": name}[how]).ok()
    check(plash, done.id)


@pytest.mark.parametrize(
    "name, why",
    [("127.0.0.1:1/none", "127.0.0.1:1"), ("UPPER", "invalid reference format"), ("", "")],
)
def test_an_image_that_is_not_there(plash, docker, pull, name, why):
    before = docker.containers()
    done = pull(name)
    assert (
        done.status == 1
        and done.error.startswith("plash pull:docker: docker pull: ")
        and why in done.error
    )
    assert docker.containers() == before and not os.listdir(plash.data / "tmp")


def test_no_daemon(plash):
    done = plash("pull:docker", IMAGE, env={"DOCKER_HOST": f"unix://{plash.place}/none"})
    assert "Cannot connect to the Docker daemon" in done.error


def test_no_permission(plash, docker, tmp_path):
    """As another user, who may not use the socket."""
    tmp_path.chmod(0o777)
    for path in (tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    words = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        LIBEXEC / "plash-pull:docker",
        IMAGE,
    ]
    socket = tmp_path / "sock"
    os.link(docker.env["DOCKER_HOST"][len("unix://") :], socket)
    done = plash.run(
        words, env={"DOCKER_HOST": f"unix://{socket}", "PLASH_DATA": f"{tmp_path}/other"}
    )
    assert done.status == 1 and "permission denied" in done.error.lower()


def test_neither_docker_nor_podman(plash, tmp_path):
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in "python3", "env", "rm":
        (bare / name).symlink_to(shutil.which(name))
    done = plash.run([LIBEXEC / "plash-pull:docker", IMAGE], env={"PATH": str(bare)})
    assert done.error.startswith("plash pull:docker: install docker or podman")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_in_the_middle(plash, docker, pull, tmp_path, number):
    """A docker whose export takes its time; what a kill leaves is removed by the next pull."""
    before = docker.containers()
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "docker").write_text(
        f'#!/bin/sh\ncase $1 in export) sleep 100;; *) exec {shutil.which("docker")} "$@";; esac\n'
    )
    (fake / "docker").chmod(0o755)
    env = {
        **plash.env,
        "DOCKER_HOST": docker.env["DOCKER_HOST"],
        "PATH": f"{fake}:{os.environ['PATH']}",
    }
    stopped = plash.start("pull:docker", IMAGE, env=env, start_new_session=True)
    wait_for(lambda: docker.containers() != before)
    time.sleep(1)
    os.killpg(stopped.pid, number)
    assert stopped.wait() in (-number, 128 + number)
    if number == signal.SIGKILL:
        assert docker.containers() != before
        check(plash, pull(IMAGE).id)
        plash.clean()
    assert stopped.stderr.read() == b""
    assert docker.containers() == before and plash.leftovers() == []
    assert sorted(os.listdir(plash.data / "index")) == (
        ["0", "1"] if number == signal.SIGKILL else ["0"]
    )


@pytest.mark.only_for("root")
def test_podman_alone(plash, host_tar, tmp_path):
    need_program("podman")
    bare = tmp_path / "bin"
    bare.mkdir()
    for directory in "/usr/sbin", "/usr/bin":
        for name in os.listdir(directory):
            if name != "docker" and not (bare / name).exists():
                (bare / name).symlink_to(f"{directory}/{name}")
    (bare / "podman").unlink()
    with engines.podman(tmp_path / "podman") as podman:
        (bare / "podman").write_text(
            "#!/bin/sh\nexec " + " ".join(map(str, podman.words)) + ' "$@"\n'
        )
        (bare / "podman").chmod(0o755)
        env = {"PATH": str(bare)}
        podman("import", str(host_tar), IMAGE)
        done = plash("pull:docker", IMAGE, env=env).ok()
        assert plash("run", done.id, "cat", "/etc/passwd").out.startswith("root:")
        assert podman.containers() == ""
        assert "podman pull: " in plash("pull:docker", "127.0.0.1:1/none", env=env).error


def fake_docker(plash, docker, code):
    """A docker whose `export` is shell code; returns the environment in which it is found first."""
    fake = plash.place / "fake"
    fake.mkdir()
    (fake / "docker").write_text(
        f'#!/bin/sh\nreal={shutil.which("docker")}\n[ "$1" = export ] || exec $real "$@"\n{code}\n'
    )
    (fake / "docker").chmod(0o755)
    return {
        "DOCKER_HOST": docker.env["DOCKER_HOST"],
        "PATH": f"{fake}:{os.environ['PATH']}",
    }


def test_an_export_that_fails_at_its_end(plash, docker):
    env = fake_docker(plash, docker, '$real "$@"; echo "lost the daemon" >&2; exit 1')
    done = plash("pull:docker", IMAGE, env=env)
    assert done.error == "plash pull:docker: docker export: lost the daemon"
    assert os.listdir(plash.data / "index") == ["0"] and docker.containers() == ""


def test_an_export_that_fails_in_the_middle(plash, docker):
    env = fake_docker(plash, docker, '$real "$@" | head -c 100000; echo "gone" >&2; exit 1')
    done = plash("pull:docker", IMAGE, env=env)
    assert done.error == "plash pull:docker: docker export: gone"


def test_an_export_that_is_no_archive(plash, docker):
    env = fake_docker(plash, docker, "echo '<html>'")
    done = plash("pull:docker", IMAGE, env=env)
    assert done.error == "plash pull:docker: not a tar archive, but a web page or XML"
    assert docker.containers() == ""


def test_an_export_that_says_much(plash, docker):
    """More than a pipe holds, on stderr."""
    env = fake_docker(plash, docker, 'head -c 300000 /dev/zero >&2; exec $real "$@"')
    check(plash, plash("pull:docker", IMAGE, env=env).id)


def test_the_configuration_is_kept(plash, docker, pull):
    dockerfile = (
        f"FROM {IMAGE}\nENV A=b C='d e'\nWORKDIR /srv\nUSER 7:9\nLABEL x=y\nEXPOSE 80\n"
        'ENTRYPOINT ["echo"]\nCMD ["hi"]\n'
    )
    docker("build", "--network=none", "--tag", "configured", "-", input=dockerfile.encode())
    number = pull("configured").id
    data = plash.data / f"layer/0/{number}/_data"
    config = json.loads((data / "config.json").read_text())
    expected = json.loads(docker("image", "inspect", "configured"))[0]
    assert config["architecture"] == expected["Architecture"] and config["os"] == "linux"
    for name, value in config["config"].items():
        assert value == expected["Config"][name]
    assert {"Env", "WorkingDir", "User", "Labels", "ExposedPorts", "Entrypoint", "Cmd"} <= set(
        config["config"]
    )
    assert plash("run", number, "sh", "-c", "echo $A $C").ok().out == "b d e\n"
    # What is pushed is an image that docker's own tools read.
    plash("push:oci", number, "oci:layout:x").ok()
    shown = plash.run(["skopeo", "inspect", "--config", "oci:layout:x"]).ok().out
    assert json.loads(shown)["config"] == config["config"]


def test_podman_where_docker_has_no_daemon(plash, host_tar, tmp_path):
    need_program("podman", "docker")
    fake = tmp_path / "bin"
    fake.mkdir()
    with engines.podman(tmp_path / "podman") as podman:
        (fake / "podman").write_text(
            "#!/bin/sh\nexec " + " ".join(map(str, podman.words)) + ' "$@"\n'
        )
        (fake / "docker").write_text(
            f'#!/bin/sh\nDOCKER_HOST=unix:///nonexistent exec {shutil.which("docker")} "$@"\n'
        )
        for each in fake.iterdir():
            each.chmod(0o755)
        podman("import", "--change", "ENV=A=b", str(host_tar), IMAGE)
        env = {"PATH": f"{fake}:{os.environ['PATH']}"}
        number = plash("pull:docker", IMAGE, env=env).id
        assert plash("run", number, "sh", "-c", "echo $A").ok().out == "b\n"
        # A daemon that the user named is not passed over.
        done = plash("pull:docker", IMAGE, env={**env, "DOCKER_HOST": "unix:///nonexistent"})
        assert "Cannot connect to the Docker daemon" in done.error


def test_clean_removes_no_container_that_plash_did_not_make(plash, docker):
    """A file of that name is the user's own, in a directory that they asked for."""
    docker("create", "--name", "mine", IMAGE, "sh")
    code = f"d=$({LIBEXEC}/plash-mkdtemp) && echo $d && printf mine >$d/container"
    plash.run(["sh", "-c", code]).ok()
    plash("clean", env={"DOCKER_HOST": docker.env["DOCKER_HOST"]}).ok()
    try:
        assert docker("ps", "--all", "--format", "{{.Names}}") == "mine"
    finally:
        docker("rm", "mine")
