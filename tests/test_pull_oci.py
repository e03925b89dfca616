"""pull:oci, with a real registry; umoci is the independent reader."""

import gzip
import json
import os
import shutil
import signal
import subprocess

import pytest
from layouts import BASE, changes, digest, expected, layer, pull, push, seen, write_layout
from requirements import need_program
from world import LIBEXEC, wait_for


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_of_twenty_layers(plash, oci_tools, seed):
    layers, tree = changes(20, seed)
    ref = write_layout(plash.place / "layout", layers)
    number = plash("pull:oci", ref).id
    assert number == "20"
    assert seen(
        plash("mounted", number, "find", ".", "-printf", "%y %P %l\n").ok().out
    ) == expected(tree)
    contents = (
        plash(
            "mounted",
            number,
            "sh",
            "-c",
            "find . -type f | sort | while read f; do cat $f; echo; done",
        )
        .ok()
        .out
    )
    assert contents.split() == [
        content.decode()
        for path, content in sorted((("./" + path, content) for path, content in tree.items()))
        if isinstance(content, bytes)
    ]
    rootless = [] if os.getuid() == 0 else ["--rootless"]
    plash.run(["umoci", "unpack", *rootless, "--image", ref[4:], "bundle"]).ok()
    assert seen(
        plash.run(["find", ".", "-printf", "%y %P %l\n"], cwd=plash.place / "bundle/rootfs")
        .ok()
        .out
    ) == expected(tree)


def test_from_a_registry_only_what_is_new(plash, registry):
    app = [*BASE, layer([("app", b"app")])]
    base_ref, app_ref = push(plash, registry, "base", BASE), push(plash, registry, "app", app)
    base = pull(plash, base_ref).id
    assert {digest(gzip.compress(each, mtime=0)) for each in BASE} <= set(registry.fetched())
    number = pull(plash, app_ref).id
    assert (
        len(set(registry.fetched()) & {digest(gzip.compress(each, mtime=0)) for each in app}) == 1
    )
    assert plash("parent", number).ok().out == f"{base}\n"
    assert pull(plash, app_ref).id == number and pull(plash, base_ref).id == base
    assert not set(registry.fetched()) & {digest(gzip.compress(each, mtime=0)) for each in app}
    assert plash("mounted", number, "cat", "etc/name", "etc/two", "app").ok().out == "base2app"
    plash("rm", "--recursive", number).ok()
    assert pull(plash, app_ref).id > number


@pytest.mark.slow
def test_the_environment_of_the_image(plash, oci_tools, host_tar):
    with open(host_tar, "rb") as file:
        layers = [file.read()]
    ref = write_layout(
        plash.place / "layout",
        layers,
        {"Env": ["PATH=/mine:/usr/bin:/bin", "A=a = b", "TERM=image", "EMPTY=", "NOTHING"]},
    )
    number = plash("pull:oci", ref).id

    def run(image, *options, **env):
        out = (
            plash(
                "run",
                *options,
                image,
                "sh",
                "-c",
                'echo "$PATH|$A|$TERM|${EMPTY-unset}"',
                env={"TERM": "host", **env},
            )
            .ok()
            .out
        )
        return out.rstrip("\n")

    assert run(number) == "/mine:/usr/bin:/bin|a = b|host|"
    child = plash("build", number, 'test "$A" = "a = b" && touch /x').id
    assert run(child, "-e", "A=c") == "/mine:/usr/bin:/bin|c|host|"
    # Other variables with the same layers are another image on them.
    other = plash("pull:oci", write_layout(plash.place / "other", layers, {"Env": ["A=other"]})).id
    assert (
        other not in (number, child)
        and run(other).split("|")[1] == "other"
        and run(number).split("|")[1] == "a = b"
    )
    assert plash("pull:oci", ref).id == number


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "dir"])
def test_other_transports(plash, oci_tools, transport):
    source = write_layout(plash.place / "layout", BASE)
    ref = f"{transport}:{plash.place}/copy" + (":name:tag" if transport == "docker-archive" else "")
    plash.run(["skopeo", "copy", "--quiet", source, ref]).ok()
    number = plash("pull:oci", ref).id
    assert plash("mounted", number, "cat", "etc/name", "etc/two").ok().out == "base2"
    # It is the same image, wherever it comes from.
    assert plash("pull:oci", source).ok() and len(plash("tree", "-q").ok().out.split()) in (2, 3)


def test_whiteouts_of_nothing(plash, oci_tools):
    layers = [
        *BASE,
        layer(
            [
                ("etc/.wh.", b""),
                ("etc/.wh..", b""),
                ("etc/.wh...", b""),
                ("etc/.wh..wh.plnk", b""),
                (".wh.none", b""),
            ]
        ),
    ]
    number = plash("pull:oci", write_layout(plash.place / "layout", layers)).id
    assert plash("mounted", number, "sh", "-c", "ls -A . etc").ok().out.split() == [
        ".:",
        "etc",
        "etc:",
        "name",
        "two",
    ]


