"""run:persist, chroot, mount, mounted, sudo."""

import os

from conftest import as_user, wait_for


def test_persist_keeps_changes(plash, image, tmp_path):
    kept = tmp_path / "kept"
    plash("run:persist", image, kept, "sh", "-c", "echo 1 > /one; rm /etc/group").ok()
    assert plash("run:persist", image, kept, "sh", "-c", "cat /one; ls /etc/group").out == "1\n"
    assert plash("run", image, "ls", "/one").status == 2
    assert sorted(os.listdir(kept)) == ["data", "work"]
    number = plash("stack", image, kept / "data").id
    assert plash("run", number, "cat", "/one").out == "1\n"


def test_persist_keeps_the_mode_of_the_root(plash, image, tmp_path):
    plash("run:persist", image, tmp_path / "kept", "chmod", "711", "/").ok()
    assert plash("run:persist", image, tmp_path / "kept", "stat", "-c", "%a", "/").out == "711\n"


def test_persist_refuses_a_directory_in_use(plash, image, tmp_path):
    with plash.start("run:persist", image, tmp_path / "kept", "sh", "-c", "echo up; cat") as run:
        run.stdout.readline()
        assert plash("run:persist", image, tmp_path / "kept", "true").error == (
            f"plash run:persist: {tmp_path}/kept is in use by another process"
        )
        run.stdin.close()
    plash("run:persist", image, tmp_path / "kept", "true").ok()


def test_persist_again_after_a_kill(plash, image, tmp_path):
    run = plash.start(
        "run:persist", image, tmp_path / "kept", "sh", "-c", "echo 1 > /one; echo up; exec sleep 99"
    )
    run.stdout.readline()
    run.kill()
    run.wait()
    assert plash("run:persist", image, tmp_path / "kept", "cat", "/one").out == "1\n"


def test_chroot(plash, image, tmp_path):
    root = tmp_path / "root"
    plash("push:dir", image, root).ok()
    assert plash("chroot", root, "sh", "-c", "echo x > /made; id -u; cat /made").out == "0\nx\n"
    assert plash("mounted", image, "ls", "made").status == 2
    assert (root / "made").exists()
    assert not (root / "host").exists()
    (root / "host").mkdir()
    (root / "dev").mkdir()
    (root / "home").symlink_to("/var/empty")
    assert plash(
        "chroot", root, "sh", "-c", "ls -d /host/etc /dev/null; ls /home/* | head -1"
    ).out == ("/dev/null\n/host/etc\n")
    assert plash("chroot", root, "pwd").out.strip() in (str(tmp_path), f"/host{tmp_path}")


def test_mounted_runs_a_host_command_in_the_image(plash, image):
    assert plash("mounted", image, "ls", "etc/passwd").out == "etc/passwd\n"
    assert plash("mounted", image, "sh", "-c", "pwd; touch x").status != 0
    assert plash("mounted", image, "sh", "-c", "exit 4").status == 4


def test_mount_in_sudo(plash, image, tmp_path):
    (tmp_path / "m").mkdir()
    code = f"plash-mount {image} m; ls m/etc/passwd; touch m/x 2>/dev/null || echo read-only"
    assert plash("sudo", "sh", "-c", code).out == "m/etc/passwd\nread-only\n"
    code = f"plash-mount {image} m changes; touch m/x; ls m/x; ls changes/data"
    assert plash("sudo", "sh", "-c", code).out == "m/x\nx\n"
    assert os.listdir(tmp_path / "m") == []


@as_user
def test_mount_without_the_right_to(plash, image, tmp_path):
    (tmp_path / "m").mkdir()
    assert plash("mount", image, tmp_path / "m").error == (
        "plash mount: you may not mount here (plash sudo gives a shell that may)"
    )


def test_sudo_is_root_on_the_hosts_files(plash):
    assert plash("sudo", "id", "-u").out == "0\n"
    assert plash("sudo", "cat", "/proc/self/comm").out == "cat\n"
    assert plash("sudo", "env", env={"FOO": "bar"}).out.count("FOO=bar\n") == 1


def test_commands_work_inside_sudo(plash, image):
    code = f"plash-build {image} 'echo 1 > /one' && plash-run 2 cat /one"
    assert plash("sudo", "sh", "-c", code).ok().out == "2\n1\n"
    code = "export PLASH_NO_UNSHARE=1; " + code.replace("2", "3")
    assert plash("sudo", "sh", "-c", code).ok().out == "3\n1\n"


def test_a_process_in_sudo_or_mounted_counts_as_a_user(plash, image):
    with plash.start("mounted", image, "cat") as run:
        wait_for(lambda: "/layer/0/" in open(f"/proc/{run.pid}/mountinfo").read())
        assert "in use" in plash("rm", image).error
        run.stdin.close()
