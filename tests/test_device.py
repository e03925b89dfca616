"""--device: devices by their CDI name, on specifications after the CDI document's examples."""

import json
import os
import uuid

import engines
import pytest
from requirements import need, need_program

LOADER = "/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"


@pytest.fixture
def cdi(plash):
    """A function that writes a specification and has plash read those of this test."""
    plash.env["PLASH_CDI"] = f"{plash.place}/cdi:{plash.place}/run"

    def write(devices, shared=None, name="vendor.json", directory="cdi", kind="vendor.com/device"):
        (plash.place / directory).mkdir(exist_ok=True)
        content = {
            "cdiVersion": "0.5.0",
            "kind": kind,
            "devices": [{"name": each, "containerEdits": devices[each]} for each in devices],
            "containerEdits": shared or {},
        }
        (plash.place / directory / name).write_text(json.dumps(content))
        return content

    return write


def hook(*args, program="nvidia-cdi-hook", name="createContainer"):
    return {"hookName": name, "path": f"/usr/bin/{program}", "args": [program, *args]}


def node(path, host="/dev/zero"):
    return {"path": path, "hostPath": host, "permissions": "rw"}


def test_the_names_that_there_are(plash, cdi):
    assert plash("device").ok().out == ""
    cdi({"two": {}, "one": {}})
    cdi({"all": {}}, kind="nvidia.com/gpu", name="nvidia.json", directory="run")
    (plash.place / "cdi/other.json").write_text("{")
    (plash.place / "cdi/none.txt").write_text("{")
    done = plash("device").ok()
    assert done.out.split() == [
        "nvidia.com/gpu=all",
        "vendor.com/device=one",
        "vendor.com/device=two",
    ]
    assert done.err.startswith(
        f"plash device: {plash.place}/cdi/other.json is no CDI specification"
    )
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "run:image", "run:persist", "build"])
def test_nodes_mounts_and_variables(plash, image, cdi, command):
    (plash.place / "driver").write_text("driver")
    (plash.place / "dir").mkdir()
    (plash.place / "dir/file").write_text("in dir")
    mounts = [
        {
            "hostPath": f"{plash.place}/driver",
            "containerPath": "/opt/v/driver",
            "options": ["ro", "nosuid", "nodev", "bind"],
        },
        {
            "hostPath": f"{plash.place}/dir",
            "containerPath": "/opt/v/dir",
            "options": ["rbind", "rw"],
        },
    ]
    cdi(
        {"one": {"deviceNodes": [node("/dev/vendor/0")], "mounts": mounts, "env": ["ONE=1", "BOTH=one"]},
         "two": {"deviceNodes": [{"path": "/dev/full"}], "env": ["BOTH=two", "GIVEN=no"]}},
        {"env": ["SHARED=a=b", "BOTH=shared"]},
    )  # fmt: skip
    code = (
        "head -c 3 /dev/vendor/0 | tr '\\0' z; echo; test -c /dev/full && test -c /dev/null;"
        "cat /opt/v/driver /opt/v/dir/file; echo; (echo x >/opt/v/driver) 2>/dev/null || echo ro;"
        "echo y >/opt/v/dir/new; echo $ONE $BOTH $SHARED $GIVEN"
    )
    argv = [
        "--device",
        "vendor.com/device=one",
        "--device=vendor.com/device=two",
        "-e",
        "GIVEN=yes",
        image,
    ]
    argv += {
        "run": ["sh", "-c"],
        "run:image": ["sh", "-c"],
        "run:persist": ["kept", "sh", "-c"],
        "build": [],
    }[command]
    done = plash(command, *argv, code).ok()
    printed = done.err if command == "build" else done.out
    assert printed == "zzz\ndriverin dir\nro\n1 two a=b yes\n"
    assert (plash.place / "dir/new").read_text() == "y\n"
    assert not os.path.exists("/dev/vendor")


def test_a_build_keeps_nothing_of_a_device(plash, image, cdi, layers):
    links = ["--link", "driver::/opt/v/link", "--link", "../zero::/dev/v/link"]
    (plash.place / "driver").write_text("driver")
    mounts = [{"hostPath": f"{plash.place}/driver", "containerPath": "/opt/v/driver"}]
    hooks = [hook("create-symlinks", *links), hook("update-ldcache", "--folder", "/opt/v")]
    cdi({"one": {"deviceNodes": [node("/dev/v/0")], "mounts": mounts, "hooks": hooks}})
    code = "cat /opt/v/link; readlink /dev/v/link; touch /new"
    done = plash("build", "--device", "vendor.com/device=one", image, code)
    assert done.err == "driver../zero\n"
    assert layers(done.id) == ["new"]


