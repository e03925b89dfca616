"""init and data: where the store is, and what is in a new one."""

import os

import pytest


def test_init_makes_the_store_as_documented(plash):
    assert plash("init").ok().out == ""
    assert sorted(os.listdir(plash.data)) == [
        "cache",
        "format",
        "id_counter",
        "index",
        "layer",
        "map",
        "mnt",
        "pidns",
        "recall",
        "tmp",
    ]
    assert (plash.data.stat().st_mode & 0o777) == 0o700
    assert os.readlink(plash.data / "index/0") == "../layer/0"
    assert plash("init").ok().out == ""


@pytest.mark.parametrize(
    "env, path",
    [
        ({"PLASH_DATA": "{0}/a"}, "{0}/a"),
        ({"PLASH_DATA": "", "XDG_DATA_HOME": "{0}/b"}, "{0}/b/plash"),
        ({"PLASH_DATA": "", "XDG_DATA_HOME": ""}, "{0}/home/.local/share/plash"),
        ({"PLASH_DATA": "rel"}, "{0}/rel"),
    ],
)
def test_where_the_store_is(plash, tmp_path, env, path):
    env = {name: value.format(tmp_path) for name, value in env.items()}
    assert plash("data", env=env).ok().out == path.format(tmp_path) + "\n"
    assert os.path.isdir(path.format(tmp_path) + "/layer/0/_data/root")


def test_data_runs_a_command_there(plash):
    assert plash("data", "pwd").ok().out == f"{plash.data}\n"
    assert plash("data", "sh", "-c", "exit 5").status == 5
