"""Random stacks of image layers, and the tree that each is, by a model of the OCI image specification.

As a program it prints the tree in its working directory, in the form of the model, as JSON.
"""

import hashlib
import io
import json
import os
import random
import stat
import struct
import sys
import tarfile

NAMES = ["a", "b", "c", "d e", "ü", "x\ny"]
MODES = [0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0o700, 0o444]
HOLE = 3 << 16


def acl(uid, mode):
    entries = (
        *((1, mode >> 6 & 7, 0xFFFFFFFF), (2, 5, uid), (4, 4, 0xFFFFFFFF)),
        *((0x10, mode >> 3 & 7, 0xFFFFFFFF), (0x20, mode & 7, 0xFFFFFFFF)),
    )
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)


class Node:
    """A file of the model; hard links share it. One that has no entry of its own is implied."""

    def __init__(self, kind, mode, uid, gid, data=b"", target="", xattrs=None, mtime=None):
        self.kind, self.mode, self.uid, self.gid = kind, mode, uid, gid
        self.data, self.target, self.xattrs, self.mtime = data, target, xattrs or {}, mtime
        self.implied = False


def implied():
    node = Node("d", 0o755, 0, 0)
    node.implied = True
    return node


def below(tree, path):
    return [each for each in tree if each == path or path == "" or each.startswith(path + "/")]


class Layer:
    """Entries of one layer, and what they are by themselves: a tree, and what it hides."""

    def __init__(self, lower, duplicates, whiteouts_first):
        self.lower, self.entries, self.tree = lower, [], {"": implied()}
        self.named = None if duplicates else set()
        self.whiteouts_first = whiteouts_first
        self.whiteouts, self.opaque = set(), set()

    def resolve(self, path):
        """Where a directory's path leads, links in this layer followed inside the root; None if nowhere."""
        found, left, turns = "", path.split("/") if path else [], 0
        while left:
            part = left.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                found = found.rpartition("/")[0]
                continue
            one = f"{found}/{part}".lstrip("/")
            node = self.tree.get(one)
            if node and node.kind == "l":
                turns += 1
                if turns > 8:
                    return None
                left = node.target.split("/") + left
                found = "" if node.target.startswith("/") else found
                continue
            if node and node.kind != "d":
                return None
            # What only the layer below has for a file or a link, tools read in two ways.
            if not node and self.lower.get(one, node) is not None and self.lower[one].kind != "d":
                return None
            found = one
        return found

    def parent(self, path):
        """Where the parent of a new entry's path is; None if there can be no such entry."""
        if self.named is not None:
            if path in self.named:
                return None
            self.named.add(path)
        return self.resolve(path.rpartition("/")[0])

    def imply(self, directory):
        parts = directory.split("/") if directory else []
        for depth in range(1, len(parts) + 1):
            self.tree.setdefault("/".join(parts[:depth]), implied())

    def add(self, path, node, header, content=b""):
        directory = self.parent(path)
        if directory is None:
            return
        self.imply(directory)
        real = f"{directory}/{path.rpartition('/')[2]}".lstrip("/")
        old = self.tree.get(real)
        if self.whiteouts_first and node.kind == "d" and old and old.kind != "d":
            return  # umoci has removed a directory of the layer below by then
        if old and not (node.kind == old.kind == "d"):
            for each in below(self.tree, real):
                del self.tree[each]
        self.tree[real] = node
        self.entries.append((path, header, content))

    def link(self, path, source):
        directory, origin = self.parent(path), self.resolve(source.rpartition("/")[0])
        if directory is None or origin is None:
            return
        origin = f"{origin}/{source.rpartition('/')[2]}".lstrip("/")
        real = f"{directory}/{path.rpartition('/')[2]}".lstrip("/")
        old = self.tree.get(real)
        if origin not in self.tree or self.tree[origin].kind != "f" or old and old.kind == "d":
            return
        if real == origin:
            return
        self.imply(directory)
        node = self.tree[real] = self.tree[origin]
        # podman gives the file what the link's entry says; all that write archives say the same.
        same = {name: getattr(node, name) for name in ("mode", "uid", "gid", "mtime")}
        self.entries.append((path, {**same, "type": tarfile.LNKTYPE, "linkname": source}, b""))

    def is_hidden_twice(self, path):
        """Whether a whiteout would be in what another removes, which tools read in order."""
        return self.whiteouts_first and any(
            (one + "/").startswith((other + "/").lstrip("/"))
            for each in self.whiteouts | self.opaque
            for one, other in ((each, path), (path, each))
        )

    def hide(self, path):
        if self.is_hidden_twice(path):
            return
        known = self.tree.get(path)
        if known and known.implied:
            return  # umoci has its attributes from the directory that is removed
        if self.named is not None and path not in self.lower:
            return  # podman makes directories for whiteouts of nothing
        directory, name = self.parent(path), path.rpartition("/")[2]
        if directory is not None and directory == path.rpartition("/")[0] and path:
            self.whiteouts.add(path)
            self.entries.append((f"{directory}/.wh.{name}".lstrip("/"), {}, b""))

    def hide_all(self, path):
        if self.is_hidden_twice(path):
            return
        lower = self.lower.get(path)
        if self.whiteouts_first and lower and lower.kind != "d":
            return  # umoci follows a link of the layer below
        if self.resolve(path) == path and (path in self.tree or lower):
            self.opaque.add(path)
            self.entries.append((f"{path}/.wh..wh..opq".lstrip("/"), {}, b""))

    def merged(self):
        tree = dict(self.lower)
        for path in self.opaque:
            for each in below(self.lower, path):
                if each != path:
                    tree.pop(each, None)
        for path in self.whiteouts:
            for each in below(self.lower, path):
                tree.pop(each, None)
        for path, node in sorted(self.tree.items()):
            if node.implied and path in tree and tree[path].kind == "d":
                continue
            if path in tree and not (tree[path].kind == node.kind == "d"):
                for each in below(tree, path):
                    del tree[each]
            tree[path] = node
        return tree

    def tar(self):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
            entries = self.entries
            if self.whiteouts_first:
                # As tools write them; in umoci and podman, later ones hide what is before them.
                entries = sorted(entries, key=lambda entry: ".wh." not in entry[0])
            for path, header, content in entries:
                info = tarfile.TarInfo(path or "./")
                for name, value in header.items():
                    setattr(info, name, value)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return made.getvalue()