def test_an_image_without_layers(plash, oci_tools):
    number = plash("pull:oci", write_layout(plash.place / "layout", [])).id
    assert plash("mounted", number, "ls", "-A").ok().out == ""


def test_a_layer_that_is_not_what_it_is_said_to_be(plash, oci_tools):
    """Else an image could pose as the base of others."""
    plash("init").ok()
    before = plash.snapshot()
    ref = write_layout(
        plash.place / "layout", BASE, diff_ids=[digest(BASE[0]), "sha256:" + "0" * 64]
    )
    assert "and the image's configuration says sha256:000" in plash("pull:oci", ref).error
    plash("rm", "--recursive", "1").ok()
    assert plash.snapshot() == before


def pull_with(plash, config):
    """Pull BASE by a program that hands over another configuration than skopeo would."""
    ref = write_layout(plash.place / "layout", BASE)
    (plash.place / "config").write_text(json.dumps(config))
    (plash.place / "bin").mkdir()
    (plash.place / "bin/skopeo").write_text(
        f'#!/bin/sh\ncase "$*" in *--config*) exec cat {plash.place}/config;; *) exec {shutil.which("skopeo")} "$@";; esac\n'
    )
    (plash.place / "bin/skopeo").chmod(0o755)
    return plash("pull:oci", ref, env={"PATH": f"{plash.place}/bin:{os.environ['PATH']}"})


@pytest.mark.parametrize(
    "config, error",
    [
        ([], "no JSON object"),
        ({}, "lists no layers"),
        ({"rootfs": 5}, "lists no layers"),
        ({"rootfs": {"diff_ids": [1]}}, "lists no layers"),
        ({"rootfs": {"diff_ids": [digest(BASE[0])]}}, "lists 2 layers, and its configuration 1"),
    ],
)
def test_a_configuration_that_makes_no_sense(plash, oci_tools, config, error):
    plash("init").ok()
    before = plash.snapshot()
    assert error in pull_with(plash, config).error
    plash("clean").ok()
    assert plash.snapshot() == before


@pytest.mark.parametrize(
    "config, env",
    [
        (5, None),
        ({"Env": 5}, None),
        ({"Env": "A=b"}, None),
        ({"Env": [5, None, "X=\ud800", "A=\0B=c", "GOOD=yes"]}, "X=?\0GOOD=yes"),
    ],
)
def test_an_environment_that_makes_no_sense(plash, oci_tools, config, env):
    """What of it can be followed is."""
    number = pull_with(
        plash, {"rootfs": {"diff_ids": [digest(each) for each in BASE]}, "config": config}
    ).id
    file = plash.data / f"layer/0/1/{number}/_data/env"
    assert (file.read_text() if file.exists() else None) == env


@pytest.mark.parametrize(
    "ref, error",
    [
        ("oci:/nonexistent:x", "plash pull:oci: skopeo: "),
        ("127.0.0.1:1/x", "plash pull:oci: skopeo: "),
        ("", "plash pull:oci: skopeo: "),
    ],
)
def test_no_such_image(plash, oci_tools, ref, error):
    assert plash("pull:oci", ref).error.startswith(error)


def test_no_skopeo(plash):
    bare = plash.place / "bare"
    bare.mkdir()
    for name in "env", "python3":
        (bare / name).symlink_to(shutil.which(name))
    done = plash.run([LIBEXEC / "plash-pull:oci", "x"], env={"PATH": str(bare)})
    assert done.error == "plash pull:oci: skopeo is not installed (needed for registries)"


def test_two_at_once_share_the_work(plash, oci_tools):
    layers, _ = changes(8, 1)
    ref = write_layout(plash.place / "layout", layers)
    both = [plash.start("pull:oci", ref) for _ in range(4)]
    assert {process.communicate()[0] for process in both} == {b"8\n"}
    assert len(plash("tree", "-q").ok().out.split()) == 8


@pytest.mark.slow
def test_killed_in_the_middle_the_next_goes_on(plash, oci_tools):
    need_program("pgrep")
    big = layer([("big", os.urandom(1 << 24)), *((f"f{number}", b"x") for number in range(5000))])
    ref = write_layout(plash.place / "layout", [*BASE, big])
    pulling = plash.start("pull:oci", ref)
    wait_for(lambda: any(plash.data.glob("tmp/*/root/big")))
    pulling.send_signal(signal.SIGKILL)
    pulling.wait()
    plash("tree").ok()
    number = plash("pull:oci", ref).id
    assert plash("mounted", number, "sh", "-c", "ls | wc -l; stat -c %s big").ok().out.split() == [
        "5002",
        str(1 << 24),
    ]
    wait_for(
        lambda: not subprocess.run(["pgrep", "-f", f"{plash.data}"], capture_output=True).stdout
    )
    plash.clean()
