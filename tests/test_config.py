"""plash config: OCI configurations, shown and changed."""

import json

import pytest


def settings(plash, image):
    return json.loads(plash("config", image).ok().out)["config"]


def test_config_shows_what_an_image_was_given(plash, image):
    made = plash(
        "config",
        *("--env=A=1", "--env=B=two words", "--workingdir=/srv", "--user=app:grp"),
        *('--entrypoint=["/bin/echo", "x"]', "--cmd=a 'b c'", '--shell=["/bin/bash", "-c"]'),
        *("--label=one=1", "--port=80", "--port=53/udp", "--volume=/data"),
        *("--stop-signal=SIGINT", "--arch=arm/v7"),
        image,
    ).id
    assert settings(plash, made) == {
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "A=1",
            "B=two words",
        ],
        "WorkingDir": "/srv",
        "User": "app:grp",
        "Entrypoint": ["/bin/echo", "x"],
        "Cmd": ["a", "b c"],
        "Shell": ["/bin/bash", "-c"],
        "Labels": {"one": "1"},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Volumes": {"/data": {}},
        "StopSignal": "SIGINT",
    }
    whole = json.loads(plash("config", made).ok().out)
    assert (whole["architecture"], whole["variant"], whole["os"]) == ("arm", "v7", "linux")


def test_what_was_set_can_be_removed(plash, image):
    made = plash(
        "config",
        *("--env=A=1", "--env=B=2", "--label=one=1", "--label=two=2", "--port=80", "--volume=/v"),
        *("--user=app", "--workingdir=/w", "--cmd=x", "--entrypoint=y", "--stop-signal=INT"),
        image,
    ).id
    less = plash(
        "config",
        *("--env=A-", "--label=one-", "--port=80-", "--volume=/v-", "--user=", "--workingdir="),
        *("--cmd=", "--entrypoint=", "--stop-signal="),
        made,
    ).id
    found = settings(plash, less)
    assert sorted(found) == ["Env", "Labels"] and found["Labels"] == {"two": "2"}
    assert found["Env"][1:] == ["B=2"]
    assert settings(plash, plash("config", "--env=-", "--label=-", less).id) == {}


def test_an_entrypoint_that_is_a_line_is_for_the_new_shell(plash, image):
    made = plash("config", '--shell=["/bin/bash", "-c"]', "--entrypoint=echo hi", image).id
    assert settings(plash, made)["Entrypoint"] == ["/bin/bash", "-c", "echo hi"]


def test_run_and_what_is_built_on_an_image_have_its_configuration(plash, image):
    made = plash("config", "--env=GREETING=hello world", image).id
    built = plash("build", made, 'echo "$GREETING" >/greeting').id
    assert plash("run", built, "cat", "/greeting").ok().out == "hello world\n"
    assert plash("run", built, "sh", "-c", "echo $GREETING").ok().out == "hello world\n"
    assert settings(plash, built) == settings(plash, made)


def test_config_is_remembered_by_do_and_cache(plash, image):
    first = plash("cache", "config", "--env=A=1", image).id
    assert plash("cache", "config", "--env=A=1", image).id == first
    assert plash("cache", "config", "--env=A=2", image).id != first


@pytest.mark.parametrize(
    "option, why",
    [
        ("--port=http", "not a port: 'http'"),
        ("--env==x", "not a variable: '=x'"),
        ("--cmd='open", "not a command"),
        ("--arch=", "an image cannot be without an architecture"),
    ],
)
def test_nonsense_is_refused_in_one_line(plash, image, option, why):
    assert why in plash("config", option, image).error


def test_deep_brackets_are_a_line_for_the_shell(plash, image):
    deep = "[" * 9999
    made = plash("config", "--cmd=" + deep, image).id
    assert settings(plash, made)["Cmd"] == [deep]


def test_an_image_without_a_configuration_says_so(plash, image):
    assert plash("config", image).error.startswith(
        f"plash config: image {image} has no configuration"
    )
