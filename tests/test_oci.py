"""pull:oci, with a real registry; umoci is the independent reader."""
import gzip
import hashlib
import io
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import tarfile

import pytest
import servers
from conftest import LIBEXEC, need_program, wait_for

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def layer(entries):
    """A tar of entries: pairs of a path and a file's bytes, None for a directory, or a link's target as str."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for path, content in entries:
            info = tarfile.TarInfo(path)
            info.mode = 0o644
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return made.getvalue()


def write_layout(place, layers, config=None, diff_ids=None):
    """An OCI layout with one image, tagged latest, of layers, which are tars."""
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(content, kind):
        (blobs / digest(content)[7:]).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest(content), "size": len(content)}
    described = {"architecture": MACHINE, "os": "linux", "config": config or {},
                 "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(each) for each in layers]}}
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": add(json.dumps(described).encode(), "config.v1+json"),
                "layers": [add(gzip.compress(each, mtime=0), "layer.v1.tar+gzip") for each in layers]}
    entry = add(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return f"oci:{place}:latest"


def changes(number, seed):
    """Layers that add, change, remove, replace and bring back files and directories, and the tree that comes of them."""
    chance, tree, layers = random.Random(seed), {}, []
    for turn in range(number):
        entries = {}

        def drop(path):
            for each in [each for each in tree if each == path or each.startswith(path + "/")]:
                del tree[each]

        def put(path, content, entries=entries):
            for parent in (path.rpartition("/")[0], path.split("/")[0]):
                if parent and parent != path and tree.get(parent, b"") is not None:
                    drop(parent)
                    tree[parent] = entries[parent] = None
            if tree.get(path, None) is None and content is not None or tree.get(path, b"") is not None and content is None:
                drop(path)
            tree[path] = entries[path] = content
        for _ in range(12):
            path = "/".join(chance.choice("abcd") for _ in range(chance.randint(1, 2)))
            kind = chance.choice(("file", "file", "link", "directory", "remove", "remove", "opaque"))
            covering = path + "/", path.split("/")[0] + "/.wh"
            if any(each == path or each.startswith(covering) or path.startswith(each + "/") for each in entries):
                continue
            parent, _, name = path.rpartition("/")
            hidden = f"{parent}/.wh.{name}" if parent else f".wh.{name}"
            if kind == "remove" and path in tree:
                drop(path)
                entries[hidden] = b""
            elif kind == "opaque" and tree.get(path, b"") is None:
                drop(path)
                tree[path] = entries[path] = None
                entries[path + "/.wh..wh..opq"] = b""
                tree[path + "/new"] = entries[path + "/new"] = b"%d" % turn
            elif kind == "file":
                put(path, b"%d" % turn)
            elif kind == "link":
                put(path, f"target{turn}")
            elif kind == "directory":
                put(path, None)
        layers.append(layer(sorted(entries.items())))
    return layers, tree


def seen(lines):
    """A tree as `find -printf '%y %P %l'` lists it, without the contents."""
    return sorted(line.rstrip() for line in lines.splitlines() if line.strip() != "d")


def expected(tree):
    kinds = {type(None): "d", bytes: "f", str: "l"}
    return sorted(f"{kinds[type(content)]} {path} {content if isinstance(content, str) else ''}".rstrip()
                  for path, content in tree.items())


@pytest.fixture(scope="module")
def tools():
    need_program("skopeo", "umoci")


@pytest.mark.parametrize("seed", range(4))
def test_a_tree_of_twenty_layers(plash, tools, seed):
    layers, tree = changes(20, seed)
    ref = write_layout(plash.place / "layout", layers)
    number = plash("pull:oci", ref).id
    assert number == "20"
    assert seen(plash("mounted", number, "find", ".", "-printf", "%y %P %l\n").ok().out) == expected(tree)
    contents = plash("mounted", number, "sh", "-c", "find . -type f | sort | while read f; do cat $f; echo; done").ok().out
    assert contents.split() == [content.decode() for path, content in sorted((("./" + path, content) for path, content in tree.items()))
                                if isinstance(content, bytes)]
    rootless = [] if os.getuid() == 0 else ["--rootless"]
    plash.run(["umoci", "unpack", *rootless, "--image", ref[4:], "bundle"]).ok()
    assert seen(plash.run(["find", ".", "-printf", "%y %P %l\n"], cwd=plash.place / "bundle/rootfs").ok().out) == expected(tree)


BASE = [layer([("etc", None), ("etc/name", b"base")]), layer([("etc/two", b"2")])]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A registry of its own: its host:port, and a function that lists the layers fetched from it since the last call."""
    need_program("docker-registry", "skopeo")
    place, read = tmp_path_factory.mktemp("registry"), 0

    def fetched():
        nonlocal read
        text = (place / "log").read_text()[read:]
        read += len(text)
        return {line.partition("/blobs/")[2].split()[0] for line in text.splitlines() if '"GET /v2/' in line and "/blobs/" in line}
    with servers.registry(place) as address:
        yield address, fetched


def push(plash, registry, name, layers, config=None):
    ref = write_layout(plash.place / f"layout-{name}", layers, config)
    plash.run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", ref, f"docker://{registry[0]}/{name}:latest"],
              env={"XDG_RUNTIME_DIR": str(plash.place)}).ok()
    registry[1]()
    return f"{registry[0]}/{name}"


def pull(plash, ref):
    # Where there is no XDG_RUNTIME_DIR, skopeo looks for credentials in a directory that may be root's alone.
    return plash("pull:oci", "--tls-verify=false", ref, env={"XDG_RUNTIME_DIR": str(plash.place)})


