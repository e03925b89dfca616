"""OCI images for tests: layouts that are written by hand, and a real registry."""

import contextlib
import gzip
import hashlib
import io
import json
import platform
import random
import tarfile

import servers

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
LISTED = "%y %m %U:%G %P -> %l;\n"  # of find -printf


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
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": digest(content),
            "size": len(content),
        }

    described = {
        "architecture": MACHINE,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest(each) for each in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": add(json.dumps(described).encode(), "config.v1+json"),
        "layers": [add(gzip.compress(each, mtime=0), "layer.v1.tar+gzip") for each in layers],
    }
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
            if (
                tree.get(path, None) is None
                and content is not None
                or tree.get(path, b"") is not None
                and content is None
            ):
                drop(path)
            tree[path] = entries[path] = content

        for _ in range(12):
            path = "/".join(chance.choice("abcd") for _ in range(chance.randint(1, 2)))
            kind = chance.choice(
                ("file", "file", "link", "directory", "remove", "remove", "opaque")
            )
            covering = path + "/", path.split("/")[0] + "/.wh"
            if any(
                each == path or each.startswith(covering) or path.startswith(each + "/")
                for each in entries
            ):
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
    return sorted(
        f"{kinds[type(content)]} {path} {content if isinstance(content, str) else ''}".rstrip()
        for path, content in tree.items()
    )


BASE = [layer([("etc", None), ("etc/name", b"base")]), layer([("etc/two", b"2")])]


class Registry:
    """A real registry: its address is host:port."""

    def __init__(self, address, log):
        self.address, self._log, self._read = address, log, 0

    def _lines(self, *words):
        text = self._log.read_text()[self._read :]
        self._read += len(text)
        return [line for line in text.splitlines() if all(word in line for word in words)]

    def fetched(self):
        """The digests of what was fetched from it since the last call of a method here."""
        return [
            line.partition("/blobs/")[2].split()[0] for line in self._lines('"GET /v2/', "/blobs/")
        ]

    def sent(self):
        """The same of what was sent to it."""
        return [
            "sha256:" + line.partition("digest=sha256%3A")[2].split()[0]
            for line in self._lines('"PUT /v2/', "/blobs/uploads/")
        ]


@contextlib.contextmanager
def registry(place):
    """A Registry with its data in the directory place."""
    with servers.registry(place) as address:
        yield Registry(address, place / "log")


def push(plash, registry, name, layers, config=None):
    ref = write_layout(plash.place / f"layout-{name}", layers, config)
    plash.run(
        [
            "skopeo",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
            ref,
            f"docker://{registry.address}/{name}:latest",
        ],
        env={"XDG_RUNTIME_DIR": str(plash.place)},
    ).ok()
    registry.fetched()
    return f"{registry.address}/{name}"


def pull(plash, ref):
    # Where there is no XDG_RUNTIME_DIR, skopeo looks for credentials in a directory that may be root's alone.
    return plash("pull:oci", "--tls-verify=false", ref, env={"XDG_RUNTIME_DIR": str(plash.place)})


def tree(plash, number):
    """All that is in the image, with modes, owners and targets of links, and the contents of files."""
    listed = plash("mounted", number, "find", ".", "-printf", LISTED).ok().out
    return sorted(listed.splitlines()), plash(
        "mounted", number, "sh", "-c", "find . -type f | sort | xargs sha256sum"
    ).ok().out
