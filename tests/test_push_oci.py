"""push:oci, with a real registry, docker, podman, skopeo and umoci as readers and writers."""

import gzip
import json
import os
import random
import signal
import subprocess

import engines
import pytest
from layouts import BASE, LISTED, changes, digest, pull, push, tree, write_layout
from requirements import need_program
from world import wait_for


def send(plash, number, ref, *options):
    return (
        plash(
            "push:oci",
            "--tls-verify=false",
            *options,
            number,
            ref,
            env={"XDG_RUNTIME_DIR": str(plash.place)},
        )
        .ok()
        .out.strip()
    )


def inspect(plash, ref, *options):
    return json.loads(
        plash.run(
            ["skopeo", "inspect", "--tls-verify=false", *options, ref],
            env={"XDG_RUNTIME_DIR": str(plash.place)},
        )
        .ok()
        .out
    )


def tree_at(run, directory):
    listed = run(["find", directory, "-printf", LISTED])
    return sorted(listed.splitlines()), run(
        ["sh", "-c", 'cd "$1" && find . -type f | sort | xargs sha256sum', "-", directory]
    )


def built(plash, number, turns, seed):
    """Images built one on another, by commands that add, change, remove, rename and bring back what is there."""
    chance = random.Random(seed)
    for turn in range(turns):
        commands = []
        for _ in range(6):
            one, two = (
                "/t/" + "/".join(chance.choice("abc") for _ in range(chance.randint(1, 2)))
                for _ in range(2)
            )
            commands.append(
                chance.choice(
                    [
                        "rm -rf {one}",
                        "rm -rf {one}; mkdir -p {one} && echo {turn} >{one}/new",
                        "mkdir -p {one} && mv {one} {two}",
                        "mkdir -p $(dirname {one}) && echo {turn} >{one}",
                        "mkdir -p $(dirname {one}) && ln -sfn x{turn} {one}",
                        "mkdir -p $(dirname {one}) && echo {turn} >{one} && ln -f {one} {two}",
                        "rm -rf {one}/..; mkdir -p {one}",
                        "mkdir -p {one} && chmod 1711 {one}",
                        "rm -f {one}/new",
                    ]
                ).format(one=one, two=two, turn=turn)
            )
        number = plash(
            "build",
            number,
            "; ".join(f"({command}) 2>&- || :" for command in commands) + "; mkdir -p /t; true",
        ).id
    return number


@pytest.mark.slow
def test_to_a_registry_that_has_the_base(plash, registry, host_tar):
    """It receives what is new, and the base's layers are the very files that were pulled."""
    layers = [open(host_tar, "rb").read(), *BASE]
    ref = push(
        plash,
        registry,
        "has-base",
        layers,
        {"Env": ["A=b"], "Labels": {"of": "base"}, "Cmd": ["x"]},
    )
    number = pull(plash, ref).id
    child = plash("build", number, "echo new > /new; rm /etc/two").id
    registry.sent()
    done = send(plash, child, f"{registry.address}/has-app:1")
    sent, manifest = (
        registry.sent(),
        inspect(plash, f"docker://{registry.address}/has-app@{done}", "--raw"),
    )
    assert [each["digest"] for each in manifest["layers"]][:3] == [
        digest(gzip.compress(each, mtime=0)) for each in layers
    ]
    assert sorted(sent) == sorted(
        [each["digest"] for each in (manifest["layers"][3], manifest["config"])]
    )
    config = inspect(plash, f"docker://{registry.address}/has-app:1", "--config")
    assert config["config"] == {"Env": ["A=b"], "Labels": {"of": "base"}, "Cmd": ["x"]}
    assert [bool(each) for each in config["history"]] == [False] * 3 + [True]
    # The same again sends nothing but the manifest.
    assert send(plash, child, f"{registry.address}/has-app:1") == done and registry.sent() == []
    # What was not changed is the same image, of whatever name.
    assert inspect(plash, f"docker://{ref}", "--raw") == inspect(
        plash,
        f"docker://{registry.address}/other@" + send(plash, number, f"{registry.address}/other"),
        "--raw",
    )