def random_layer(chance, lower, duplicates, first):
    layer = Layer(lower, duplicates, first)

    def path():
        parts = [chance.choice(NAMES) for _ in range(chance.randint(1, 3))]
        return "/".join(parts)

    def spelled(each):
        return chance.choice(["", "", "", "./", "/", "../", "./../"]) + each

    for _ in range(chance.randint(1, 14)):
        mode, mtime = chance.choice(MODES), chance.randint(10**9, 15 * 10**8)
        uid, gid = chance.choice([(0, 0), (0, 0), (5, 6), (1000, 100)])
        head = {"mode": mode, "uid": uid, "gid": gid, "mtime": mtime}
        kind = chance.choice("ffffffdddddlllhhwwwwoopsx")
        where = path()
        if kind == "f":
            data = b"%d" % chance.randint(0, 99)
            layer.add(where, Node("f", mode, uid, gid, data, mtime=mtime), head, data)
        elif kind == "d":
            where = chance.choice([where, where, where, ""])
            if not where:
                if layer.parent("") is None:
                    continue
                mode = head["mode"] = mode & ~0o2000
                layer.tree[""] = Node("d", mode, uid, gid, mtime=mtime)
                layer.entries.append(("./", {**head, "type": tarfile.DIRTYPE}, b""))
            else:
                # Where a directory has the set-group-ID bit, tools differ in what is implied in it.
                mode = head["mode"] = mode & ~0o2000
                node = Node("d", mode, uid, gid, mtime=mtime)
                layer.add(where, node, {**head, "type": tarfile.DIRTYPE})
        elif kind == "l":
            target = chance.choice(["/", "../", "", "./"]) + path()
            node = Node("l", 0o777, uid, gid, target=target, mtime=mtime)
            layer.add(where, node, {**head, "type": tarfile.SYMTYPE, "linkname": target})
        elif kind == "p":
            node = Node("p", mode, uid, gid, mtime=mtime)
            layer.add(where, node, {**head, "type": tarfile.FIFOTYPE})
        elif kind == "s":
            pax = {
                "GNU.sparse.size": str(HOLE * 2),
                "GNU.sparse.numblocks": "1",
                "GNU.sparse.map": f"{HOLE},5",
                "GNU.sparse.name": where,
            }
            data = bytes(HOLE) + b"spars" + bytes(HOLE - 5)
            node = Node("f", mode, uid, gid, data, mtime=mtime)
            layer.add(where, node, {**head, "pax_headers": pax}, b"spars")
        elif kind == "x":
            xattrs = {"user.plash": b"\0\xff\n=" + b"%d" % mtime}
            if chance.random() < 0.5 and not mode & 0o7000:
                xattrs["system.posix_acl_access"] = acl(5, mode)
            pax = {
                "SCHILY.xattr." + name: value.decode("utf-8", "surrogateescape")
                for name, value in xattrs.items()
            }
            node = Node("f", mode, uid, gid, b"x", xattrs=xattrs, mtime=mtime)
            layer.add(where, node, {**head, "pax_headers": pax}, b"x")
        elif kind == "h":
            layer.link(where, chance.choice([*layer.tree]))
        elif kind == "w":
            layer.hide(chance.choice([*lower, where]) or where)
        else:
            layer.hide_all(chance.choice([*lower, *layer.tree, ""]))
        if chance.random() < 0.2 and layer.entries:
            name, header, content = layer.entries[-1]
            if ".wh." not in name and name != "./" and "pax_headers" not in header:
                layer.entries[-1] = spelled(name), header, content
    return layer


