"""plash on a cluster, as docs/cluster.md has it: Slurm, GNU parallel over ssh, and make, all real."""

import contextlib
import json
import os
import subprocess

import pytest
import servers
from layouts import push
from requirements import need_program
from world import ROOT, Plash, wait_for

pytestmark = pytest.mark.slow

TOOL = """#!/bin/sh
id=$(plash cache pull:oci --tls-verify=false {ref}) && exec plash run "$id" "$@"
"""
NODES = "n1", "n2", "n3", "n4"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, registry, host_tar):
    """A Slurm whose nodes have a store each; with `tool`, which runs a command in an image that they get from a registry."""
    need_program("slurmctld", "slurmd", "munged", "srun")
    world = Plash(tmp_path_factory.mktemp("cluster"))
    with open(host_tar, "rb") as file:
        ref = push(world, registry, "cluster", [file.read()], {"Env": ["IN=image"]})
    tool = world.place / "tool"
    tool.write_text(TOOL.format(ref=ref))
    tool.chmod(0o755)
    world.env = {
        **world.env,
        "PATH": f"{ROOT}/bin:{world.env['PATH']}",
        "PLASH_EXPORT": "SLURM*",
        "XDG_RUNTIME_DIR": str(world.place),
    }
    store = f"{world.place}/stores"
    place = tmp_path_factory.mktemp("slurm")
    with servers.slurm(place, NODES, f'echo "export PLASH_DATA={store}/$SLURMD_NODENAME"\n') as env:
        world.env.update(env)
        world.store = store
        world.run(["srun", "-N4", "./tool", "true"]).ok()
        yield world
    world("sudo", "rm", "-rf", store).ok()


def srun(cluster, *words, **options):
    return cluster.run(["srun", "--quiet", *words], **options)


def test_each_node_has_its_image(cluster):
    done = srun(
        cluster,
        "-n8",
        "-N4",
        "./tool",
        "sh",
        "-c",
        'echo $IN $SLURM_PROCID of $SLURM_NTASKS; test "$SLURMD_NODENAME"',
    ).ok()
    assert (
        sorted(done.out.splitlines()) == [f"image {number} of 8" for number in range(8)]
        and done.err == ""
    )


def test_only_what_is_named_passes(cluster):
    assert (
        srun(cluster, "./tool", "sh", "-c", "echo ${SLURM_JOB_ID:-none}", env={"PLASH_EXPORT": ""})
        .ok()
        .out
        == "none\n"
    )


@pytest.mark.parametrize("status", [0, 7, 127])
def test_exit_status(cluster, status):
    assert srun(cluster, "./tool", "sh", "-c", f"exit {status}").status == status


def test_stdin_and_the_working_directory(cluster):
    (cluster.place / "work").mkdir(exist_ok=True)
    done = srun(
        cluster,
        "../tool",
        "sh",
        "-c",
        "cat; pwd",
        cwd=cluster.place / "work",
        input=b"some\0 bytes\n",
    ).ok()
    assert done.out == f"some\0 bytes\n{cluster.place}/work\n"


def test_a_job_array(cluster):
    (cluster.place / "out").mkdir()
    (cluster.place / "job").write_text(
        "#!/bin/sh\n./tool sh -c 'echo $SLURM_ARRAY_TASK_ID; exit $((SLURM_ARRAY_TASK_ID == 5))'\n"
    )
    done = cluster.run(["sbatch", "--parsable", "--wait", "--array=0-9", "--output=out/%a", "job"])
    assert done.status == 1  # the highest of the tasks
    assert [(cluster.place / f"out/{number}").read_text() for number in range(10)] == [
        f"{number}\n" for number in range(10)
    ]


def started(cluster, code):
    """A job that is running, its id, and the file that it writes to."""
    told = cluster.place / "told"
    told.unlink(missing_ok=True)
    process = subprocess.Popen(
        ["srun", "--job-name=told", "./tool", "sh", "-c", code],
        cwd=cluster.place,
        env=cluster.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: told.exists() and told.read_text())
    number = cluster.run(["squeue", "--noheader", "--name=told", "--format=%A"]).ok().out.strip()
    return process, number, told


