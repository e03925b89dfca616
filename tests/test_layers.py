"""Layers of OCI images that are odd or hostile: what becomes of them."""

import gzip
import io
import json
import os
import struct
import tarfile

import pytest
from layouts import BASE, digest, layer, pull, write_layout

D, F, L, H = tarfile.DIRTYPE, tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def made(*entries):
    """A tar of entries: a type, a name, and what is set of the tarfile.TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for kind, name, *rest in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o755 if kind == D else 0o644
            for key, value in (rest[0] if rest else {}).items():
                setattr(info, key, value)
            content = b"x" if kind == F else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def to(target):
    return {"linkname": target}


# Layers, and the lines that find lists of the tree.
CASES = {
    "a whiteout of nothing in a new directory": (
        [[(D, "a"), (F, "a/x")], [(D, "new"), (F, "new/.wh.ghost"), (F, "new/y")]],
        ["d 755 a", "f 644 a/x", "d 755 new", "f 644 new/y"],
    ),
    "a whiteout in an opaque directory": (
        [
            [(D, "a"), (F, "a/x"), (F, "a/z")],
            [(D, "a"), (F, "a/.wh..wh..opq"), (F, "a/.wh.x"), (F, "a/y")],
        ],
        ["d 755 a", "f 644 a/y"],
    ),
    "a whiteout in a directory that is made again": (
        [[(D, "a"), (F, "a/x")], [(F, ".wh.a"), (D, "a"), (F, "a/.wh.x"), (F, "a/y")]],
        ["d 755 a", "f 644 a/y"],
    ),
    "a whiteout in what is removed": (
        [[(D, "t"), (F, "t/t")], [(F, ".wh.t"), (F, "t/.wh.t")]],
        [],
    ),
    "an opaque root": (
        [[(D, "a"), (F, "a/x"), (F, "b")], [(F, ".wh..wh..opq"), (F, "c")]],
        ["f 644 c"],
    ),
    "parents without an entry": (
        [[(D, "./"), (D, "tmp", {"mode": 0o1777}), (F, "opt/x/y")], [(F, "tmp/y"), (F, "etc/q")]],
        [
            *("d 755 etc", "f 644 etc/q", "d 755 opt", "d 755 opt/x", "f 644 opt/x/y"),
            *("d 1777 tmp", "f 644 tmp/y"),
        ],
    ),
    "parents as in the layer below": (
        [[(D, "tmp", {"mode": 0o1777}), (D, "v", {"mode": 0o750}), (F, "v/1")], [(F, "v/2")]],
        ["d 1777 tmp", "d 750 v", "f 644 v/1", "f 644 v/2"],
    ),
    "an absolute link as a parent": (
        [[(D, "b"), (L, "a", to("/b")), (F, "a/x")]],
        ["l 777 a", "d 755 b", "f 644 b/x"],
    ),
    "a link upwards as a parent": (
        [[(D, "b"), (D, "c"), (L, "c/a", to("../b")), (F, "c/a/x")]],
        ["d 755 b", "f 644 b/x", "d 755 c", "l 777 c/a"],
    ),
    "a hard link through a link": (
        [[(D, "b"), (F, "b/f"), (L, "a", to("/b")), (H, "y", to("a/f"))]],
        ["l 777 a", "d 755 b", "f 644 b/f", "f 644 y"],
    ),
    "a directory for a link": (
        [[(D, "b"), (L, "a", to("/b")), (D, "a"), (F, "a/x")]],
        ["d 755 a", "f 644 a/x", "d 755 b"],
    ),
    "a name that leads upwards": (
        [[(D, "etc"), (F, "./../x/y")]],
        ["d 755 etc", "d 755 x", "f 644 x/y"],
    ),
    "a file for a directory": ([[(D, "a"), (F, "a/x"), (F, "a")]], ["f 644 a"]),
    "a whiteout that is a directory": ([[(D, "d"), (F, "d/old")], [(D, ".wh.d")]], []),
    "an xattr that is an order to overlayfs": (
        [
            [(D, "d"), (F, "d/x")],
            [
                (D, "d", {"pax_headers": {"SCHILY.xattr.trusted.overlay.opaque": "y"}}),
                (F, "d/y", {"pax_headers": {"SCHILY.xattr.user.overlay.whiteout": "y"}}),
            ],
        ],
        ["d 755 d", "f 644 d/x", "f 644 d/y"],
    ),
    "a device 0/0, which overlayfs takes for a whiteout": (
        [[(F, "f")], [(tarfile.CHRTYPE, "f"), (F, "g")]],
        ["f 644 f", "f 644 g"],
    ),
    "names of aufs": ([[(F, ".wh..wh.aufs"), (F, ".wh..wh.plnk/12.3"), (F, "f")]], ["f 644 f"]),
    "whiteouts of names that no file has": (
        [[(F, "f")], [(F, ".wh."), (F, ".wh.."), (F, ".wh..."), (F, "d/.wh...")]],
        ["f 644 f"],
    ),
    "a loop of links as a target": (
        [[(L, "a", to("b")), (L, "b", to("a")), (F, "c")]],
        ["l 777 a", "l 777 b", "f 644 c"],
    ),
}


def listed(plash, number):
    found = plash("mounted", number, "find", ".", "-mindepth", "1", "-printf", "%y %m %P\n").ok()
    return sorted(found.out.splitlines(), key=lambda line: line.split()[2])


@pytest.mark.parametrize("name", CASES)
def test_what_a_layer_means(plash, oci_tools, name):
    layers, right = CASES[name]
    ref = write_layout(plash.place / "layout", [made(*each) for each in layers])
    done = plash.run(["sh", "-c", f'umask 077; exec "$0" pull:oci {ref}', PLASH])
    number = done.out.strip()
    assert listed(plash, number) == right, done.err
    assert plash("mounted", number, "stat", "-c", "%a", ".").ok().out == "755\n"
    # What is exported can be: there is no name that is not there.
    assert plash("push:tarfile", number, "/dev/null").ok()


PLASH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin/plash")


def test_the_root_directory_is_as_in_the_layer_below(plash, oci_tools):
    layers = [made((D, "./", {"mode": 0o555}), (F, "x")), made((F, "y"))]
    number = plash("pull:oci", write_layout(plash.place / "layout", layers)).id
    assert plash("mounted", number, "stat", "-c", "%a", ".").ok().out == "555\n"


def test_a_layer_without_bytes_is_empty(plash, oci_tools):
    number = plash("pull:oci", write_layout(plash.place / "layout", [b"", *BASE])).id
    assert number == "3" and plash("mounted", "1", "ls", "-A").ok().out == ""


def test_hard_links_are_one_file(plash, oci_tools):
    layers = [made((D, "b"), (F, "b/f"), (L, "a", to("/b")), (H, "y", to("a/f")))]
    number = plash("pull:oci", write_layout(plash.place / "layout", layers)).id
    assert plash("mounted", number, "stat", "-c", "%h", "y", "b/f").ok().out == "2\n2\n"


def test_a_hard_link_to_a_file_of_the_layer_below(plash, oci_tools):
    """It is a copy, as overlayfs makes one; what comes later in the layer counts."""
    layers = [
        made((D, "d", {"mode": 0o700}), (F, "d/f", {"mode": 0o4711, "uid": 0, "mtime": 10**9})),
        made((F, "d/other")),
        made(
            *((H, "new/one", to("d/f")), (H, "two", to("new/one")), (H, "three", to("d/f"))),
            *((F, "three"), (H, "x/four", to("d/other")), (F, "x"), (F, ".wh.d")),
        ),
    ]
    ref = write_layout(plash.place / "layout", layers)
    number = plash("pull:oci", ref).id
    shape = ["find", ".", "-type", "f", "-printf", "%m %n %T@ %s %P\n"]
    assert sorted(plash("mounted", number, *shape).ok().out.splitlines()) == [
        *("4711 2 1000000000.0000000000 1 new/one", "4711 2 1000000000.0000000000 1 two"),
        *("644 1 0.0000000000 1 three", "644 1 0.0000000000 1 x"),
    ]


@pytest.mark.parametrize("target", ["none", "d/none", "d", "l"])
def test_a_hard_link_to_no_file(plash, oci_tools, target):
    plash("init").ok()
    before = plash.snapshot()
    layers = [made((D, "d"), (L, "l", to("d"))), made((H, "x", to(target)))]
    assert "a hard link" in plash("pull:oci", write_layout(plash.place / "a", layers)).error
    plash("rm", "1").ok()
    assert plash.snapshot() == before


def acl(uid):
    nobody = 0xFFFFFFFF
    entries = (1, 6, nobody), (2, 6, uid), (4, 4, nobody), (0x10, 6, nobody), (0x20, 4, nobody)
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


@pytest.mark.only_for("root", "subids")
@pytest.mark.parametrize("form", ["xattr", "text", "star"])
def test_acls_are_kept_in_numbers(plash, oci_tools, form):
    """Pulled in each form that tools write, pushed, and pulled again."""
    value = acl(1004).decode("utf-8", "surrogateescape")
    entries = "user::rw-,user:{},group::r--,mask::rw-,other::r--"
    headers = {
        "xattr": {"SCHILY.xattr.system.posix_acl_access": value},
        "text": {"SCHILY.acl.access": entries.format("1004:rw-")},
        "star": {"SCHILY.acl.access": entries.format("somebody:rw-:1004")},
    }[form]
    content = made((F, "a", {"pax_headers": headers, "mode": 0o664}))
    number = plash("pull:oci", write_layout(plash.place / "layout", [content])).id
    (plash.place / "own").mkdir()
    plash("sudo", "sh", "-c", "touch own/b; setfacl -m u:1005:r own/b").ok()
    child = plash("stack", number, plash.place / "own").id
    plash("push:oci", child, f"oci:{plash.place}/pushed:x").ok()
    env = {"PLASH_DATA": str(plash.place / "other")}
    again = plash("pull:oci", f"oci:{plash.place}/pushed:x", env=env).id
    for each, options in (child, None), (again, env):
        out = plash("mounted", each, "getfacl", "-n", "a", "b", env=options).ok().out
        assert "user:1004:rw-" in out and "user:1005:r--" in out


def test_a_sparse_file_stays_sparse(plash, oci_tools):
    (plash.place / "own").mkdir()
    plash("sudo", "truncate", "-s", "3G", "own/big").ok()
    number = plash("stack", "0", plash.place / "own").id
    plash("push:oci", number, f"oci:{plash.place}/pushed:x").ok()
    env = {"PLASH_DATA": str(plash.place / "other")}
    again = plash("pull:oci", f"oci:{plash.place}/pushed:x", env=env).id
    out = plash("mounted", again, "stat", "-c", "%s %b", "big", env=env).ok().out.split()
    assert out[0] == str(3 << 30) and int(out[1]) < 100


HOSTILE = {
    "names that lead out": [(F, "../../../../../../../..{}/f")],
    "an absolute name": [(F, "{}/f")],
    "a link that leads out": [(L, "l", to("{}")), (F, "l/f")],
    "a relative link that leads out": [(L, "l", to("../../../../../../..{}")), (F, "l/f")],
    "links that lead to links": [(L, "a", to("/")), (L, "b", to("a/..{}")), (F, "b/f")],
    "a link in place of a directory": [(D, "d"), (F, "d/x"), (L, "d", to("{}")), (F, "d/f")],
    "a file through a link": [(L, "f", to("{}/victim")), (F, "f")],
    "a hard link to a file outside": [(H, "f", to("{}/victim")), (F, "f")],
    "a hard link through a link": [(L, "l", to("{}")), (H, "f", to("l/victim"))],
    "a whiteout through a link": [(L, "l", to("{}")), (F, "l/.wh.victim")],
    "a whiteout that is a link": [(L, ".wh.x", to("{}")), (F, ".wh.x/f")],
    "an opaque mark through a link": [(L, "l", to("{}")), (F, "l/.wh..wh..opq")],
    "a directory's mode through a link": [(L, "l", to("{}")), (D, "l", {"mode": 0o777})],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_written_outside_of_the_root(plash, oci_tools, name):
    outside = plash.place / "outside"
    outside.mkdir(mode=0o700)
    (outside / "victim").write_text("victim")
    before = outside.stat().st_mode, outside.stat().st_mtime_ns

    def placed(entry):
        kind, path, *rest = entry
        rest = [
            {key: str(value).format(outside) for key, value in each.items()} if kind != D else each
            for each in rest
        ]
        return (kind, path.format(outside), *rest)

    bottom = made((D, "x"), (F, "x/f"))
    layers = [bottom, made(*map(placed, HOSTILE[name]))]
    plash("pull:oci", write_layout(plash.place / "layout", layers))
    assert os.listdir(outside) == ["victim"] and (outside / "victim").read_text() == "victim"
    assert (outside.stat().st_mode, outside.stat().st_mtime_ns) == before
    assert (outside / "victim").stat().st_nlink == 1


def nested(count):
    return made((D, "/".join(["d"] * count)), (F, "d/" * count + "f"))


def damaged():
    content = bytearray(layer([("a", b"1"), ("b", b"2")]))
    content[1024 + 5] ^= 0xFF
    return bytes(content)


def test_deep_directories(plash, oci_tools):
    number = plash("pull:oci", write_layout(plash.place / "layout", [nested(1100)])).id
    assert plash("mounted", number, "test", "-f", "d/" * 1100 + "f").ok()
    removed = made(*[(D, "d"), (F, "d")])
    ref = write_layout(plash.place / "other", [nested(1100), removed])
    assert listed(plash, plash("pull:oci", ref).id) == ["f 644 d"]


@pytest.mark.parametrize(
    "content, error",
    [
        (damaged(), "a layer is no sound tar archive"),
        (b"no tar at all" * 100, "a layer is no sound tar archive"),
        (made((F, "f"), (F, "f/g")), "Not a directory"),
        (made((L, "a", to("b")), (L, "b", to("a")), (F, "a/f")), "cannot unpack a layer: a/f: "),
        (made((H, "a", to("missing"))), "cannot unpack a layer: a hard link"),
        (made((F, "/".join(["d" * 200] * 30))), "File name too long"),
    ],
)
def test_a_layer_that_makes_no_sense(plash, oci_tools, content, error):
    plash("init").ok()
    before = plash.snapshot()
    assert error in plash("pull:oci", write_layout(plash.place / "layout", [content])).error
    assert plash.snapshot() == before


def manifest_of(place, change, config=None):
    """Change the manifest, and the configuration if given, of a layout; returns its reference."""
    index = json.loads((place / "index.json").read_text())
    blobs = place / "blobs/sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    if config is not None:
        (blobs / digest(config)[7:]).write_bytes(config)
        manifest["config"].update(digest=digest(config), size=len(config))
    change(manifest)
    content = json.dumps(manifest).encode()
    (blobs / digest(content)[7:]).write_bytes(content)
    index["manifests"][0].update(digest=digest(content), size=len(content))
    (place / "index.json").write_text(json.dumps(index))
    return f"oci:{place}:latest"


DIFF_IDS = json.dumps({"type": "layers", "diff_ids": [digest(each) for each in BASE]})
FEW = json.dumps({"rootfs": {"type": "layers", "diff_ids": [digest(BASE[0])]}})


@pytest.mark.parametrize(
    "change, config, error",
    [
        (lambda m: None, FEW, ""),
        (lambda m: None, '{"a":' * 3000 + "1" + "}" * 3000, ""),
        (lambda m: None, f'{{"x": 1e99999, "rootfs": {DIFF_IDS}}}', "no JSON object"),
        (lambda m: m["config"].update(mediaType="application/vnd.x.y"), None, "an artifact"),
        (lambda m: m.update(layers=m["layers"] * 300), None, ""),
    ],
)
def test_images_that_make_no_sense(plash, oci_tools, change, config, error):
    plash("init").ok()
    before = plash.snapshot()
    place = plash.place / "layout"
    write_layout(place, BASE)
    ref = manifest_of(place, change, config and config.encode())
    done = plash("pull:oci", ref)
    assert error in done.error and "internal" not in done.error
    assert plash.snapshot() == before


@pytest.mark.slow
def test_too_many_layers_are_told_before_anything_is_fetched(plash, oci_tools):
    plash("init").ok()
    before = plash.snapshot()
    layers = [layer([(f"f{number}", b"x")]) for number in range(600)]
    done = plash("pull:oci", write_layout(plash.place / "layout", layers))
    assert "has 600 layers" in done.error and "499" in done.error
    assert plash.snapshot() == before


@pytest.mark.parametrize("history", [[None], [1, {}], "x", {}])
def test_an_odd_history_does_not_stop_a_push(plash, oci_tools, history):
    place = plash.place / "layout"
    write_layout(place, BASE)
    config = {"architecture": "amd64", "os": "linux", "rootfs": json.loads(DIFF_IDS)}
    config = json.dumps({**config, "history": history, "config": {"Env": ["=8300", "A=b"]}})
    done = plash("pull:oci", manifest_of(place, lambda m: None, config.encode()))
    if done.status:
        assert done.error.startswith("plash pull:oci: ")  # skopeo refuses it
        return
    (plash.place / "own").mkdir()
    child = plash("stack", done.id, plash.place / "own").id
    assert plash("push:oci", child, f"oci:{plash.place}/pushed:x").ok()


def test_a_truncated_layer_does_not_poison_the_repaired_image(plash, oci_tools):
    place = plash.place / "layout"
    write_layout(place, BASE)
    short = gzip.compress(BASE[1], mtime=0)[:-20]

    def truncate(manifest):
        (place / "blobs/sha256" / digest(short)[7:]).write_bytes(short)
        manifest["layers"][1].update(digest=digest(short), size=len(short))

    good = (place / "index.json").read_text()
    ref = manifest_of(place, truncate)
    assert "cannot unpack" in plash("pull:oci", ref).error
    (place / "index.json").write_text(good)
    number = plash("pull:oci", ref).id
    assert plash("mounted", number, "cat", "etc/name", "etc/two").ok().out == "base2"


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_an_archive_from_stdin(plash, oci_tools, transport):
    source = write_layout(plash.place / "layout", BASE)
    ref = f"{transport}:{plash.place}/copy" + (":name:tag" if transport == "docker-archive" else "")
    plash.run(["skopeo", "copy", "--quiet", source, ref]).ok()
    content = (plash.place / "copy").read_bytes()
    number = plash("pull:oci", "-", input=content).id
    assert plash("mounted", number, "cat", "etc/name", "etc/two").ok().out == "base2"
    assert plash("pull:oci", "-", input=BASE[0]).error.endswith("imports a root filesystem)")
    assert "no sound tar" in plash("pull:oci", "-", input=b"x" * 9999).error


@pytest.mark.slow
def test_a_tag_beside_a_digest(plash, registry):
    from layouts import push

    ref = push(plash, registry, "pinned", BASE)
    env = {"XDG_RUNTIME_DIR": str(plash.place)}
    inspect = ["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{ref}:latest"]
    found = digest(plash.run(inspect, env=env).ok().out.encode())
    number = pull(plash, f"{ref}:latest@{found}").id
    assert pull(plash, ref).id == number == pull(plash, f"docker://{ref}@{found}").id


def test_an_image_for_several_platforms(plash, oci_tools):
    """In a registry or a layout, the one for --platform, or for this machine."""
    done = plash("pull:oci", "--platform=x", "oci:none")
    assert done.status == 1 and "OS/ARCH" in done.error


def test_a_second_push_packs_nothing(plash, oci_tools):
    (plash.place / "own").mkdir()
    (plash.place / "own/f").write_text("x")
    number = plash("stack", "0", plash.place / "own").id
    plash("push:oci", number, f"oci:{plash.place}/one:x").ok()
    node = plash("nodepath", number).out.strip()
    kept = json.loads(open(node + "/_data/descriptor.json", encoding="utf-8").read())
    with open(node + "/_data/layer", "rb") as file:
        assert digest(file.read()) == kept["digest"]
    plash("push:oci", number, f"oci:{plash.place}/two:x").ok()
    one, two = (plash.place / name / "index.json" for name in ("one", "two"))
    assert json.loads(one.read_text())["manifests"] == json.loads(two.read_text())["manifests"]
