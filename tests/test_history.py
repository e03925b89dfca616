"""history and diff: what made an image, and what that changed."""

import json
import os
import time

import pytest
from requirements import need_program


def test_the_layers_of_an_image(plash, image):
    begun = int(time.time())
    second = plash("build", image, "echo 'a  b' >/out").id
    third = plash("build", second, input="echo one\necho two\n").id
    plash("map", "tools", second).ok()
    newest, middle, oldest = json.loads(plash("history", "--json", third).ok().out)
    assert [each["id"] for each in (newest, middle, oldest)] == [third, second, image]
    assert newest["made_by"] == ["build", second, "echo one\necho two\n"]
    assert middle["made_by"] == ["build", image, "echo 'a  b' >/out"]
    assert oldest["made_by"][0] == "pull:tarfile"
    assert middle["names"] == ["tools"] and oldest["names"] == []
    assert begun <= middle["created"] <= newest["created"] <= time.time()
    assert oldest["size"] > 1000000 > middle["size"] > 0
    lines = plash("history", third).ok().out.splitlines()
    assert [line.split()[0] for line in lines] == [third, second, image]
    assert lines[0].endswith("  build 2 'echo one echo two '")
    assert "tools" in lines[1] and lines[1].endswith("build 1 'echo '\"'\"'a b'\"'\"' >/out'")


def test_secrets_are_not_kept(plash, image, host_tar):
    words = ["-e", "A=hidden", "-eB=hidden", "-e", "C", image, "echo -e shown=1"]
    number = plash("build", *words, env={"C": "hidden"}).id
    (made,) = json.loads(plash("history", "--json", number).out)[:1]
    assert made["made_by"] == [*["build", "-e", "A", "-eB", "-e", "C", image, "echo -e shown=1"]]
    url = f"file://user:hidden@localhost{host_tar}?hidden"
    result = plash("pull:url", url)
    if not result.status:
        (made,) = json.loads(plash("history", "--json", result.id).out)
        assert made["made_by"] == ["pull:url", f"file://localhost{host_tar}"]
    found = plash("sudo", "grep", "-r", "hidden", plash.data / "layer", plash.data / "index")
    assert found.out == ""


def test_what_commands_note(plash, image, host_tar):
    (plash.place / "d").mkdir()
    (plash.place / "f").touch()
    for words in (
        ["stack", image, "d"],
        ["check", image, "f"],
        ["cache", "build", "-e", "X=1", image, "true"],
        ["pull:host", "sh"],
    ):
        (made, *_) = json.loads(plash("history", "--json", plash(*words).id).out)
        argv = [word.partition("=")[0] if word == "X=1" else word for word in words]
        assert made["made_by"] == (argv[1:] if words[0] == "cache" else argv)


def test_an_image_of_an_older_plash(plash, image):
    (plash.data / f"layer/0/{image}/_data/made.json").unlink()
    (made,) = json.loads(plash("history", "--json", image).ok().out)
    assert made["made_by"] == [] and made["created"] <= time.time()
    plash("history", image).ok()
    for text in '{"argv', "[]", '{"argv": 3}', '{"argv": [1]}', "[" * 100_000:
        (plash.data / f"layer/0/{image}/_data/made.json").write_text(text)
        assert json.loads(plash("history", "--json", image).ok().out)[0]["made_by"] == []


def test_an_image_without_layers_of_its_own_has_its_parents_configuration_not_its_history(
    plash, image
):
    child = plash("build", image, "true").id
    own = json.loads((plash.data / f"layer/0/{image}/{child}/_data/made.json").read_text())
    assert own["argv"] == ["build", image, "true"] and abs(own["created"] - time.time()) < 60


def test_what_a_build_changes(plash, image):
    first = plash(
        "build", image, "mkdir -p /d/e /gone/x /same; echo 1 >/d/e/f; echo >/d/g; echo >/became"
    ).id
    second = plash(
        "build",
        first,
        "echo 2 >/d/e/f; rm -r /gone /d/g /became; mkdir /became; echo >/became/x; touch /new;"
        "chmod 700 /same; ln -s x /d/link",
    ).id
    expected = """\
C /became
A /became/x
C /d
C /d/e
C /d/e/f
D /d/g
A /d/link
D /gone
A /new
C /same
"""
    assert plash("diff", second).ok().out == expected
    assert plash("diff", first, second).ok().out == expected
    assert plash("diff", first, first).ok().out == ""
    back = plash("diff", second, first).ok().out.splitlines()
    assert "D /new" in back and "A /gone/x" in back and "C /d/e/f" in back
    assert f"A {os.path.realpath('/bin')}/sh" in plash("diff", image).ok().out.splitlines()
    odd = plash("build", image, r"touch \"$(printf '/a\nb')\" /c\ d".replace('\\"', '"')).id
    assert plash("diff", odd).ok().out == "A /a\\nb\nA /c d\n"


def test_an_opaque_directory_and_one_replaced(plash, image):
    first = plash("build", image, "mkdir -p /d/e; echo >/d/e/f; echo >/d/g").id
    second = plash("build", first, "rm -r /d; mkdir -p /d/e; echo >/d/h").id
    assert plash("diff", second).ok().out == "C /d\nC /d/e\nD /d/e/f\nD /d/g\nA /d/h\n"


def test_two_images_that_share_nothing(plash, image, host_tar):
    other = plash("build", plash("pull:tarfile", host_tar).id, "echo >/out").id
    assert plash("diff", image, other).ok().out == "A /out\n"


def test_more_directories_below_each_other_than_python_has_frames(plash, image):
    code = "cd /; i=0; while [ $i -lt 1200 ]; do mkdir d; cd d; i=$((i+1)); done"
    number = plash("build", image, code).id
    lines = plash("diff", number).ok().out.splitlines()
    assert len(lines) == 1200 and lines[-1] == "A " + "/d" * 1200


@pytest.mark.slow
@pytest.mark.only_for("root")
def test_as_podman_has_it(plash, image):
    """The same two layers in podman, by its own comparison of them."""
    need_program("podman", "skopeo", "runc")
    import engines

    before = plash("build", image, "mkdir -p /d/e /gone/x; echo 1 >/d/e/f; echo >/d/g; echo >/h").id
    code = (
        "echo 22 >/d/e/f; rm -r /gone /d/g; touch /new; chmod 700 /h; mkdir -p /n/m; echo >/n/m/o"
    )
    after = plash("build", before, code).id
    plash("push:oci", after, "oci:layout:x").ok()
    with engines.podman(plash.place / "podman") as podman:
        podman("pull", f"oci:{plash.place}/layout:x")
        (number,) = podman("images", "--quiet", "--no-trunc").split()
        expected = podman("diff", number).splitlines()
    ours = plash("diff", after).ok().out.splitlines()
    # podman pairs a kind and a path, in an order of its own.
    assert sorted(ours) == sorted(" ".join(line.split()) for line in expected)


def test_config_is_what_made_an_image_with_another_configuration(plash, image):
    made = plash("config", "--env=SECRET=x", "--cmd=ls -l", image).id
    assert "config --env=SECRET '--cmd=ls -l' " + image in plash("history", made).ok().out
