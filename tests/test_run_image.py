"""plash run:image: images that say how they run."""

import json

from conftest import kind_of_user, needs_subordinate_ids

SHOW = ["sh", "-c", 'for each; do echo "<$each>"; done', "sh"]


def config(plash, image, *options):
    return plash("config", *options, image).id


def test_entrypoint_gets_the_arguments_or_else_cmd(plash, image):
    made = config(plash, image, f"--entrypoint={json.dumps(SHOW)}", '--cmd=["a", "b c"]')
    assert plash("run:image", made).ok().out == "<a>\n<b c>\n"
    assert plash("run:image", made, "-x", "--y").ok().out == "<-x>\n<--y>\n"


def test_cmd_alone_is_the_command_and_arguments_replace_it(plash, image):
    made = config(plash, image, '--cmd=["echo", "cmd"]')
    assert plash("run:image", made).ok().out == "cmd\n"
    assert plash("run:image", made, "echo", "mine").ok().out == "mine\n"


def test_it_starts_in_the_working_directory_with_the_variables(plash, image):
    image = plash("build", image, "mkdir -p /srv/app").id
    made = config(
        plash, image, "--workingdir=/srv/app", "--env=A=1", '--cmd=["sh", "-c", "pwd; echo $A"]'
    )
    assert plash("run:image", made).ok().out == "/srv/app\n1\n"
    assert plash("run:image", "-e", "A=2", made).ok().out == "/srv/app\n2\n"


def test_a_home_of_the_image_is_seen_if_it_works_there(plash, image):
    image = plash("build", image, "mkdir -p /home/node/app; echo mine >/home/node/app/file").id
    made = config(plash, image, "--workingdir=/home/node/app", '--cmd=["cat", "file"]')
    assert plash("run:image", made).ok().out == "mine\n"


def test_it_runs_as_the_user(plash, image):
    image = plash(
        "build", image, "echo app:x:1234:2345::/srv:/bin/sh >>/etc/passwd; mkdir -p /srv"
    ).id
    made = config(
        plash, image, "--user=app", '--cmd=["sh", "-c", "echo $HOME; cat /proc/self/status"]'
    )
    result = plash("run:image", made).ok()
    if kind_of_user() == "plain":
        assert "running as root, not as app: no subordinate ids" in result.err
    else:
        assert result.out.startswith("/srv\n") and "Uid:\t1234\t1234" in result.out


@needs_subordinate_ids
def test_a_user_that_the_image_lacks_is_an_error(plash, image):
    made = config(plash, image, "--user=nobody-there", '--cmd=["true"]')
    assert "the image has no user 'nobody-there'" in plash("run:image", made).error


def test_an_image_without_a_command_says_so(plash, image):
    assert plash("run:image", image).error == (
        f"plash run:image: image {image} has no Entrypoint and no Cmd (plash config sets them)"
    )
