#!/usr/bin/env python3
"""Measure plash against what it is built on, in turn and in one run.

Usage: bench.py [--rounds=N] [--debian=TAR]

Prints the median of each command, its spread (median absolute deviation), and the ratio to the first of its
group. plash is installed into a temporary directory first, so that what users have is measured.

Options:
  --rounds=N    how often each command runs [default: 15]
  --debian=TAR  a Debian root filesystem; without it mmdebstrap makes one
"""
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def seconds(command):
    """How long a shell command takes; it has to succeed."""
    start = time.perf_counter()
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(title, commands, rounds, after=None):
    """Time commands, a dict of names to shell code, in turn; print a row for each."""
    times = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            took = seconds(command)
            if number:  # the first round warms caches
                times[name].append(took)
            if after:
                subprocess.run(["sh", "-c", after], check=True)
    print(f"\n{title}")
    first = statistics.median(next(iter(times.values())))
    for name, took in times.items():
        median = statistics.median(took)
        spread = statistics.median(abs(each - median) for each in took)
        print(f"  {name:<34} {median * 1000:9.1f} ms  ±{spread * 1000:6.1f}  {median / first:6.2f}")


def main(rounds, debian):
    place = tempfile.mkdtemp(prefix="plash-bench-", dir="/var/tmp")
    try:
        measure(place, rounds, debian)
    finally:
        subprocess.run([f"{ROOT}/bin/plash", "sudo", "rm", "-rf", place], check=True)


def measure(place, rounds, debian):
    os.environ.update(PLASH_DATA=f"{place}/data", PATH=f"{place}/bin:{os.environ['PATH']}")
    subprocess.run(["make", "--silent", "-C", ROOT, "install", f"PREFIX={place}", "BUNDLE="], check=True)
    with open(f"{place}/bin/plash-run", encoding="utf-8") as file:
        python = file.readline()[2:].split()[0]
    tar = f"{place}/debian.tar"
    if debian:
        shutil.copy(debian, tar)
    else:
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", tar], check=True)
    subprocess.run(["xz", "-T0", "-2", "--keep", tar], check=True)
    subprocess.run(["plash", "pull:tarfile", tar], check=True, stdout=subprocess.DEVNULL)
    run = {"python3 -IS -c pass": f"{python} -IS -c pass", "plash-run 1 true": "plash-run 1 true",
           "plash run 1 true": "plash run 1 true", "plash-nodepath 1": "plash-nodepath 1",
           "plash-map": "plash-map", "plash build 1 true": "plash build 1 true"}
    compare("start", run, rounds * 4)
    few = max(3, rounds // 3)
    # Beside the images: where a filesystem puts a new directory's files makes a difference of ten times.
    unpack = "cd $(plash mkdtemp) && "
    exclude = "" if os.getuid() == 0 else "--exclude=./dev/* "
    plain = f"tar -xp --numeric-owner --xattrs --xattrs-include='*' {exclude}-f"
    clean = f"plash clean; for id in $(ls {place}/data/index); do [ $id -le 1 ] || plash rm $id; done"
    for name, source, expand in ("tar", tar, "cat"), ("tar.xz", tar + ".xz", "xz -T0 -dc"):
        compare(f"import of a Debian, .{name}", {
            "tar -x in a user namespace": f"{unpack}plash sudo sh -c \"{expand} {source} | {plain} -\"",
            "the same, and sync -f": f"{unpack}plash sudo sh -c \"{expand} {source} | {plain} - && sync -f .\"",
            "plash pull:tarfile": f"plash pull:tarfile {source} 2>&1",
            "plash pull:tarfile, no sync": f"PLASH_NO_SYNC=1 plash pull:tarfile {source} 2>&1"}, few, clean)
    compare("export of a Debian", {
        "tar -c in a user namespace": "plash sudo tar -c --numeric-owner --xattrs --xattrs-include='*'"
        f" -C $(plash nodepath 1)/_data/root -f {place}/out.tar .",
        "the same, and sync": "plash sudo sh -c \"tar -c --numeric-owner --xattrs --xattrs-include='*'"
        f" -C $(plash nodepath 1)/_data/root -f {place}/out.tar . && sync {place}/out.tar\"",
        "plash push:tarfile": f"plash push:tarfile 1 {place}/out.tar"}, few)


if __name__ == "__main__":
    import docopt
    options = docopt.docopt(__doc__)
    sys.exit(main(int(options["--rounds"]), options["--debian"]))
