"""run:persist: changes stay in a directory."""

import os


def test_persist_keeps_changes(plash, image, tmp_path):
    kept = tmp_path / "kept"
    plash("run:persist", image, kept, "sh", "-c", "echo 1 > /one; rm /etc/group").ok()
    assert plash("run:persist", image, kept, "sh", "-c", "cat /one; ls /etc/group").out == "1\n"
    assert plash("run", image, "ls", "/one").status == 2
    assert sorted(os.listdir(kept)) == ["data", "image", "work"]
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


def test_a_directory_of_something_else_is_refused(plash, image):
    child = plash("build", image, "true").id
    for name in "data", "work/work":
        (plash.place / "mine" / name).mkdir(parents=True)
        (plash.place / "mine" / name / "file").write_text("x")
    assert "holds no changes" in plash("run:persist", image, "mine", "true").error
    assert (plash.place / "mine/work/work/file").exists()
    plash("run:persist", image, "dir", "touch", "/x").ok()
    assert "holds changes of image 1" in plash("run:persist", child, "dir", "true").error
    (plash.place / "dir/image").unlink()
    plash("run:persist", image, "dir", "ls", "/x").ok()
