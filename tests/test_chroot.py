"""chroot: a directory as the root filesystem."""


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
