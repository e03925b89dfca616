"""The cache never gives another input's image; a step that failed stops those that follow."""

import os
import pty
import select
import signal
import time

import pytest
from requirements import as_user
from world import ROOT, wait_for


def content(plash, image_id, path="/out"):
    return plash("run", image_id, "cat", path).ok().out


def test_shell_code_on_stdin(plash, image):
    ids = [
        plash("cache", "build", image, input=f"echo {text} >/out").id for text in ("a", "b", "a")
    ]
    assert ids[0] == ids[2]
    assert [content(plash, each) for each in ids[:2]] == ["a\n", "b\n"]


def test_the_value_of_a_variable_named_alone(plash, image):
    def build(env, *options):
        return plash("cache", "build", *options, image, "echo $V >/out", env=env).id

    first = build({"V": "a"}, "-e", "V")
    assert content(plash, build({"V": "b"}, "-e", "V")) == "b\n"
    assert build({"V": "a"}, "-eV") != build({}, "-e", "V") != first
    assert build({"V": "a"}, "-e", "V") == first
    exported = [build({"PLASH_EXPORT": "W:V*", "V": value}) for value in "abb"]
    assert [content(plash, each) for each in exported] == ["a\n", "b\n", "b\n"]
    assert exported[1] == exported[2]
    assert build({"V": "a"}) == build({"V": "b"})


def test_variables_of_plash(plash, image):
    ids = [
        plash("cache", "build", image, "echo $PLASH_X >/out", env={"PLASH_X": value}).id
        for value in "aba"
    ]
    assert [content(plash, each) for each in ids[:2]] == ["a\n", "b\n"] and ids[0] == ids[2]
    plain = plash("cache", "build", image, "true").id
    assert plash("cache", "build", image, "true", env={"PLASH_DEBUG": "1"}).id == plain