@pytest.mark.parametrize("options", [[], ["--as-me"]], ids=str)
def test_the_hooks_of_the_toolkit(plash, image, cdi, options):
    library = next((each for each in LOADER if os.path.exists(each)), None)
    need(library and os.path.exists("/sbin/ldconfig"), "glibc, and its ldconfig")
    (plash.place / "dri").mkdir(mode=0o700)
    mounts = [
        {"hostPath": library, "containerPath": "/opt/v/libvendor.so.1.2"},
        {"hostPath": "/dev/null", "containerPath": "/opt/m/null"},
    ]
    hooks = [
        hook("hook", "create-symlinks", "--link", "libvendor.so.1.2::/opt/v/libvendor.so",
             "--link=../libvendor.so::/opt/v/sub/linked.so", program="nvidia-ctk"),
        hook("chmod", "--mode", "751", "--path", "/opt/m"),
        hook("enable-cuda-compat", "--host-driver-version=575.57.08"),
        hook("disable-device-node-modification"),
        hook("update-ldcache", "--folder", "/opt/v"),
    ]  # fmt: skip
    cdi({"one": {"mounts": mounts, "hooks": hooks}})
    code = (
        "readlink /opt/v/libvendor.so /opt/v/sub/linked.so /opt/v/libm.so.6; stat -c %a /opt/m;"
        "grep -c /opt/v/libm.so.6 /etc/ld.so.cache; (: >/etc/ld.so.cache.new) 2>/dev/null; ls /host | wc -l"
    )
    done = plash("run", *options, "--device", "vendor.com/device=one", image, "sh", "-c", code).ok()
    lines = done.out.splitlines()
    assert lines[:5] == ["libvendor.so.1.2", "../libvendor.so", "libvendor.so.1.2", "751", "1"]
    assert int(lines[5]) > 3  # the host is there


def test_the_images_own_cuda_is_used_if_it_is_newer(plash, image, cdi):
    number = plash("build", image, "mkdir -p /usr/local/cuda/compat /opt/v; cd /usr/local/cuda/compat;"
                   " for each in /lib*/*/libm.so.6 /lib64/libm.so.6; do"
                   " [ ! -e $each ] || cp $each libcuda.so.570.1; done; ls").id  # fmt: skip
    need(plash("run", number, "ls", "/usr/local/cuda/compat").out, "glibc")
    for version, count in ("560.35.03", "1"), ("575.57.08", "0"):
        hooks = [
            hook("enable-cuda-compat", "--host-driver-version", version),
            hook("update-ldcache", "--folder", "/opt/v"),
        ]
        cdi({"one": {"hooks": hooks}})
        code = "grep -c cuda/compat /etc/ld.so.cache || :"
        done = plash("run", "--device=vendor.com/device=one", number, "sh", "-c", code).ok()
        assert done.out == count + "\n"


def test_what_a_running_system_says_wins(plash, image, cdi):
    cdi({"one": {"env": ["FROM=etc"]}, "two": {"env": ["FROM=etc"]}})
    cdi({"one": {"env": ["FROM=run"]}}, directory="run")
    for name, value in ("one", "run"), ("two", "etc"):
        argv = ["run", f"--device=vendor.com/device={name}", image, "sh", "-c", "echo $FROM"]
        assert plash(*argv).ok().out == value + "\n"
    cdi({"one": {}}, directory="run", name="again.json")
    error = plash("run", "--device=vendor.com/device=one", image, "true").error
    assert "vendor.com/device=one is in" in error and "again.json" in error


def test_yaml(plash, image, cdi):
    cdi({"one": {"env": ["A=1"]}})
    os.rename(plash.place / "cdi/vendor.json", plash.place / "cdi/vendor.yaml")
    argv = ["run", "--device=vendor.com/device=one", image, "sh", "-c", "echo $A"]
    if plash.run(["python3", "-c", "import yaml"]).status == 0:
        assert plash(*argv).ok().out == "1\n"
        (plash.place / "cdi/vendor.yaml").write_text("a: [")
        assert "vendor.yaml is no CDI specification: while parsing" in plash(*argv).error
    (plash.place / "hidden").mkdir()
    (plash.place / "hidden/yaml.py").write_text("raise ImportError")
    error = plash(*argv, env={"PYTHONPATH": f"{plash.place}/hidden"}).error
    assert error == (
        f"plash run: no device: vendor.com/device=one: cannot read {plash.place}/cdi/vendor.yaml:"
        " PyYAML is not installed (`nvidia-ctk cdi generate --format=json` writes JSON)"
    )