def test_from_a_registry_only_what_is_new(plash, registry):
    app = [*BASE, layer([("app", b"app")])]
    base_ref, app_ref = push(plash, registry, "base", BASE), push(plash, registry, "app", app)
    base = pull(plash, base_ref).id
    assert {digest(gzip.compress(each, mtime=0)) for each in BASE} <= registry[1]()
    number = pull(plash, app_ref).id
    assert len(registry[1]() & {digest(gzip.compress(each, mtime=0)) for each in app}) == 1
    assert plash("parent", number).ok().out == f"{base}\n"
    assert pull(plash, app_ref).id == number and pull(plash, base_ref).id == base
    assert not registry[1]() & {digest(gzip.compress(each, mtime=0)) for each in app}
    assert plash("mounted", number, "cat", "etc/name", "etc/two", "app").ok().out == "base2app"
    plash("rm", number).ok()
    assert pull(plash, app_ref).id > number


def test_the_environment_of_the_image(plash, host_tar):
    with open(host_tar, "rb") as file:
        layers = [file.read()]
    ref = write_layout(plash.place / "layout", layers, {"Env": ["PATH=/mine:/usr/bin:/bin", "A=a = b", "TERM=image", "EMPTY=", "NOTHING"]})
    number = plash("pull:oci", ref).id

    def run(image, *options, **env):
        out = plash("run", *options, image, "sh", "-c", 'echo "$PATH|$A|$TERM|${EMPTY-unset}"', env={"TERM": "host", **env}).ok().out
        return out.rstrip("\n")
    assert run(number) == "/mine:/usr/bin:/bin|a = b|host|"
    child = plash("build", number, 'test "$A" = "a = b" && touch /x').id
    assert run(child, "-e", "A=c") == "/mine:/usr/bin:/bin|c|host|"
    # Other variables with the same layers are another image on them.
    other = plash("pull:oci", write_layout(plash.place / "other", layers, {"Env": ["A=other"]})).id
    assert other not in (number, child) and run(other).split("|")[1] == "other" and run(number).split("|")[1] == "a = b"
    assert plash("pull:oci", ref).id == number


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "dir"])
def test_other_transports(plash, tools, transport):
    source = write_layout(plash.place / "layout", BASE)
    ref = f"{transport}:{plash.place}/copy" + (":name:tag" if transport == "docker-archive" else "")
    plash.run(["skopeo", "copy", "--quiet", source, ref]).ok()
    number = plash("pull:oci", ref).id
    assert plash("mounted", number, "cat", "etc/name", "etc/two").ok().out == "base2"
    # It is the same image, wherever it comes from.
    assert plash("pull:oci", source).ok() and len(plash("tree", "-q").ok().out.split()) in (2, 3)


def test_whiteouts_of_nothing(plash, tools):
    layers = [*BASE, layer([("etc/.wh.", b""), ("etc/.wh..", b""), ("etc/.wh...", b""), ("etc/.wh..wh.plnk", b""), (".wh.none", b"")])]
    number = plash("pull:oci", write_layout(plash.place / "layout", layers)).id
    assert plash("mounted", number, "sh", "-c", "ls -A . etc").ok().out.split() == [".:", "etc", "etc:", "name", "two"]


def test_an_image_without_layers(plash, tools):
    number = plash("pull:oci", write_layout(plash.place / "layout", [])).id
    assert plash("mounted", number, "ls", "-A").ok().out == ""


def test_a_layer_that_is_not_what_it_is_said_to_be(plash, tools):
    """Else an image could pose as the base of others."""
    plash("init").ok()
    before = plash.snapshot()
    ref = write_layout(plash.place / "layout", BASE, diff_ids=[digest(BASE[0]), "sha256:" + "0" * 64])
    assert "and the image's configuration says sha256:000" in plash("pull:oci", ref).error
    plash("rm", "1").ok()
    plash.clean()
    assert plash.snapshot() == before


@pytest.mark.parametrize("ref, error", [
    ("oci:/nonexistent:x", "plash pull:oci: skopeo: "), ("127.0.0.1:1/x", "plash pull:oci: skopeo: "), ("", "plash pull:oci: skopeo: ")])
def test_no_such_image(plash, tools, ref, error):
    assert plash("pull:oci", ref).error.startswith(error)


def test_no_skopeo(plash):
    bare = plash.place / "bare"
    bare.mkdir()
    for name in "env", "python3":
        (bare / name).symlink_to(shutil.which(name))
    done = plash.run([LIBEXEC / "plash-pull:oci", "x"], env={"PATH": str(bare)})
    assert done.error == "plash pull:oci: install skopeo, which speaks with registries"


def test_two_at_once_share_the_work(plash, tools):
    layers, _ = changes(8, 1)
    ref = write_layout(plash.place / "layout", layers)
    both = [plash.start("pull:oci", ref) for _ in range(4)]
    assert {process.communicate()[0] for process in both} == {b"8\n"}
    assert len(plash("tree", "-q").ok().out.split()) == 8


def test_killed_in_the_middle_the_next_goes_on(plash, tools):
    big = layer([("big", os.urandom(1 << 24)), *((f"f{number}", b"x") for number in range(5000))])
    ref = write_layout(plash.place / "layout", [*BASE, big])
    pulling = plash.start("pull:oci", ref)
    wait_for(lambda: any(plash.data.glob("tmp/*/root/big")))
    pulling.send_signal(signal.SIGKILL)
    pulling.wait()
    plash("tree").ok()
    number = plash("pull:oci", ref).id
    assert plash("mounted", number, "sh", "-c", "ls | wc -l; stat -c %s big").ok().out.split() == ["5002", str(1 << 24)]
    wait_for(lambda: not subprocess.run(["pgrep", "-f", f"{plash.data}"], capture_output=True).stdout)
    plash.clean()