def test_the_same_bytes_each_time(plash, oci_tools, host_tar):
    digests = set()
    for turn in range(2):
        number = plash("pull:tarfile", host_tar).id
        send(plash, number, f"oci:{plash.place}/{turn}:x")
        digests.add(inspect(plash, f"oci:{plash.place}/{turn}:x", "--raw")["layers"][0]["digest"])
    assert len(digests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_there_and_back(plash, oci_tools, host_tar, kind):
    """What twelve builds made comes back the same, layer by layer; umoci sees it too."""
    number = built(plash, plash("pull:tarfile", host_tar).id, 12, kind)
    send(plash, number, f"oci:{plash.place}/layout:x", f"--compression={kind}")
    assert inspect(plash, f"oci:{plash.place}/layout:x", "--raw")["layers"][5][
        "mediaType"
    ].endswith(kind)
    other = plash("pull:oci", f"oci:{plash.place}/layout:x").id
    assert tree(plash, other) == tree(plash, number) and int(other) == 2 * int(number)
    if kind == "gzip" and os.getuid() == 0:
        plash.run(["umoci", "unpack", "--image", f"{plash.place}/layout:x", "bundle"]).ok()
        assert tree_at(lambda words: plash.run(words).ok().out, "bundle/rootfs") == tree(
            plash, number
        )


def test_other_files_of_layers(plash, oci_tools, host_tar):
    """Times, extended attributes, hard links, names with odd bytes; a data directory with an odd name."""
    env = {"PLASH_DATA": f"{plash.place}/\\a\nb c"}
    number = plash("pull:tarfile", host_tar, env=env).id
    child = plash(
        "build",
        number,
        r"""mkdir /d; echo x >/d/a; ln /d/a /d/b; touch -d 1999-01-01 /d/a; touch "$(printf '/d/-x\\\n\377 *')" /d/-C
        chmod 1777 /d; touch -d 2001-01-01 /d; rm /etc/passwd; touch -d 2002-02-02 /etc""",
        env=env,
    ).id
    plash(
        "sudo",
        "setfattr",
        "-n",
        "user.mine",
        "-v",
        "1",
        plash("nodepath", child, env=env).out[:-1] + "/_data/root/d",
        env=env,
    ).ok()
    plash("push:oci", child, f"oci:{plash.place}/layout", env=env).ok()
    other = plash("pull:oci", f"oci:{plash.place}/layout", env=env).id
    seen = [
        plash(
            "mounted",
            each,
            "sh",
            "-c",
            r"find etc d -printf '%p %y %n %m %T@ %s\n'; getfattr -d d",
            env=env,
        )
        .ok()
        .out
        for each in (child, other)
    ]
    assert (
        seen[0] == seen[1]
        and "user.mine" in seen[0]
        and "/-C f" in seen[0]
        and "etc/passwd" not in seen[0]
    )


def test_notes_that_are_unsound_are_left_out(plash, oci_tools):
    (plash.place / "tree").mkdir()
    image = plash("pull:dir", "tree").id
    (plash.data / f"layer/0/{image}/_data/made.json").write_text('{"argv": [1], "created": "x"}')
    plash("push:oci", image, "oci:layout:x").ok()
    (entry,) = inspect(plash, "oci:layout:x", "--config")["history"]
    assert entry["created_by"] == "plash"


def test_a_name_that_no_layer_can_have(plash, oci_tools, image):
    number = plash("build", image, "touch /etc/.wh.x").id
    before = plash.snapshot()
    assert plash("push:oci", number, f"oci:{plash.place}/layout").error.endswith(
        "which is for whiteouts: etc/.wh.x"
    )
    assert plash.snapshot() == before and not (plash.place / "layout").exists()


@pytest.mark.parametrize(
    "words, status, error",
    [
        (["--compression=lz4", "{}", "oci:x"], 2, "gzip or zstd"),
        (["{}", "127.0.0.1:1/x"], 1, "skopeo: "),
        (["{}", "oci:"], 1, "skopeo: "),
        (["99", "oci:x"], 1, "no image: 99"),
        (["0", "oci:x"], 1, "image 0 is"),
        (["{}"], 2, "usage: "),
    ],
)
def test_what_can_not_be_sent(plash, oci_tools, image, words, status, error):
    before = plash.snapshot()
    done = plash(
        "push:oci",
        *(word.format(image) for word in words),
        cwd=plash.place,
        env={"XDG_RUNTIME_DIR": str(plash.place)},
    )
    assert done.status == status and error in done.error
    assert plash.snapshot() == before


def test_killed_in_the_middle(plash, oci_tools, image):
    need_program("pgrep")
    number = plash("build", image, "head -c 200000000 /dev/urandom > /big").id
    pushing = plash.start("push:oci", number, f"oci:{plash.place}/layout")
    wait_for(lambda: any(plash.data.glob(f"tmp/*/{number}")))
    assert "in use by process" in plash("rm", "--recursive", number).error
    pushing.send_signal(signal.SIGKILL)
    pushing.wait()
    wait_for(
        lambda: not subprocess.run(["pgrep", "-f", f"{plash.data}"], capture_output=True).stdout
    )
    plash.clean()
    assert plash.leftovers() == []


@pytest.mark.slow
@pytest.mark.only_for("root")
def test_podman_and_docker_run_it(plash, registry, host_tar, tmp_path_factory):
    """And each sees the tree that plash shows, of images that plash, docker and podman had a part in."""
    need_program("podman", "dockerd", "docker")
    number = built(plash, plash("pull:tarfile", host_tar).id, 20, "engines")
    name = f"{registry.address}/engines"
    send(plash, number, name)
    run = ["--rm", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", name]
    with (
        engines.podman(tmp_path_factory.mktemp("podman")) as podman,
        engines.docker(tmp_path_factory.mktemp("docker")) as docker,
    ):
        podman("pull", "--tls-verify=false", name)
        place = podman("image", "mount", name)
        assert tree_at(lambda words: plash.run(words).ok().out, place) == tree(plash, number)
        assert podman("run", *run, "sh", "-c", "cat /etc/passwd; echo $PATH").startswith("root:")
        docker("pull", name)
        lines = docker("run", *run, "find", "/t", "-printf", LISTED).splitlines()
        assert sorted(lines) == sorted(
            plash("run", number, "find", "/t", "-printf", LISTED).ok().out.splitlines()
        )
        # Their own layers on top of ours, ours on top of theirs.
        dockerfile = f"FROM {name}\nRUN rm -rf /t && mkdir /t && echo docker >/t/new && chmod 700 /t\nENV A=b\nCMD true\n"
        for engine, more in (
            (docker, ["--network=none"]),
            (podman, ["--network=host", "--format=oci", "--isolation=chroot"]),
        ):
            engine("build", *more, "--tag", f"{name}-built", "-", input=dockerfile.encode())
            engine("push", *(["--tls-verify=false"] if engine is podman else []), f"{name}-built")
            theirs = pull(plash, f"{name}-built").id
            assert (
                plash("run", theirs, "sh", "-c", "ls /t; cat /t/new; echo $A; stat -c %a /t")
                .ok()
                .out
                == "new\ndocker\nb\n700\n"
            )
            assert (
                plash("nodepath", theirs).out.count("/") - plash("nodepath", number).out.count("/")
                == 1
            )
            ours = plash("build", theirs, "echo plash >/t/mine").id
            send(plash, ours, f"{name}-ours")
            engine("pull", *(["--tls-verify=false"] if engine is podman else []), f"{name}-ours")
            out = engine(
                "run",
                "--rm",
                "--network=host",
                "--ulimit=nofile=1024:1024",
                "--ulimit=nproc=1024:1024",
                f"{name}-ours",
                "sh",
                "-c",
                "cat /t/new /t/mine; echo $A",
            )
            assert out == "docker\nplash\nb"


def test_layers_that_were_pulled_stay_as_they_were(plash, oci_tools):
    """Of twenty layers, uncompressed and compressed, each is sent as it came."""
    layers, _ = changes(20, 7)
    ref = write_layout(plash.place / "layout", layers)
    number = plash("pull:oci", ref).id
    assert send(plash, number, f"oci:{plash.place}/copy:latest")
    one, two = (inspect(plash, each, "--raw") for each in (ref, f"oci:{plash.place}/copy:latest"))
    assert one["layers"] == two["layers"] and one["config"] == two["config"]
    # A base that is the same as another's, with less on it.
    assert (
        plash(
            "pull:oci", write_layout(plash.place / "other", layers[:7], {"Labels": {"a": "b"}})
        ).id
        == "21"
    )
    assert send(plash, "21", f"oci:{plash.place}/copy21:latest")
    assert (
        inspect(plash, f"oci:{plash.place}/copy21:latest", "--raw")["layers"] == one["layers"][:7]
    )
    assert inspect(plash, f"oci:{plash.place}/copy21:latest", "--config")["config"] == {
        "Labels": {"a": "b"}
    }
    assert plash("push:oci", "3", f"oci:{plash.place}/three").ok()