def test_a_path_is_a_device(plash, image, cdi):
    code = "test ! -e /dev/mem || exit 3; test -c /dev/fuse"
    if os.path.exists("/dev/fuse"):
        plash("build", "--device", "/dev/fuse", image, code).ok()
        assert plash("build", image, code).status == 1
    error = plash("run", "--device=/dev/no-such", image, "true").error
    assert error == "plash run: /dev/no-such: No such file or directory"


@pytest.mark.parametrize(
    "edits, why",
    [
        ({"hooks": [hook("x", program="other-hook")]}, "needs the hook createContainer other-hook x, which plash cannot do"),
        ({"hooks": [hook("chmod", name="poststop")]}, "needs the hook poststop nvidia-cdi-hook chmod, which plash cannot do"),
        ({"intelRdt": {"closID": "x"}}, "needs intelRdt, which plash cannot do"),
        ({"mounts": [{"hostPath": "tmpfs", "containerPath": "/x", "type": "tmpfs"}]}, "needs a mount of tmpfs, which plash cannot do"),
        ({"mounts": [{"hostPath": "/etc", "containerPath": "/x", "options": ["idmap"]}]}, "needs a mount of idmap, which plash cannot do"),
        ({"deviceNodes": [{"path": "/dev/no-such"}]}, "needs /dev/no-such: No such file or directory"),
    ],
)  # fmt: skip
def test_what_cannot_be(plash, image, cdi, edits, why):
    cdi({"one": edits})
    argv = ["--device=vendor.com/device=one", image, "true"]
    assert plash("run", *argv).error == f"plash run: vendor.com/device=one {why}"
    assert plash("build", *argv).error == f"plash build: vendor.com/device=one {why}"


def test_no_such_device(plash, image, cdi):
    error = plash("run", "--device=vendor.com/device=one", image, "true").error
    assert error == "plash run: no device: vendor.com/device=one (see plash device)"
    cdi({"one": {"mounts": [{"hostPath": "/etc"}]}})
    error = plash("run", "--device=vendor.com/device=one", image, "true").error
    assert error.endswith("vendor.json is no CDI specification: no field 'containerPath'")


@pytest.mark.parametrize(
    "args, why",
    [
        (["chmod", "--path"], "the hook's option --path has no value"),
        (["chmod", "--path=/x"], "no field 'mode'"),
        (["enable-cuda-compat", "--host-driver-version=x.1"], "not a number: 'x'"),
    ],
)
def test_hooks_that_are_unsound(plash, image, cdi, args, why):
    cdi({"one": {"hooks": [hook(*args)]}})
    error = plash("run", "--device=vendor.com/device=one", image, "true").error
    assert error.endswith(f"vendor.json is no CDI specification: {why}")


@pytest.mark.parametrize(
    "text, why",
    [("[]", "not an object"), ('{"kind": "a/b"}', "no field 'devices'")],
)
def test_files_that_are_unsound(plash, cdi, text, why):
    cdi({})
    (plash.place / "cdi/vendor.json").write_text(text)
    assert f"vendor.json is no CDI specification: {why}" in plash("device").ok().err


@pytest.mark.slow
@pytest.mark.only_for("root")
def test_podman_makes_the_same_of_it(plash, image, cdi, host_tar):
    need_program("podman", "runc")
    (plash.place / "driver").write_text("driver")
    mounts = [
        {
            "hostPath": f"{plash.place}/driver",
            "containerPath": "/opt/v/driver",
            "options": ["ro", "bind"],
        }
    ]
    kind = f"plash-test-{uuid.uuid4().hex[:8]}.org/device"
    devices = {
        "one": {
            "deviceNodes": [node("/dev/vendor/0")],
            "mounts": mounts,
            "env": ["ONE=1", "BOTH=one"],
        }
    }
    content = cdi(devices, {"env": ["SHARED=a=b", "BOTH=shared"]}, kind=kind)
    made = not os.path.exists("/etc/cdi")
    os.makedirs("/etc/cdi", exist_ok=True)
    path = f"/etc/cdi/{kind.partition('.')[0]}.json"
    with open(path, "w") as file:
        json.dump(content, file)
    code = (
        "head -c 3 /dev/vendor/0 | tr '\\0' z; echo; cat /opt/v/driver; echo; echo $ONE $BOTH $SHARED;"
        "(echo x >/opt/v/driver) 2>/dev/null || echo ro"
    )
    try:
        with engines.podman(plash.place / "podman") as podman:
            podman("import", host_tar, "plash-test")
            limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
            argv = ["--network=host", *limits, f"--device={kind}=one", "plash-test"]
            theirs = podman("run", "--rm", *argv, "sh", "-c", code)
    finally:
        os.unlink(path)
        if made:
            os.rmdir("/etc/cdi")
    ours = plash("run", f"--device={kind}=one", image, "sh", "-c", code).ok().out
    assert theirs == ours.strip() and "driver" in ours
