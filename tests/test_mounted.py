"""mounted, mount and sudo: the host's programs on an image's files."""

import os

from requirements import as_user
from world import wait_for


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
    assert plash("mount", image, "m", "changes").status == 1
    assert not (tmp_path / "changes").exists()


def test_an_empty_shell_is_none(plash, image):
    for words in ["mounted", image], ["sudo"]:
        assert plash(*words, input="echo x\n", env={"SHELL": ""}).ok().out == "x\n"


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
        wait_for(lambda: "/layer/0/" in open(f"/proc/{run.pid}/mountinfo", errors="replace").read())
        assert "in use" in plash("rm", "-r", image).error
        run.stdin.close()


def test_a_setuid_program_of_a_mounted_image_is_none(plash, image):
    """Where root mounts, all users of the host would run it as root."""
    code = f"mkdir m && plash-mount {image} m {{}} && findmnt --noheadings --output OPTIONS m"
    for kept in "", "kept":
        options = plash("sudo", "unshare", "-m", "sh", "-c", code.format(kept)).ok().out.split(",")
        assert {"nosuid", "nodev"} <= set(options)
        (plash.place / "m").rmdir()
