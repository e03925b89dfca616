"""pull:oci: images for several platforms, tags that move, archives that engines save, and what is no image."""

import json
import os
import shutil

import engines
import pytest
from layouts import BASE, digest, layer, pull, push, write_layout
from requirements import need_program
from world import LIBEXEC

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def merge(place, parts):
    """A layout with an index, tagged latest, of images: pairs of a platform and layers."""
    described = []
    (place / "blobs/sha256").mkdir(parents=True)
    for number, (platform, layers) in enumerate(parts):
        part = place.with_name(f"{place.name}-{number}")
        write_layout(part, layers)
        entry = json.loads((part / "index.json").read_text())["manifests"][0]
        del entry["annotations"]
        names = ("os", "architecture", "variant")
        described.append({**entry, "platform": dict(zip(names, platform.split("/")))})
        for blob in (part / "blobs/sha256").iterdir():
            shutil.copy(blob, place / "blobs/sha256")
    kind = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": kind, "manifests": described}
    content = json.dumps(index).encode()
    (place / "blobs/sha256" / digest(content)[7:]).write_bytes(content)
    entry = {"mediaType": kind, "digest": digest(content), "size": len(content)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{place}:latest"


def copy(plash, source, target, *options):
    env = {"XDG_RUNTIME_DIR": str(plash.place)}
    plash.run(["skopeo", "copy", "--quiet", *options, source, target], env=env).ok()


PLATFORMS = ["linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "plan9/mips"]


@pytest.mark.parametrize("transport", ["oci", "docker"])
def test_platform_chooses(plash, registry, transport):
    parts = [(each, [*BASE, layer([("platform", each.encode())])]) for each in PLATFORMS]
    ref = merge(plash.place / "index", parts)
    if transport == "docker":
        source, ref = ref, f"docker://{registry.address}/platforms"
        copy(plash, source, ref, "--all", "--dest-tls-verify=false")

    def pulled(platform):
        env = {"XDG_RUNTIME_DIR": str(plash.place)}
        return plash("pull:oci", "--tls-verify=false", f"--platform={platform}", ref, env=env)

    for asked, found in [
        *((each, each) for each in PLATFORMS),
        *(("linux/arm64", "linux/arm64/v8"), ("linux/amd64/v3", "linux/amd64")),
    ]:
        number = pulled(asked).id
        assert plash("mounted", number, "cat", "platform").ok().out == found, asked
    # They share their base.
    assert len(plash("tree", "-q").ok().out.split()) == 2 + len(PLATFORMS)
    error = pulled("linux/s390x").error
    assert "no image for linux/s390x (there are: linux/amd64, linux/arm64/v8, " in error


def wrap_skopeo(plash, script):
    """The environment with a program before skopeo, which is then $SKOPEO."""
    (plash.place / "bin").mkdir()
    program = plash.place / "bin/skopeo"
    program.write_text(f"#!/bin/sh\nSKOPEO={shutil.which('skopeo')}\n{script}\n")
    program.chmod(0o755)
    return {
        "PATH": f"{plash.place}/bin:{os.environ['PATH']}",
        "XDG_RUNTIME_DIR": str(plash.place),
    }


@pytest.mark.parametrize("to_index", [False, True])
def test_a_tag_that_moves_meanwhile(plash, registry, to_index):
    """What the tag was at first is pulled, whatever it becomes after the first look."""
    name = f"moves-{int(to_index)}"
    ref = push(plash, registry, name, [*BASE, layer([("is", b"old")])], {"Env": ["IS=old"]})
    parts = [(each, [layer([("is", b"new")])]) for each in PLATFORMS]
    other = merge(plash.place / "b", parts) if to_index else write_layout(plash.place / "b", BASE)
    env = wrap_skopeo(
        plash,
        f"""
        "$SKOPEO" "$@"; status=$?
        if mkdir {plash.place}/moved 2>&-; then
            "$SKOPEO" copy --all --quiet --dest-tls-verify=false {other} docker://{ref}:latest >&2
        fi
        exit $status""",
    )
    number = plash("pull:oci", "--tls-verify=false", ref, env=env).id
    assert (plash.place / "moved").exists()
    assert plash("mounted", number, "cat", "is").ok().out == "old"
    node = plash("nodepath", number).out.strip()
    with open(node + "/_data/env", "rb") as file:
        assert file.read() == b"IS=old"
    assert pull(plash, ref).id != number


def changed(plash, change):
    """A layout of BASE whose manifest a function changed."""
    place = plash.place / "changed"
    write_layout(place, BASE)
    index = json.loads((place / "index.json").read_text())
    blobs = place / "blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    change(manifest, blobs)
    content = json.dumps(manifest).encode()
    (blobs / digest(content)[7:]).write_bytes(content)
    index["manifests"][0].update(digest=digest(content), size=len(content))
    (place / "index.json").write_text(json.dumps(index))
    return f"oci:{place}:latest"


def refused(plash, ref):
    """The error of a pull, which leaves the store as it was."""
    plash("init").ok()
    before = plash.snapshot()
    error = plash("pull:oci", ref).error
    assert plash.snapshot() == before
    return error


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ],
)
def test_a_layer_that_is_elsewhere(plash, oci_tools, kind):
    def change(manifest, blobs):
        one = manifest["layers"][1]
        (blobs / one["digest"][7:]).unlink()
        one.update(mediaType=kind, urls=["http://127.0.0.1:1/layer"])

    assert "not in the registry, but elsewhere" in refused(plash, changed(plash, change))