def test_an_archive_that_changes(plash, host_tar):
    tar = plash.place / "x.tar"
    os.symlink(host_tar, tar)
    first = plash("cache", "pull:tarfile", "x.tar").id
    assert plash("cache", "pull:tarfile", tar).id != first  # as the arguments are others
    assert plash("cache", "pull:tarfile", "x.tar").id == first
    other = plash("build", first, "echo new >/out").id
    tar.unlink()
    plash("push:tarfile", other, tar).ok()
    assert content(plash, plash("cache", "pull:tarfile", "x.tar").id) == "new\n"
    # Other bytes of the same number, and with the same modification time.
    before = plash("cache", "pull:tarfile", "x.tar").id
    status = tar.stat()
    with tar.open("r+b") as file:
        data = file.read()
        file.seek(data.index(b"new\n"))
        file.write(b"two\n")
    os.utime(tar, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = plash("cache", "pull:tarfile", "x.tar").id
    assert after != before and content(plash, after) == "two\n"


def test_relative_paths_and_the_working_directory(plash, image):
    for name in "ab":
        (plash.place / name).mkdir()
        (plash.place / name / "f").write_text(name)
        (plash.place / name / "d").mkdir()
        (plash.place / name / "d/g").write_text(name)

    def build(name, *words):
        return plash("cache", "build", *words, cwd=plash.place / name).id

    for words in (
        [image, "cp f /out"],
        ["-b", "f:/f", image, "cp /f /out"],
        ["-b", "d:/d:ro", image, "cp /d/g /out"],
    ):
        ids = [build(name, *words) for name in "aba"]
        assert [content(plash, each) for each in ids[:2]] == ["a", "b"] and ids[0] == ids[2]
    # What runs elsewhere does not depend on it.
    assert build("a", "-w", "/", image, "true") == build("b", "-w", "/", image, "true")


def test_what_a_bind_shows(plash, image):
    place = plash.place / "d"
    (place / "e").mkdir(parents=True)
    (place / "e/f").write_text("1")
    words = ["cache", "build", "-b", "d:/d:ro", image, "cp /d/e/f /out"]
    first = plash(*words).id
    assert plash(*words).id == first
    (place / "e/f").write_text("2")
    assert content(plash, plash(*words).id) == "2"
    # What a build may write to is no input.
    words = ["cache", "build", "-b", "d:/d", image, "date >>/d/log"]
    assert plash(*words).id == plash(*words).id
    assert (place / "log").read_text().count("\n") == 1


def test_a_directory_that_is_imported(plash, image):
    assert plash("push:dir", image, "root").status == 0
    first = plash("cache", "pull:dir", "root").id
    assert plash("cache", "pull:dir", "root").id == first
    plash("sudo", "sh", "-c", "echo x >root/etc/out").ok()
    second = plash("cache", "pull:dir", "root").id
    assert second != first and content(plash, second, "/etc/out") == "x\n"
    plash("sudo", "rm", "-rf", plash.place / "root").ok()


def test_what_can_not_be_known_is_refused(plash, image, host_tar):
    for words in ["pull:tarfile", "-"], ["pull:tarfile"]:
        with open(host_tar) as stdin:
            assert plash("cache", *words, stdin=stdin).error == (
                "plash cache: what `plash pull:tarfile` reads from stdin cannot be remembered"
                " (name a FILE, or use plash recall)"
            )
    reader, terminal = pty.openpty()
    assert (
        plash("cache", "build", image, stdin=terminal).error
        == "plash cache: what is typed in a shell cannot be remembered (use plash recall)"
    )
    os.close(reader)
    os.close(terminal)
    assert plash("cache", "pull:tarfile", "gone.tar").error == (
        f"plash cache: {plash.place}/gone.tar: No such file or directory"
    )
    assert os.listdir(plash.data / "cache") == []


def test_a_command_that_is_given_reads_nothing(plash, image):
    number = plash("cache", "build", image, "cat >/out", input="data").id
    assert content(plash, number) == ""


def test_a_file_that_changes_meanwhile_is_not_remembered(plash, image):
    (plash.place / "f").write_text("1")
    words = ["cache", "build", "-b", "f:/f", image, "cat /f >/out; echo 2 >/f"]
    first = plash(*words).id
    assert content(plash, first) == "1" and content(plash, plash(*words).id) == "2\n"


def test_a_name_means_the_image_that_has_it_now(plash, image):
    other = plash("build", image, "echo other >/base").id
    names = plash("map", "base", image)
    if plash("id", "base").status:
        pytest.skip("an ID is no name yet")
    names.ok()
    words = ["cache", "build", "base", "true"]
    first = plash(*words).id
    assert plash("cache", "build", image, "true").id == first
    plash("map", "base", other).ok()
    assert content(plash, plash(*words).id, "/base") == "other\n"


def test_refresh(plash, image):
    words = ["build", image, "true"]
    first = plash("cache", *words).id
    second = plash("cache", "--refresh", *words).id
    assert second != first and plash("cache", *words).id == second
    third = plash("cache", *words, env={"PLASH_NO_CACHE": "1"}).id
    assert third not in (first, second) and plash("cache", *words).id == third
    plash("cache", "--refresh", "build", image, "false")
    assert plash("cache", *words).id == third


@pytest.fixture
def project(plash, host_tar):
    place = plash.place / "project"
    place.mkdir()
    os.symlink(host_tar, place / "host.tar")
    plash.env["PATH"] = f"{ROOT / 'bin'}:{plash.env['PATH']}"
    return place


def script(plash, project, *lines, **options):
    (project / "script").write_text("\n".join(lines) + "\n")
    return plash.run(["sh", "script"], cwd=project, start_new_session=True, **options)


AFTER_FAILURE = (
    "plash do: a step before this one failed (begin again with one such as"
    " `plash do pull:lxc alpine:edge`)\n"
)


def test_a_heredoc_in_a_script(plash, project):
    lines = ["plash do pull:tarfile host.tar", "plash do build <<END", "echo one >/out", "END"]
    run = "plash do run cat /out"
    assert script(plash, project, *lines, run).ok().out == "one\n"
    lines[2] = "echo two >/out"
    assert script(plash, project, *lines, run).ok().out == "two\n"
    # The steps leave the script's own stdin alone.
    lines = [
        lines[0],
        "printf '1\\n2\\n' | while read n; do plash do build \"echo $n >>/out\"; done",
    ]
    assert script(plash, project, *lines, run).ok().out == "1\n2\n"


@pytest.mark.parametrize(
    "failing",
    [
        "plash do build false",
        "plash recall build false",
        "plash do check gone",
        "plash do pull:tarfile gone.tar",
        "plash do buidl true",
        "plash do build --gone true",
        "sh -c 'plash do build false; :'",
        "echo x | plash do pull:tarfile -",
        "plash do build 'kill -9 $PPID'; plash do build 'exit 3' || :",
    ],
)
def test_a_step_that_fails_stops_the_script(plash, project, failing):
    result = script(
        plash,
        project,
        "plash do pull:tarfile host.tar",
        failing,
        "plash do build 'echo more >/out'",
        "plash do run echo ran",
        "plash recall id",
    )
    assert (result.status, result.out) == (1, "")
    lines = result.err.splitlines(keepends=True)
    assert lines[-3:] == [AFTER_FAILURE] * 2 + [AFTER_FAILURE.replace("do:", "recall:", 1)]


def test_a_step_that_is_killed_stops_the_script(plash, project):
    result = script(
        plash,
        project,
        "plash do pull:tarfile host.tar",
        "plash do build -b . 'echo >started; exec sleep 100' & step=$!",
        "until test -e started; do sleep 0.05; done; kill -9 $step; wait $step 2>/dev/null",
        "plash do build true",
    )
    assert result.status == 1 and result.err.endswith(AFTER_FAILURE), result.err
    wait_for(lambda: plash("clean").ok() and plash.leftovers() == [])


def test_a_step_that_begins_anew(plash, project):
    result = script(
        plash,
        project,
        "plash do pull:tarfile host.tar",
        "plash do build false",
        "plash do pull:tarfile host.tar",
        "plash do run echo ran",
        "plash do run false; plash do run echo again",
    )
    assert (result.status, result.out) == (0, "ran\nagain\n"), result.err


def test_after_recall_pull_the_next_step_goes_on_from_the_fresh_image(plash, project):
    first = script(plash, project, "plash do pull:tarfile host.tar", "plash recall id").ok().out
    result = script(
        plash,
        project,
        "plash recall pull:tarfile host.tar",
        "plash do build true",
        "plash recall parent",
    ).ok()
    assert result.out not in ("", first)


def test_steps_at_once_from_one_image(plash, project):
    result = script(
        plash,
        project,
        "plash do pull:tarfile host.tar",
        "plash do build 'sleep 1; echo 1 >/out' & sleep 0.5",
        "plash do run echo meanwhile",
        "wait; plash do run cat /out",
    ).ok()
    assert result.out == "meanwhile\n1\n"


class Shell:
    """A shell on a terminal of its own, as a person has it."""

    def __init__(self, plash, *argv, cwd=None):
        pid, self.fd = pty.fork()
        if not pid:
            os.chdir(cwd or plash.place)
            os.execvpe(argv[0], argv, {**plash.env, "PS1": "ready> "})
        self.pid, self.seen = pid, ""

    def wait_for(self, text):
        end = time.monotonic() + 30
        while text not in self.seen:
            assert select.select([self.fd], [], [], end - time.monotonic())[0], self.seen
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def end(self):
        try:
            while select.select([self.fd], [], [], 30)[0] and os.read(self.fd, 4096):
                pass
        except OSError:
            pass  # no process has the terminal open any more
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_person_goes_on_from_the_image_before(plash, project):
    shell = Shell(plash, "bash", "--norc", "--noprofile", "-i", cwd=project)
    (project / "script").write_text(
        "plash do pull:tarfile host.tar\nplash do build 'echo 1 >/out'\n"
        "plash do build false\nplash do run echo wrong\n"
    )
    try:
        for line, answer in (
            ("sh script; echo status $?", "a step before this one failed"),
            ("plash do build 'echo 2 >>/out'; echo status $?", "status 0"),
            ("plash do build false; echo status $?", "status 1"),
            ("plash do run cat /out; echo status $?", "1\r\n2\r\nstatus 0"),
        ):
            shell.wait_for("ready> ")
            shell.type(line)
            shell.wait_for("status $?")
            shell.wait_for(answer)
    finally:
        os.kill(shell.pid, signal.SIGKILL)
        shell.end()


def test_keep_failed(plash, image):
    result = plash("build", "--keep-failed", image, "echo kept >/out; exit 7")
    assert result.status == 1
    head, _, number = result.error.rpartition(" ")
    assert head == "plash build: the command failed with exit status 7; what it did is image"
    assert content(plash, number) == "kept\n"
    result = plash("cache", "build", "--keep-failed", image, "false")
    assert (result.status, result.out) == (1, "")
    assert os.listdir(plash.data / "cache") == []


@pytest.mark.parametrize(
    "answer, kept", [("y", True), ("", True), ("n", False), ("No", False)], ids=str
)
def test_a_shell_whose_last_command_failed(plash, image, answer, kept):
    shell = Shell(plash, ROOT / "bin/plash", "build", image)
    shell.type("echo work >/out; false; exit")
    shell.wait_for("failed with exit status 1. Keep the image? [Y/n] ")
    shell.type(answer)
    shell.wait_for("2" if kept else "nothing was kept")
    assert shell.end() == (0 if kept else 1)
    if kept:
        assert content(plash, "2") == "work\n"


@as_user
def test_a_directory_with_files_of_subordinate_ids(plash, image):
    """The walk that tells whether it changed sees what the import sees."""
    plash("push:dir", image, "root").ok()
    plash(
        "sudo",
        "sh",
        "-c",
        "mkdir -m 700 root/private; chown 1:1 root/private; echo >root/private/f",
    )
    first = plash("cache", "pull:dir", "root").id
    assert plash("cache", "pull:dir", "root").id == first
    plash("sudo", "sh", "-c", "echo 2 >root/private/f").ok()
    assert plash("cache", "pull:dir", "root").id != first
    plash("sudo", "rm", "-rf", plash.place / "root").ok()


def test_a_containerfile_remembers_by_its_content(plash, image):
    plash("map", "base", image).ok()
    made = {}
    for project in "one", "two":
        (plash.place / project).mkdir()
        (plash.place / project / "Containerfile").write_text(
            f"FROM base\nRUN echo {project} >/out\n"
        )
        made[project] = plash("cache", "build:file", ".", cwd=plash.place / project).id
    assert made["one"] != made["two"]
    again = plash("cache", "build:file", "one")
    assert again.id == made["one"]
    (plash.place / "one/Containerfile").write_text("FROM base\nRUN echo new >/out\n")
    assert plash("cache", "build:file", "one").id not in made.values()
    fresh = plash("cache", "--refresh", "build:file", "two").id
    assert fresh not in made.values()
    assert plash("cache", "build:file", "-f", "-", "two", input="FROM base\nLABEL a=b\n").ok()


def test_what_makes_no_image_is_not_remembered(plash, image):
    plash("map", "tools", image).ok()
    for words in (
        ["map", "tools"],
        ["id", "tools"],
        ["cache", "id", "1"],
        ["do", "id"],
        ["recall", "id"],
    ):
        assert "makes no image" in plash("cache", *words).error


def test_variables_that_begin_like_plashs_own(plash, image):
    first = plash("cache", "build", image, "true", env={"PLASH_DATASET": "a"}).id
    assert plash("cache", "build", image, "true", env={"PLASH_DATASET": "b"}).id != first


def test_config_is_a_step(plash, project):
    lines = [
        "plash do pull:tarfile host.tar",
        "plash do config --env=A=b",
        "plash do run sh -c 'echo $A'",
    ]
    assert script(plash, project, *lines).ok().out == "b\n"
    lines = ["plash do config | head -n 1", "plash do config --env==x", "plash do run echo ran"]
    result = script(
        plash, project, "plash do pull:tarfile host.tar", "plash do config --env=A=b", *lines
    )
    assert (result.status, result.out) == (1, "{\n") and result.err.endswith(AFTER_FAILURE)
