"""What holds of a store at any instant, whatever was killed, failed, or ran at once: one checker for all such tests.

The images that these tests make consist of steps: a directory /steps/NAME with the files
`first`, written at the beginning of the step, and `last`, at its end. So an image tells itself whether it is whole,
and which step made it.
"""

import io
import os
import shutil
import tarfile

PROGRAMS = "sh mkdir touch test true cat ls sleep".split()
WHOLE = 'for d in /steps/*; do test -e "$d/first" && test -e "$d/last" || exit 9; done; ls /steps'


def step(name):
    """The shell code of a build that adds the step name."""
    return f"mkdir /steps/{name}; touch /steps/{name}/first; mkdir /steps/{name}/d; touch /steps/{name}/last"


def write_tar(path, name="base"):
    """An archive of a small root filesystem, with the step name."""
    with tarfile.open(path, "w") as tar:

        def add(member, content=None, target=None, mode=0o755):
            info = tarfile.TarInfo(member)
            info.mode = mode
            if content is not None:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = (
                    (tarfile.SYMTYPE, target) if target else (tarfile.DIRTYPE, "")
                )
                tar.addfile(info)

        for directory in "bin", "steps", f"steps/{name}":
            add(directory)
        add(f"steps/{name}/first", b"")
        with open(shutil.which("busybox"), "rb") as busybox:
            add("bin/busybox", busybox.read())
        for program in PROGRAMS:
            add("bin/" + program, target="busybox")
        add(f"steps/{name}/last", b"")


class Checker:
    """Checks one store again and again; plash is the world.Plash that runs in it."""

    def __init__(self, plash):
        self.plash = plash
        self.data = str(plash.data)
        self.printed = set()  # ids that commands printed
        self.counter = 0  # the newest id that was ever seen
        self.steps = {}  # of images found whole: they can't change, so each is run once

    def took(self, text):
        """A command printed the id text: no other ever did."""
        number = int(text)
        assert number not in self.printed, f"id {number} was given twice"
        self.printed.add(number)
        return number

    def visible(self):
        """The images that commands see, as a dict of ids to their directories."""
        found = {}
        for name in os.listdir(self.data + "/index"):
            node = os.path.join(self.data, os.readlink(f"{self.data}/index/{name}")[3:])
            assert os.path.basename(node) == name
            if name != "0" and os.path.exists(node + "/_data/root"):
                found[int(name)] = node
        return found

    def check(self):
        """What holds at any time; returns the visible images."""
        found = self.visible()
        counter = os.path.getsize(self.data + "/id_counter")
        assert counter >= max([self.counter, *found, *self.printed])
        self.counter = counter
        for number, node in found.items():
            assert os.path.exists(os.path.dirname(node) + "/_data/root"), (
                f"image {number} has no parent"
            )
            if number not in self.steps:
                self.steps[number] = (
                    self.plash("run", str(number), "sh", "-c", WHOLE).ok().out.split()
                )
        for name in os.listdir(self.data + "/map"):
            # These tests name images by their ids.
            assert os.readlink(f"{self.data}/map/{name}") == f"../index/{name.partition('-')[2]}"
        for name in os.listdir(self.data + "/cache"):
            number = os.path.basename(os.readlink(f"{self.data}/cache/{name}"))
            assert int(number) <= counter
        return found

    def clean(self):
        """After `plash clean`, with nothing running, the store has no more than whole images and their names."""
        before = self.check()
        self.plash("clean").ok()
        after = self.check()
        assert after == before
        assert os.listdir(self.data + "/tmp") == []
        assert {int(name) for name in os.listdir(self.data + "/index")} == {0, *after}
        for directory in "map", "cache":
            for name in os.listdir(f"{self.data}/{directory}"):
                assert os.path.exists(f"{self.data}/{directory}/{name}")
        # Of nodes, there are none but the images.
        nodes = {int(name) for _, names, _ in self.walk() for name in names}
        assert nodes == set(after)
        return after

    def walk(self):
        for place, names, files in os.walk(self.data + "/layer/0"):
            names[:] = [name for name in names if name.isdigit()]
            yield place, names, files

    def works(self):
        """The store is good for new images."""
        images = self.clean()
        base = min(images)
        new = self.took(self.plash("build", str(base), step(f"after{self.counter}")).id)
        assert new > max(images)
        self.check()
        self.plash("rm", "--recursive", str(new)).ok()
