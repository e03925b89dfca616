"""cache, check, recall, do, and what clean, rm, shrink and map do about them."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from requirements import as_user, need_program
from world import ROOT, wait_for

SCRIPT = """#!/bin/sh -e
plash do pull:tarfile host.tar
plash do build -b . 'echo one >> log; echo 1 > /one'
plash do check requirements.txt
plash do build -b . 'echo two >> log; cp requirements.txt /two'
plash do run cat /one /two
"""


@pytest.fixture
def project(plash, host_tar):
    """A directory with a script that builds in steps, each of which leaves a line in `log`."""
    place = plash.place / "project"
    place.mkdir()
    os.symlink(host_tar, place / "host.tar")
    (place / "requirements.txt").write_text("a\n")
    (place / "script").write_text(SCRIPT)
    (place / "script").chmod(0o755)
    plash.env["PATH"] = f"{ROOT / 'bin'}:{plash.env['PATH']}"
    return place


def script(plash, project, **options):
    return plash.run([project / "script"], cwd=project, start_new_session=True, **options)


def in_session(plash, project, *lines):
    """Run lines of shell in one new session, each as a process of its own."""
    code = "\n".join(f"sh -c {shlex.quote(line + '; :')}" for line in lines)
    return plash.run(["sh", "-c", code], cwd=project, start_new_session=True)


def test_a_script_builds_once(plash, project):
    first = script(plash, project)
    assert (first.ok().out, first.err) == ("1\na\n", "")
    again = script(plash, project)
    assert (again.ok().out, again.err) == ("1\na\n", "")
    assert (project / "log").read_text() == "one\ntwo\n"
    (project / "requirements.txt").write_text("b\n")
    assert script(plash, project).ok().out == "1\nb\n"
    assert (project / "log").read_text() == "one\ntwo\ntwo\n"


def test_a_script_from_two_sessions_at_once(plash, project):
    processes = [
        subprocess.Popen(
            [project / "script"],
            cwd=project,
            env=plash.env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == [b"1\na\n"] * 2
    assert (project / "log").read_text() == "one\ntwo\n"


def test_different_scripts_at_once_in_one_session(plash, project):
    need_program("make")
    for name in "xyz":
        (project / name).write_text(
            "#!/bin/sh -e\nplash do pull:tarfile host.tar\n"
            + "".join(f"plash do build 'echo {name}{step} >> /steps'\n" for step in range(3))
            + "plash do run cat /steps\n"
        )
        (project / name).chmod(0o755)
    (project / "Makefile").write_text("all: x.out y.out z.out\n%.out: %\n\t./$< > $@\n")
    plash.run(["make", "-j3"], cwd=project, start_new_session=True).ok()
    for name in "xyz":
        assert (project / f"{name}.out").read_text() == "".join(
            f"{name}{step}\n" for step in range(3)
        )


def test_one_session_has_one_image(plash, project):
    result = in_session(
        plash,
        project,
        "plash recall pull:tarfile host.tar",
        "plash recall build true",
        "sh -c 'plash recall id; :'",
        "plash recall parent",
    )
    assert (result.out, result.err) == ("2\n1\n", "")


def test_the_sessions_image_gets_a_name(plash, project):
    code = (
        "plash do pull:tarfile host.tar; plash do build 'echo named >/out'; plash do map tools;"
        " plash recall map again; plash do map; plash run tools cat /out; plash do map tools 1;"
        " plash do map tools; plash do map again ''; plash map"
    )
    done = plash.run(["setsid", "-w", "sh", "-c", code], cwd=project).ok()
    assert done.out == "again 2\ntools 2\nnamed\ntools 2\n" and done.err == ""


def test_recall_without_an_image(plash, project):
    result = in_session(plash, project, "plash recall run true")
    assert (
        result.err == "plash recall: the session has no image yet; begin with one such as"
        " `plash do pull:lxc alpine:edge`\n"
    )
    result = in_session(
        plash, project, "plash do pull:tarfile host.tar", "plash rm 1", "plash do run true"
    )
    assert (
        result.err
        == "plash do: image 1, the session's last, was removed; begin again with one such as"
        " `plash do pull:lxc alpine:edge`\n"
    )


def test_recall_passes_on_what_prints_no_id(plash, project):
    result = in_session(
        plash,
        project,
        "plash do pull:tarfile host.tar",
        "plash do run cat",
        "plash do version",
        'plash do run sh -c "exit 7"; echo $?',
        "plash recall map",
        "plash recall nope",
    )
    version = plash("version").out
    assert result.out == version + "7\n"
    assert result.err == "plash: no such command: nope (`plash help` lists all)\n"


def test_recall_of_a_plugin(plash, project):
    for name, text, code in (
        ("takes", "Usage: plash takes ID [WORD]", 'echo "$@"'),
        (
            "makes",
            "Usage: plash makes ID\n# Prints: new ID",
            'plash-build "$1" true',
        ),
        ("says", "Usage: plash says WORD", 'echo "$@"; exit 5'),
    ):
        (project / f"plash-{name}").write_text(f"#!/bin/sh\n# Do something.\n#\n# {text}\n{code}\n")
        (project / f"plash-{name}").chmod(0o755)
    plash.env["PATH"] += f":{project}"
    result = in_session(
        plash,
        project,
        "plash recall pull:tarfile host.tar",
        "plash recall makes",
        "plash recall takes x",
        "plash recall says y; echo $?",
    )
    assert (result.out, result.err) == ("2 x\ny\n5\n", "")


def test_clean_forgets_sessions_that_ended(plash, project):
    recall = plash.data / "recall"
    in_session(plash, project, "plash recall pull:tarfile host.tar")
    assert os.listdir(recall)
    result = in_session(
        plash,
        project,
        "plash recall id",
        "plash recall pull:tarfile host.tar",
        "plash clean",
        "plash recall id",
    )
    assert (result.out, result.err) == (
        "2\n",
        "plash recall: the session has no image yet; begin with one such as"
        " `plash do pull:lxc alpine:edge`\n",
    )
    code = "plash recall pull:tarfile host.tar; ls $PLASH_DATA/recall"
    gone = plash.run(["sh", "-c", code], cwd=project, start_new_session=True).ok().out.split()
    assert gone
    plash("clean").ok()
    assert not set(gone) & set(os.listdir(recall))


def test_cache_goes_by_the_exact_words(plash, image):
    first = plash("cache", "build", image, "echo", "a").id
    assert plash("cache", "build", image, "echo", "a").id == first
    others = [
        plash("cache", "build", image, *words).id
        for words in (["echo", "b"], ["echo", "a", ""], ["echo", "a", "b"], ["echo", "b", "a"])
    ]
    assert len({first, *others}) == 5
    plash("rm", "--recursive", first).ok()
    again = plash("cache", "build", image, "echo", "a").id
    assert again not in (first, *others)
    assert plash("cache", "build", image, "echo", "a").id == again


def test_cache_of_a_command_that_fails(plash, image, tmp_path):
    (tmp_path / "plash-fails").write_text("#!/bin/sh\necho x >> log; echo sorry >&2; exit 7\n")
    (tmp_path / "plash-fails").chmod(0o755)
    plash.env["PATH"] += f":{tmp_path}"
    for _ in range(2):
        result = plash("cache", "fails")
        assert (result.status, result.out, result.err) == (7, "", "sorry\n")
    assert (plash.place / "log").read_text() == "x\nx\n"
    assert (
        plash("cache", "version").error
        == "plash cache: `plash version` makes no image, so there is nothing to remember"
    )
    assert "did you mean build" in plash("cache", "buidl", "1").error
    assert os.listdir(plash.data / "cache") == []


def slow_build(plash, image):
    """Start a cached build that waits for a file, and return once it runs."""
    code = f"echo run >> {plash.place}/log; while test ! -e {plash.place}/go; do sleep 0.02; done"
    cached = plash.start(
        "cache",
        "build",
        "-b",
        f"{plash.place}:/w",
        image,
        f"cd /w; {code.replace(str(plash.place) + '/', '')}",
    )
    return cached


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def test_two_at_once_of_which_one_builds(plash, image):
    log = plash.place / "log"
    first = slow_build(plash, image)
    wait_for(lambda: lines(log) == 1)
    second = slow_build(plash, image)
    time.sleep(0.3)
    (plash.place / "go").touch()
    assert first.communicate(timeout=60)[0] == second.communicate(timeout=60)[0] == b"2\n"
    assert lines(log) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_one_that_waits_takes_over(plash, image, number):
    log = plash.place / "log"
    first = slow_build(plash, image)
    wait_for(lambda: lines(log) == 1)
    second = slow_build(plash, image)
    time.sleep(0.3)
    first.send_signal(number)
    first.communicate(timeout=60)
    wait_for(lambda: lines(log) == 2)
    (plash.place / "go").touch()
    out = second.communicate(timeout=60)[0].decode().strip()
    assert plash("id", out).id == out
    images = [name for name in os.listdir(plash.data / "index") if name != "0"]
    assert sorted(images) == sorted([image, out])
    wait_for(lambda: plash.leftovers() == [])


def test_ctrl_c_of_cache(plash, image):
    need_program("pkill")
    cached = slow_build(plash, image)
    wait_for(lambda: lines(plash.place / "log") == 1)
    subprocess.run(["pkill", "-INT", "-P", str(cached.pid)], check=True)
    cached.send_signal(signal.SIGINT)
    assert cached.wait(timeout=60) in (130, -signal.SIGINT)
    assert cached.stderr.read() == b"" and plash.leftovers() == []


def test_check_goes_by_content(plash, image, layers):
    place = plash.place / "tree"
    (place / "d/empty").mkdir(parents=True)
    (place / "d/file").write_text("x")
    os.symlink("file", place / "d/link")
    seen = {}

    def same(what):
        number = plash("check", image, "tree").id
        assert seen.setdefault(number, what) == what, f"{what} is seen as {seen[number]}"
        assert plash("check", image, "tree").id == number
        return number

    first = same("first")
    assert layers(first) == []
    assert plash("parent", first).out.strip() == image
    os.utime(place / "d/file", (1, 1))
    assert same("first") == first
    (place / "d/file").write_text("y")
    same("bytes")
    (place / "d/file").chmod(0o755)
    same("mode")
    (place / "d/file").rename(place / "d/file2")
    same("name")
    (place / "d/link").unlink()
    os.symlink("file2", place / "d/link")
    same("link target")
    (place / "d/link").unlink()
    (place / "d/link").write_text("file2")
    same("type")
    (place / "d/empty").rename(place / "empty")
    same("place")
    os.mkfifo(place / "fifo")
    same("fifo")
    (place / os.fsdecode(b"\xff\n")).touch()
    same("odd name")
    os.remove(place / "fifo")
    os.remove(place / os.fsdecode(b"\xff\n"))
    same("place")
    assert plash("check", first, "tree").id not in seen


def test_check_of_a_link_sees_the_link_and_what_it_leads_to(plash, image):
    (plash.place / "a").write_text("x")
    (plash.place / "b").write_text("x")
    link = plash.place / "link"
    os.symlink("a", link)
    by_a = plash("check", image, "link").id
    link.unlink()
    os.symlink("b", link)
    by_b = plash("check", image, "link").id
    (plash.place / "b").write_text("y")
    changed = plash("check", image, "link").id
    link.unlink()
    os.symlink("gone", link)
    assert len({by_a, by_b, changed, plash("check", image, "link").id}) == 4


def test_the_root_directory_is_as_below_a_check(plash, image):
    number = plash("build", image, "chmod 711 /").id
    checked = plash("check", number, "/etc/passwd").id
    assert plash("run", checked, "stat", "-c", "%a", "/").out == "711\n"


@as_user
def test_check_of_what_can_not_be_read(plash, image):
    (plash.place / "d").mkdir()
    (plash.place / "d/secret").touch(0)
    before = plash.snapshot()
    assert plash("check", image, "d").error == "plash check: d/secret: Permission denied"
    assert plash("check", image, "gone").error == "plash check: gone: No such file or directory"
    assert plash.snapshot() == before


def test_rm_tells_of_names(plash, image):
    child = plash("build", image, "true").id
    other = plash("build", image, "true").id
    plash("map", "my name", child).ok()
    plash("map", "other", other).ok()
    result = plash("rm", "--recursive", child).ok()
    assert (result.out, result.err) == (
        "",
        f"plash rm: image {child} is removed, and so is its name 'my name'\n",
    )
    assert plash("map").out == f"other {other}\n"


def test_rm_of_several_at_once_is_all_or_nothing(plash, image):
    child = plash("build", image, "true").id
    other = plash("build", image, "true").id
    with plash.start("run", child, "cat") as run:
        run.stdin.write(b"x\n")
        run.stdin.flush()
        run.stdout.readline()
        before = plash.snapshot()
        assert (
            f"image {child} is in use by process {run.pid}"
            in plash("rm", "--recursive", other, child).error
        )
        assert (
            f"image {image} is in use by process {run.pid}"
            in plash("rm", "--recursive", image).error
        )
        assert plash.snapshot() == before
        plash("rm", "--recursive", other, image, child, child, "--force").ok()
        run.stdin.close()
    assert os.listdir(plash.data / "layer/0") == ["_data"]


def test_clean_goes_by_the_process_not_by_its_number(plash, image):
    """Entries of another boot, of a process whose number another has by now, of a process that lives."""
    live = plash("mkdtemp").out.strip()
    pid, start, namespace, boot, _ = os.path.basename(live).split(".")
    gone = [
        f"{pid}.{int(start) + 1}.{namespace}.{boot}",
        f"{pid}.{start}.{namespace}.{boot[:-4]}0000",
        f"99999999.{start}.{namespace}.{boot}",
    ]
    if os.readlink("/proc/self/ns/pid") == "pid:[4026531836]":
        # From the initial pid namespace all others can be seen, so one that is not seen is gone.
        gone.append(f"{pid}.{start}.1.{boot}")
    for other in gone:
        (plash.data / "tmp" / f"{other}.abc").mkdir()
        os.symlink("../index/1", plash.data / "recall" / other)
    os.symlink("../index/1", plash.data / "recall" / os.path.basename(live).rpartition(".")[0])
    plash("clean").ok()
    assert plash.leftovers() == [os.path.basename(live)]
    assert os.listdir(plash.data / "recall") == [os.path.basename(live).rpartition(".")[0]]
    os.rmdir(live)


def test_purge_leaves_work_in_progress_alone(plash, image):
    pull = plash.start("pull:tarfile")
    wait_for(plash.leftovers)
    assert "a command works in" in plash("purge", "--yes").error
    assert plash("run", image, "true").status == 0
    pull.stdin.close()
    pull.wait(timeout=60)


def test_work_of_one_name_is_waited_for(plash):
    """By any number of processes at once, of which each finds the directory made or removed by others at any moment."""
    plash("init").ok()
    code = "from plashlib import work\nfor turn in range(400):\n    with work.Work('same'): pass"
    env = {**plash.env, "PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    assert {process.communicate()[1] for process in running} == {b""}