def test_a_manifest_of_schema_1(plash, oci_tools):
    place = plash.place / "schema1"
    place.mkdir()
    history = {"v1Compatibility": json.dumps({"id": "a" * 64, "os": "linux"})}
    manifest = {
        "schemaVersion": 1,
        "name": "x",
        "tag": "latest",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": digest(BASE[0])}],
        "history": [history],
    }
    (place / "manifest.json").write_text(json.dumps(manifest))
    (place / "version").write_text("Directory Transport Version: 1.1\n")
    (place / digest(BASE[0])[7:]).write_bytes(BASE[0])
    assert "of schema 1, which is obsolete" in refused(plash, f"dir:{place}")


@pytest.mark.parametrize("at_top", [True, False])
def test_an_artifact_that_is_no_image(plash, oci_tools, at_top):
    """As helm, cosign and oras make them: with a configuration of another type, or an empty one."""

    def change(manifest, blobs):
        (blobs / digest(b"{}")[7:]).write_bytes(b"{}")
        manifest["config"] = {
            "mediaType": "application/vnd.oci.empty.v1+json" if at_top else "application/vnd.x.y",
            "digest": digest(b"{}"),
            "size": 2,
        }
        if at_top:
            manifest["artifactType"] = "application/vnd.x.y"

    error = refused(plash, changed(plash, change))
    assert error.endswith("not an image, but an artifact of the type application/vnd.x.y")


@pytest.mark.only_for("plain")
def test_without_a_runtime_directory_of_ones_own(plash, registry):
    """Where root ran `skopeo login`, nobody else can look into skopeo's default directory."""
    ref = push(plash, registry, "no-runtime", BASE)
    script = """
        mount -t tmpfs none /run && mkdir -m 0 /run/containers && unset XDG_RUNTIME_DIR || exit 9
        # In a user namespace below, the capabilities for this directory are gone.
        exec unshare --user --map-user=1000 --map-group=1000 -- "$@" """
    words = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "-"]
    inspect = ["skopeo", "inspect", "--tls-verify=false", f"docker://{ref}"]
    assert "permission denied" in plash.run([*words, *inspect]).err
    pulling = [LIBEXEC / "plash-pull:oci", "--tls-verify=false", ref]
    number = plash.run([*words, *pulling]).id
    assert plash("mounted", number, "cat", "etc/name").ok().out == "base"


@pytest.mark.slow
@pytest.mark.only_for("root")
def test_what_podman_and_docker_save(plash, oci_tools, tmp_path_factory):
    """Read from stdin: their own archives."""
    need_program("podman", "docker", "dockerd")
    source = write_layout(plash.place / "layout", BASE, {"Env": ["A=b"]})
    saved = {}
    with engines.podman(tmp_path_factory.mktemp("podman")) as podman:
        name = podman("pull", "--quiet", source).splitlines()[-1]
        for form in "docker-archive", "oci-archive":
            podman("save", "--quiet", f"--format={form}", "-o", plash.place / form, name)
            saved["podman " + form] = (plash.place / form).read_bytes()
    with engines.docker(tmp_path_factory.mktemp("docker")) as docker:
        docker("load", input=saved["podman docker-archive"])
        number = docker("images", "--quiet")
        docker("save", "-o", plash.place / "docker", number)
        saved["docker"] = (plash.place / "docker").read_bytes()
    for kind, content in saved.items():
        number = plash("pull:oci", "-", input=content).id
        assert plash("mounted", number, "cat", "etc/name", "etc/two").ok().out == "base2", kind
        node = plash("nodepath", number).out.strip()
        with open(node + "/_data/env", "rb") as file:
            assert b"A=b" in file.read().split(b"\0"), kind