def whiteouts_first(seed):
    """Whether a stack's layers have whiteouts before all else."""
    return seed % 4 != 0


def random_stack(seed, duplicates=True):
    """Tars of layers, and the tree of all of them; duplicates: with several entries of a name."""
    chance, tree, tars = random.Random(seed), {"": implied()}, []
    for _ in range(chance.randint(2, 6)):
        layer = random_layer(chance, tree, duplicates, whiteouts_first(seed))
        tars.append(layer.tar())
        tree = layer.merged()
    return tars, tree


def described(tree):
    """The model's tree as listed() gives it."""
    first = {}
    for path, node in sorted(tree.items()):
        first.setdefault(id(node), path)
    return {
        path: [
            node.kind,
            node.mode,
            node.uid,
            node.gid,
            hashlib.sha256(node.data).hexdigest() if node.kind == "f" else node.target,
            {name: value.hex() for name, value in sorted(node.xattrs.items())},
            None if node.kind == "d" and node.implied else node.mtime,
            first[id(node)] if node.kind == "f" else path,
        ]
        for path, node in tree.items()
    }


def listed(root):
    """All that is in a directory."""
    found, first, left = {}, {}, [""]
    while left:
        path = left.pop()
        place = os.path.join(root, path)
        status = os.lstat(place)
        kind = {
            stat.S_IFDIR: "d",
            stat.S_IFREG: "f",
            stat.S_IFLNK: "l",
            stat.S_IFIFO: "p",
        }.get(stat.S_IFMT(status.st_mode), "?")
        content, xattrs = "", {}
        if kind == "f":
            with open(place, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()
        elif kind == "l":
            content = os.readlink(place)
        for name in os.listxattr(place, follow_symlinks=False):
            if not name.startswith(("security.selinux", "user.overlay.", "user.rootless")):
                xattrs[name] = os.getxattr(place, name, follow_symlinks=False).hex()
        inode = (status.st_dev, status.st_ino) if kind == "f" else path
        found[path] = [
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            content,
            xattrs,
            status.st_mtime_ns // 10**9,
            inode,
        ]
        if kind == "d":
            left += [f"{path}/{name}".lstrip("/") for name in os.listdir(place)]
    for path, entry in sorted(found.items()):
        entry[-1] = first.setdefault(entry[-1], path)
    return found


if __name__ == "__main__":
    json.dump(listed("."), sys.stdout)