def test_scancel_tells_the_command(cluster):
    process, number, told = started(
        cluster, 'trap "echo term >>told; exit 3" TERM; echo up >>told; while :; do sleep 0.1; done'
    )
    cluster.run(["scancel", number]).ok()
    process.communicate(timeout=60)
    assert told.read_text() == "up\nterm\n" and process.returncode


def test_a_signal_of_scancels(cluster):
    process, number, told = started(
        cluster, 'trap "echo usr1 >>told; exit 3" USR1; echo up >>told; while :; do sleep 0.1; done'
    )
    cluster.run(["scancel", "--signal=USR1", number]).ok()
    process.communicate(timeout=60)
    assert told.read_text() == "up\nusr1\n" and process.returncode == 3


def test_scancel_ends_what_hears_no_signal(cluster):
    need_program("pgrep")
    sleep = f"sleep 5{os.getpid()}"
    process, number, told = started(cluster, f'trap "" TERM; echo up >>told; exec {sleep}')
    cluster.run(["scancel", number]).ok()
    process.communicate(timeout=60)
    wait_for(
        lambda: (
            subprocess.run(
                ["pgrep", "-U", str(os.getuid()), "-f", sleep], capture_output=True
            ).returncode
        )
    )
    assert told.read_text() == "up\n"


def test_a_hundred_tasks_on_a_cold_store_fetch_once(cluster, registry):
    """The layer comes once, and all tasks run."""
    cold = f"{cluster.place}/cold"
    registry.fetched()
    code = f'PLASH_DATA={cold} exec ./tool sh -c "echo \\$SLURM_PROCID"'
    done = srun(cluster, "-N1", "-n100", "--overcommit", "sh", "-c", code).ok()
    assert sorted(map(int, done.out.split())) == list(range(100)) and done.err == ""
    assert cluster("tree", "-q", env={"PLASH_DATA": cold}).ok().out == "1\n"
    with open(f"{cold}/layer/0/1/_data/descriptor.json", encoding="utf-8") as file:
        assert registry.fetched().count(json.load(file)["digest"]) == 1
    cluster("sudo", "rm", "-rf", cold).ok()


def test_parallel_over_ssh(cluster, tmp_path_factory):
    need_program("parallel", "ssh", "sshd")
    with contextlib.ExitStack() as opened:
        settings = opened.enter_context(
            servers.sshd(
                tmp_path_factory.mktemp("ssh"),
                ["one", "two"],
                {
                    "PATH": cluster.env["PATH"],
                    "PLASH_DATA": f"{cluster.store}/n1",
                    "XDG_RUNTIME_DIR": cluster.place,
                },
            )
        )
        words = [
            "parallel",
            "--will-cite",
            "--ssh",
            f"ssh -F {settings}",
            "--sshlogin",
            "4/one,4/two",
            "--wd",
            cluster.place,
        ]
        done = cluster.run(
            [
                *words,
                "--keep-order",
                "./tool",
                "sh",
                "-c",
                "'echo $0 $IN; pwd'",
                ":::",
                *map(str, range(20)),
            ]
        ).ok()
        assert done.out == "".join(f"{number} image\n{cluster.place}\n" for number in range(20))
        # parallel's status is the number of jobs that failed.
        assert (
            cluster.run(
                [*words, "./tool", "sh", "-c", "'exit $0'", ":::", "0", "3", "0", "7"]
            ).status
            == 2
        )
        lines = "".join(f"{number}\n" for number in range(100))
        done = cluster.run([*words, "--pipe", "-N10", "./tool", "cat"], input=lines).ok()
        assert sorted(done.out.split()) == sorted(lines.split())


def test_a_makefile(cluster):
    place = cluster.place / "make"
    place.mkdir()
    (place / "Makefile").write_text(
        "all: $(patsubst %.in,%.out,$(wildcard *.in))\n%.out: %.in\n\t../tool tr a-z A-Z <$< >$@\n"
        "bad:\n\t../tool sh -c 'exit 9'\n"
    )
    for number in range(10):
        (place / f"{number}.in").write_text(f"text {number}\n")
    env = {"PLASH_DATA": f"{cluster.store}/n1"}
    cluster.run(["make", "-j8"], cwd=place, env=env).ok()
    assert [(place / f"{number}.out").read_text() for number in range(10)] == [
        f"TEXT {number}\n" for number in range(10)
    ]
    done = cluster.run(["make", "bad"], cwd=place, env=env)
    assert done.status == 2 and "Error 9" in done.err
