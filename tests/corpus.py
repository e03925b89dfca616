"""Containerfiles of tests/containerfiles, built by plash and by its peers, and what comes of it.

By hand: `python tests/corpus.py DIRECTORY DEBIAN.tar [NAME ...]` as root builds all of them with
plash, buildah, and docker, as BuildKit and as the builder before that, and prints what differs.
Those of REAL are built only if they are named: they have packages of Debian, PyPI and npm, which
come from where this host has them from. What their images print is compared too.
"""

import fnmatch
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

CORPUS = Path(__file__).parent / "containerfiles"
# Those of the kinds that people have, and the packages of Debian in their bases.
REAL = {
    "apt-user": [],
    "go-scratch": ["golang-go"],
    "node-stages": ["nodejs", "npm"],
    "web-python": ["python3-venv"],
}
NAMES = sorted({path.name for path in CORPUS.iterdir() if path.is_dir()} - set(REAL))
# What differs between two builds by one builder: logs, times and process ids in files.
CHANGING = (
    *("var/log/*", "var/cache/ldconfig/aux-cache", "var/cache/debconf/*", "var/lib/dpkg/*-old"),
    *(
        "var/cache/apt/*.bin",
        "*.pyc",
        "etc/*-",
        "etc/ld.so.cache",
        "*/node_modules/.package-lock.json",
        "tmp/node-compile-cache",
    ),
)
# What the peers here don't know, or leave to chance: of the tree and of the configuration.
SETTINGS = (
    *("Env", "WorkingDir", "User", "Entrypoint", "Cmd", "Labels", "ExposedPorts", "Volumes"),
    *("StopSignal", "Healthcheck", "OnBuild", "Shell"),
)


def tree(root):
    """All that is below a directory: paths to kind, mode, owner, and content or target."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = ""
            if stat.S_ISREG(status.st_mode):
                content = Path(path).read_bytes()
                if len(content) > 4096:
                    content = hashlib.sha256(content).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            mode = 0 if stat.S_ISLNK(status.st_mode) else stat.S_IMODE(status.st_mode)
            kind = stat.S_IFMT(status.st_mode)
            found[os.path.relpath(path, root)] = (
                f"{kind:o} {mode:o} {status.st_uid}:{status.st_gid}",
                content,
            )
    return found


ONBUILD = "--build-arg=ONBUILD_BASE=onbuild-base"
IGNORED = {"io.buildah.version"}  # a label


def unpacked(layout, place, original=None):
    """The tree and the configuration of an image in an OCI layout, whose tag is x.

    original is what skopeo(1) made the layout of: OCI has no Shell and no Healthcheck.
    """
    bundle = place / "bundle"
    run(["umoci", "unpack", "--image", f"{layout}:x", bundle])
    config = json.loads(
        run(["skopeo", "inspect", "--config", "--raw", original or f"oci:{layout}:x"])
    )
    found = tree(bundle / "rootfs")
    run(["rm", "-rf", bundle, layout])
    settings = {
        name: value for name, value in (config.get("config") or {}).items() if name in SETTINGS
    }
    labels = settings.get("Labels") or {}
    settings["Labels"] = {name: labels[name] for name in labels if name not in IGNORED}
    settings["author"] = config.get("author")
    return found, {name: value for name, value in settings.items() if value}


def run(argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: {(done.stderr or done.stdout)[-600:]}")
    return done.stdout


# Mount points that builders leave in an image that lacks them.
POINTS = (
    *("dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf"),
    *("ctx", "mnt", "mnt/o", "mnt/rw", "scratch", "var/cache", "var/cache/tool", "run/secrets"),
)


def differences(ours, theirs):
    """Lines on what differs of two trees, or of two configurations."""
    found = []
    for name in sorted({*ours, *theirs}):
        if name in POINTS or any(fnmatch.fnmatch(name, each) for each in CHANGING):
            continue
        if ours.get(name) != theirs.get(name):
            found.append(f"{name}: {_short(ours.get(name))} | {_short(theirs.get(name))}")
    return found


def _short(value):
    return str(value)[:130]


def context(name, place):
    """A copy of one of the corpus, with modes that git does not keep."""
    copy = place / f"context-{name}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(CORPUS / name, copy, symlinks=True)
    if name == "modes":
        (copy / "secret").chmod(0o600)
        (copy / "priv").chmod(0o700)
    return copy


# Lets programs of an image reach the servers that this host's do.
REACH = r"""
set -e
rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
for file in /host/etc/apt/sources.list /host/etc/apt/sources.list.d/*.list \
    /host/etc/apt/sources.list.d/*.sources; do
    [ ! -e "$file" ] || cp "$file" "${file#/host}"
done
echo "$ACQUIRE" >/etc/apt/apt.conf.d/90host
for file in /etc/pip.conf /etc/npmrc; do [ ! -e "/host$file" ] || cp "/host$file" "$file"; done
apt-get -qq update
apt-get -qq -y install --no-install-recommends ca-certificates "$@"
cp -L /host/etc/ssl/certs/ca-certificates.crt /etc/ssl/certs
apt-get clean
rm -rf /var/lib/apt/lists/*
"""
PROXIES = [name for name in ("http_proxy", "https_proxy", "no_proxy") if os.environ.get(name)]


def with_packages(plash, image, packages):
    """An image that has these packages of Debian, and can get more."""
    acquire = "ACQUIRE=" + run(["apt-config", "dump", "Acquire"])
    options = ["--keep-tmp", "-w", "/", "-e", acquire, "-e", "DEBIAN_FRONTEND=noninteractive"]
    return plash("cache", "build", *options, image, "sh", "-c", REACH, "sh", *packages)


class Buildah:
    """buildah with a store of its own in the directory place."""

    def __init__(self, place):
        self.place = place
        self.words = ["buildah", "--root", place / "buildah", "--runroot", place / "buildah-run"]
        self.words += ["--storage-driver", "overlay" if os.path.exists("/dev/fuse") else "vfs"]

    def __call__(self, *words):
        return run([*self.words, *words])

    def build(self, name, base):
        """Build one of the corpus on an image; returns the OCI layout."""
        layout = f"{self.place}/layout-buildah"
        self(
            *("bud", "--runtime=runc", "--network=host", "--isolation=chroot", "--layers=false"),
            *("--tls-verify=false", "--format=docker", "--tag", name),
            *(f"--build-arg=BASE={base}", *arguments(name)),
            context(name, self.place),
        )
        self("push", name, f"oci:{layout}:x")
        return layout

    def remove(self):
        self("rmi", "--all", "--force")
        subprocess.run(["umount", self.place / "buildah/overlay"], capture_output=True)


def arguments(name):
    """The options that give a build of one of the corpus its secrets and arguments."""
    if name in REAL:
        return [f"--build-arg={each}={os.environ[each]}" for each in PROXIES]
    return [ONBUILD, *([f"--secret=id=token,src={CORPUS}/mounts/.secret"] * (name == "mounts"))]


def by_plash(plash, name, base, place):
    """Build with plash, which is a function that runs a command and returns what it prints."""
    given = [f"--build-arg=BASE={base}", *arguments(name)]
    image = plash("build:file", *given, str(context(name, Path(place))))
    plash("push:oci", image, f"oci:{place}/layout-plash:x")
    return image, f"{place}/layout-plash"


def main(place, debian, names):
    sys.path.insert(0, str(Path(__file__).parent))
    import engines
    import servers

    place = Path(place)
    place.mkdir(parents=True, exist_ok=True)
    bin = Path(__file__).parent.parent / "bin/plash"
    environment = {**os.environ, "PLASH_DATA": str(place / "data"), "PLASH_NO_SYNC": "1"}

    def plash(*words):
        return run([bin, *words], env=environment).strip()

    buildah = Buildah(place)
    (place / "registry").mkdir(exist_ok=True)
    (place / "docker").mkdir(exist_ok=True)
    with (
        servers.registry(place / "registry") as address,
        engines.docker(place / "docker") as docker,
    ):
        docker.words = ["/usr/bin/docker"]
        plain = plash("config", '--cmd=["bash"]', plash("pull:tarfile", debian))
        bases = {}
        for name in names:
            tag = f"base-{name}" if name in REAL else "base"
            if tag not in bases:
                bases[tag] = f"{address}/{tag}:latest"
                image = with_packages(plash, plain, REAL[name]) if name in REAL else plain
                plash("push:oci", "--tls-verify=false", image, bases[tag])
                plash("map", tag, plash("pull:oci", "--tls-verify=false", bases[tag]))
                buildah("pull", "--tls-verify=false", bases[tag])
                docker("pull", "--quiet", bases[tag])
            results, base = {}, bases[tag]
            for who in "plash", "buildah", "buildkit", "docker":
                source = tag if who == "plash" else base
                saved = (
                    f"docker-archive:{place}/saved.tar" if who in ("buildkit", "docker") else None
                )
                try:
                    layout = build(who, name, source, place, plash, buildah, docker)
                    results[who] = unpacked(layout, place, saved)
                except RuntimeError as error:
                    print(f"{name}: {who} failed: {error}")
            if "plash" not in results:
                continue
            if name == "onbuild-base":
                plash("map", "onbuild-base", plash("build:file", str(CORPUS / name)))
            for who in results:
                if who == "plash":
                    continue
                for kind in 0, 1:
                    lines = differences(results["plash"][kind], results[who][kind])
                    for line in lines[:12]:
                        print(f"{name}: plash | {who}: {line}", flush=True)
            print(f"{name}: compared with {', '.join(list(results)[1:])}", flush=True)
            if name in REAL:
                image = plash("build:file", f"--build-arg=BASE={tag}", str(context(name, place)))
                for who, output in printed(plash, image, f"{address}/made-{name}", docker, place):
                    print(f"{name}: run by {who}: {output}", flush=True)


def printed(plash, image, name, docker, place):
    """What an image prints if plash, docker and podman run it, which get it from a registry."""
    import engines

    yield "plash", plash("run:image", image)
    plash("push:oci", "--tls-verify=false", image, f"{name}:latest")
    yield "docker", docker("run", "--rm", "--network=host", name)
    with engines.podman(tempfile.mkdtemp(dir=place)) as podman:
        podman("pull", "--quiet", "--tls-verify=false", name)
        limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
        yield "podman", podman("run", "--rm", "--network=host", *limits, name)


def build(who, name, base, place, plash, buildah, docker):
    """Build by one of the peers; returns the OCI layout."""
    layout = f"{place}/layout-{who}"
    directory = context(name, place)
    given = [f"--build-arg=BASE={base}", *arguments(name)]
    if who == "plash":
        return by_plash(plash, name, base, place)[1]
    if who == "buildah":
        return buildah.build(name, base)
    lines = (directory / "Containerfile").read_bytes().split(b"\n")
    file = place / "Dockerfile"
    file.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"# syntax")))
    ignore = directory / "Containerfile.dockerignore"
    if ignore.exists():
        (place / "Dockerfile.dockerignore").write_text(ignore.read_text())
    environment = {**docker.env, "DOCKER_BUILDKIT": "1" if who == "buildkit" else "0"}
    if who == "docker":
        given = [each for each in given if not each.startswith("--secret")]
    run(
        [
            *("/usr/bin/docker", "build", "--network=host", "--tag", name, "--file", file),
            *given,
            directory,
        ],
        env=environment,
    )
    (place / "Dockerfile.dockerignore").unlink(missing_ok=True)
    run(["/usr/bin/docker", "save", "-o", place / "saved.tar", name], env=environment)
    run(["skopeo", "copy", f"docker-archive:{place}/saved.tar", f"oci:{layout}:x"])
    return layout


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or ["onbuild-base", *NAMES])
