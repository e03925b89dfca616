"""plash build:file: Containerfiles."""

import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pty
import tarfile
import threading

import corpus
import pytest
from archives import archive, info
from conftest import kind_of_user, need_program, needs_subordinate_ids
from world import LIBEXEC, ROOT

pytest.importorskip("e2b_dockerfile_utils", reason="needs e2b-dockerfile-utils")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def build(plash, image):
    """A function that builds the text of a Containerfile on the image `base`; returns the Result."""
    plash("map", "base", image).ok()
    (plash.place / "context").mkdir()

    def built(text, *options, **more):
        (plash.place / "context/Containerfile").write_bytes(
            text if isinstance(text, bytes) else text.encode()
        )
        return plash("build:file", *options, "context", **more)

    return built


@pytest.fixture
def put(plash):
    """A function that writes a file of the context."""

    def written(path, content="x\n", mode=0o644):
        file = plash.place / "context" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        file.chmod(mode)
        return file

    return written


def shown(plash, image, *command):
    return plash("run", "--no-home", "--no-tmp", image, *command).ok().out


def settings(plash, image):
    return json.loads(plash("config", image).ok().out)["config"]


def images(plash):
    return len(os.listdir(plash.data / "index"))


def test_built_twice_nothing_runs_and_the_id_is_the_same(plash, build, put):
    put("file")
    text = "FROM base\nENV A=1\nWORKDIR /w\nCOPY file .\nRUN echo $A >a\nCMD cat a\n"
    first, count = build(text).id, images(plash)
    os.utime(plash.place / "context/file", (1, 1))
    again = build(text)
    assert (again.id, again.err, images(plash)) == (first, "", count)
    put("file", "y\n")
    changed = build(text).id
    assert changed != first and shown(plash, changed, "cat", "/w/file") == "y\n"
    put("file", "y\n", 0o600)
    assert build(text).id not in (first, changed)
    assert int(build(text, "--no-cache").id) > int(changed)


def test_commands_share_what_instructions_made(plash, build):
    made = build('FROM base\nENV A=1\nRUN ["sh", "-c", "echo $A >/a"]\n').id
    base = plash("map", "base").ok().out.strip()
    env = plash("cache", "config", "--env=A=1", base).id
    argv = ("build", "-w", "/", "--keep-tmp", env, "sh", "-c", "echo $A >/a")
    assert plash("cache", *argv).id == made


def test_what_one_run_leaves_in_tmp_the_next_finds(plash, build, put):
    put("script", "echo ran >/result\n")
    made = build(
        "FROM base\nCOPY script /tmp/\nRUN sh /tmp/script; echo >/tmp/mark\nRUN ls /tmp/mark\n"
    ).id
    assert shown(plash, made, "cat", "/result") == "ran\n"


def test_variables_are_expanded_as_buildkit_does(plash, build):
    text = (corpus.CORPUS / "patterns/Containerfile").read_text()
    env = settings(plash, build(text).id)["Env"][1:]
    # By the reference of BuildKit: # and % are shortest matches, ## and %% longest.
    assert env == [
        "FIRST=usr/local/lib.tar.gz",
        "LONGEST=lib.tar.gz",
        "LAST=/usr/local/lib.tar",
        "ALL=/usr/local/lib",
        "ONE=/usr/locAl/lib.tar.gz",
        "EACH=/usr/locAl/lib.tAr.gz",
        "MISSING=/usr/local/lib.tar.gz",
        "QUESTION=/local/lib.tar.gz",
        "KEPT=set",
        "NOT=un/usr/local/lib.tar.gzset",
    ]


def test_build_arguments(plash, build):
    text = (
        "ARG B=base\nFROM ${B}\nARG A=default\nARG U\nENV A2=$A U2=${U:-unset}\nRUN echo $A >/a\n"
    )
    made = build(text).id
    assert settings(plash, made)["Env"][1:] == ["A2=default", "U2=unset"]
    other = build(text, "--build-arg=A=given", "--build-arg", "U", env={"U": "of env"})
    assert settings(plash, other.id)["Env"][1:] == ["A2=given", "U2=of env"]
    assert shown(plash, other.id, "cat", "/a") == "given\n"
    assert "no ARG asks for --build-arg NO" in build(text, "--build-arg=NO=1").ok().err


@pytest.mark.parametrize("platform", ["linux/arm/v7", "linux/riscv64"])
def test_a_platform_sets_the_variables_of_buildkit(plash, build, platform):
    names = ["TARGETPLATFORM", "TARGETOS", "TARGETARCH", "TARGETVARIANT"]
    text = "FROM base\n" + "".join(f"ARG {name}\nENV {name}=${name}\n" for name in names)
    done = build(text, f"--platform={platform}").ok()
    values = [platform, *platform.split("/"), ""][:4]
    expected = [f"{name}={value}" for name, value in zip(names, values)]
    assert settings(plash, done.id)["Env"][1:] == expected
    assert "image base is for linux/" in done.err and "not for linux/" in done.err


def test_a_platform_has_a_system_and_an_architecture(build):
    assert "OS/ARCH[/VARIANT]" in build("FROM base\n", "--platform=arm64").error
    assert "1: FROM --platform=linux/ base: " in build("FROM --platform=linux/ base\n").error


def test_an_arg_does_not_know_its_neighbour(plash, build):
    text = "ARG T=base R=$T\nFROM $R\nARG A=one B=${A}-two\nARG C=${A}-three\nENV X=$B Y=$C\n"
    assert settings(plash, build(text).id)["Env"][1:] == ["X=-two", "Y=one-three"]


@needs_subordinate_ids
def test_what_a_stage_gives_keeps_its_owners(plash, build, put):
    put("f")
    text = (
        "FROM base AS one\n"
        "RUN mkdir -p /o/p && echo a >/o/p/f && chown -R 5:1 /o && chmod 700 /o && ln -s /no/x /dang\n"
        "FROM one\n"
        "COPY --from=one /o /c1\nCOPY --from=one /o/p/f /c2\nCOPY --from=one --chown=7:8 /o/p/f /c3\n"
        "COPY --chown=5 f /c4\nCOPY --chown=:9 --chmod=00644 f /c5\nCOPY f /dang\n"
        "RUN stat -c '%n %u:%g %a' /c1 /c1/p /c1/p/f /c2 /c3 /c4 /c5 /no /no/x >/out\n"
    )
    assert shown(plash, build(text).id, "cat", "/out").splitlines() == [
        "/c1 0:0 755",
        "/c1/p 5:1 755",
        "/c1/p/f 5:1 644",
        "/c2 5:1 644",
        "/c3 7:8 644",
        "/c4 5:5 644",
        "/c5 0:9 644",
        "/no 0:0 755",
        "/no/x 0:0 644",
    ]


def test_the_home_that_env_says(plash, build):
    text = (
        "FROM base\nRUN echo app:x:0:0::/passwd:/bin/sh >>/etc/passwd\nENV HOME=/custom\nUSER app\n"
    )
    made = build(text + "RUN echo $HOME >/out\nCMD echo $HOME\nWORKDIR /new/dir\n").id
    assert shown(plash, made, "cat", "/out") == "/custom\n"
    assert plash("run:image", made).ok().out == "/custom\n"
    made = plash(
        "config",
        "--user=",
        "--workingdir=/not/there",
        '--cmd=["sh", "-c", "pwd; echo $HOME"]',
        made,
    ).id
    assert plash("run:image", made).ok().out == "/not/there\n/custom\n"


def test_an_added_archive_stays_where_it_belongs(plash, build, put):
    """A link in its way is replaced, and .. leads no higher than the target, as docker has it."""
    members = (
        ("d/", None),
        ("d/f", b"in d"),
        ("/abs", b"abs"),
        ("../../up", b"up"),
        ("dir", b"a file over a directory"),
        ("file/", None),
        ("twice", b"1"),
        ("twice", b"2"),
    )
    entries = [
        info(name.rstrip("/"), tarfile.DIRTYPE) if content is None else (info(name), content)
        for name, content in members
    ]
    links = [
        info("hard", tarfile.LNKTYPE, linkname="/twice"),
        info("up-link", tarfile.SYMTYPE, linkname="/"),
    ]
    (plash.place / "context" / "a.tar").write_bytes(archive(*entries, *links))
    text = (
        "FROM base\nRUN mkdir -p /t/dir/x && echo f >/t/file && ln -s /etc /t/d && echo kept >/etc/f\n"
        "ADD a.tar /t/\n"
    )
    made = build(text).id
    code = "cat /etc/f; cd /t; ls; cat d/f abs up dir twice hard; test -d file && test ! -L d"
    listed = shown(plash, made, "sh", "-c", code)
    assert listed == (
        "kept\nabs\nd\ndir\nfile\nhard\ntwice\nup\nup-link\nin dabsupa file over a directory22"
    )
    (plash.place / "context" / "a.tar").write_bytes(
        archive(info("l", tarfile.LNKTYPE, linkname="no"))
    )
    assert "No such file" in build(text).error


def test_parents_of_any_depth(plash, build, put):
    for path in "a/b/c/g", "a/g", "x/g":
        put(path)
    made = build("FROM base\nCOPY --parents a/**/g /p/\n").id
    assert sorted(shown(plash, made, "find", "/p", "-type", "f").split()) == [
        "/p/a/b/c/g",
        "/p/a/g",
    ]


def test_heredocs(plash, build):
    made = build((corpus.CORPUS / "heredocs/Containerfile").read_text()).id
    for path, content in {
        "/run-heredoc": "hello world\none\ntwo\n",
        "/from-stdin": "no $NAME here\n",
        "/tabs": "tabs\n",
        "/shebang": "bash yes\n",
        "/files/ONE": "hello world $NAME default\n",
        "/files/TWO": "raw $NAME \\$NAME\n",
        "/etc/stripped.conf": "indented\ntwice\n",
    }.items():
        assert shown(plash, made, "cat", path) == content, path


def test_line_endings_bom_escape_and_comments_inside(plash, build, put):
    put("file")
    made = build((corpus.CORPUS / "line-endings/Containerfile").read_bytes()).id
    assert shown(plash, made, "cat", "/two", "/file") == "two\nx\n"
    assert settings(plash, made)["Labels"] == {"path": "C:\\dir"}
    assert settings(plash, made)["Env"][1:] == ["A=x", "B=y"]


def test_the_ignore_file_leaves_out_and_takes_back(plash, build):
    plash.run(["cp", "-r", f"{corpus.CORPUS}/ignore/.", "context"]).ok()
    for path in ".hg/config", "src/node_modules/x/i.js", "a.log", "b.tmp", "important/deep/x.tmp":
        (plash.place / "context" / path).parent.mkdir(parents=True, exist_ok=True)
        (plash.place / "context" / path).write_text("x")
    made = build("FROM base\nCOPY . /c/\n").id
    found = plash("mounted", made, "find", "c", "-type", "f").ok().out.split()
    assert sorted(found) == [
        "c/.dockerignore",
        "c/Containerfile",
        "c/build/out/o",
        "c/docs/README.md",
        "c/important/deep/x.tmp",
        "c/keep.log",
        "c/src/a.log",
        "c/src/s.js",
    ]


def test_names_and_modes_of_chown_and_chmod(plash, build, put):
    put("file")
    made = build(
        "FROM base\nRUN echo app:x:1234:2345::/:/bin/sh >>/etc/passwd\n"
        "COPY --chown=app --chmod=u=rwX,go= file /a\nCOPY --chown=7:8 --chmod=4711 file /b\n"
    )
    listed = plash("mounted", made.id, "stat", "-c", "%a %u:%g", "a", "b").ok().out
    if kind_of_user() == "plain":
        assert listed == "600 0:0\n4711 0:0\n" and "owners were not kept" in made.err
    else:
        assert listed == "600 1234:2345\n4711 7:8\n"


def test_links_of_the_image_never_lead_out_of_it(plash, build, put):
    put("file", "mine\n")
    outside = plash.place / "outside"
    outside.mkdir()
    made = build(
        f"FROM base\nRUN ln -s {outside} /abs; ln -s ../../../../{outside} /up\n"
        "COPY file /abs/one\nCOPY file /up/two\nWORKDIR /abs/three\n"
    ).id
    assert os.listdir(outside) == []
    listed = plash("mounted", made, "ls", f".{outside}").ok().out.split()
    assert listed == ["one", "three", "two"]
    put("evil/.keep")
    os.symlink("/etc/passwd", plash.place / "context/evil/passwd")
    assert "No such file" in build("FROM base\nCOPY evil/passwd /p\n").error


def test_scratch_needs_nothing_in_the_image(plash, build, put):
    put("app", "app", 0o755)
    made = build(
        'FROM scratch\nCOPY app /bin/\nENV A=1\nWORKDIR /data\nENTRYPOINT ["/bin/app"]\n'
    ).id
    assert sorted(plash("mounted", made, "find", ".").ok().out.split()) == [
        ".",
        "./bin",
        "./bin/app",
        "./data",
    ]


def test_stages(plash, build):
    text = (
        "FROM base AS one\nRUN echo 1 >/one\nFROM base AS broken\nRUN exit 9\n"
        "FROM scratch AS files\nCOPY --from=one /one /renamed\nFROM base\nCOPY --from=files / /f/\n"
        "COPY --from=0 /on* /g/\n"
    )
    made = build(text).id
    assert shown(plash, made, "cat", "/f/renamed", "/g/one") == "1\n1\n"
    assert shown(plash, build(text, "--target=one").id, "cat", "/one") == "1\n"
    assert "exit status 9" in build(text, "--target=broken").err
    assert "has no stage nothing" in build(text, "--target=nothing").error


def test_archives_are_added_unpacked(plash, build):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("d/file")
        info.size, info.mode = 2, 0o640
        tar.addfile(info, io.BytesIO(b"x\n"))
    (plash.place / "context/plain").write_bytes(made.getvalue())
    (plash.place / "context/packed").write_bytes(gzip.compress(made.getvalue()))
    (plash.place / "context/text.tar.gz").write_bytes(gzip.compress(b"no tar"))
    image = build("FROM base\nADD plain packed text.tar.gz /a/\nCOPY plain /b\n").id
    listed = plash("mounted", image, "find", "a", "b", "-type", "f", "-printf", "%p %m\n").ok().out
    assert sorted(listed.splitlines()) == ["a/d/file 640", "a/text.tar.gz 644", "b 644"]


def test_an_archive_that_is_broken_is_not_added(plash, build):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(os.urandom(info.size)))
    packed = bytearray(gzip.compress(made.getvalue()))
    packed[-8] ^= 1  # of the checksum
    (plash.place / "context/sum.tgz").write_bytes(packed)
    (plash.place / "context/cut.tgz").write_bytes(packed[:50_000])
    (plash.place / "context/cut.tar").write_bytes(made.getvalue()[:50_000])
    for name, why in (
        ("sum.tgz", "ended with status"),
        ("cut.tgz", "not a sound tar archive"),
        ("cut.tar", "not a sound tar archive"),
    ):
        assert why in build(f"FROM base\nADD {name} /a/\n").error


def test_a_containerfile_on_a_closed_stdin(plash, build):
    code = 'exec "$0" build:file -f - . <&-'
    done = plash.run(["sh", "-c", code, ROOT / "bin/plash"])
    assert done.error == "plash build:file: stdin: Bad file descriptor"


def test_a_data_directory_with_a_colon(plash, host_tar):
    plash.env["PLASH_DATA"] = f"{plash.place}/a:b"
    plash("map", "base", plash("pull:tarfile", host_tar).id).ok()
    text = "FROM base\nRUN <<EOF\n#!/bin/sh\necho x >/x\nEOF\n"
    (plash.place / "Containerfile").write_text(text)
    assert shown(plash, plash("build:file").id, "cat", "/x") == "x\n"


def test_a_url_is_added_and_its_checksum_verified(plash, build):
    need_program("curl")
    (plash.place / "served").mkdir()
    (plash.place / "served/file.txt").write_text("served\n")
    digest = hashlib.sha256(b"served\n").hexdigest()
    handler = functools.partial(Quiet, directory=plash.place / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            text = f"FROM base\nADD --checksum=sha256:{digest} {address}/file.txt /got/\n"
            made = build(text).id
            assert build(text).id == made
            assert "its sha256 is" in build(text.replace(digest, "0" * 64)).error
        finally:
            server.shutdown()
    assert shown(plash, made, "cat", "/got/file.txt") == "served\n"


def test_run_mounts(plash, build, put):
    text = (corpus.CORPUS / "mounts/Containerfile").read_text()
    put("file", "file\n")
    secret = plash.place / "secret"
    secret.write_text("s3cret\n")
    made = build(text, f"--secret=id=token,src={secret}").id
    files = "/c1", "/c2", "/from-context", "/one", "/from-stage", "/rw", "/tmpfs", "/secret"
    out = shown(plash, made, "cat", *files)
    assert out == "cached\ncached\nfile\nfile\nother\n/mnt/rw/new\nx\nS3CRET\n"
    assert "s3cret" not in plash("mounted", made, "grep", "-r", "s3cret", "etc", "run").out
    plash("clean").ok()


def test_a_mount_below_another(plash, build, put):
    put("src/main.c")
    text = (
        "FROM base\nRUN --mount=type=bind,target=/app,rw --mount=type=cache,target=/app/target"
        " --mount=type=cache,target=/c --mount=type=cache,target=/c/d"
        " touch /app/target/t /c/d/e && ls /app /app/target /c/d >/out\n"
    )
    listed = shown(plash, build(text).id, "cat", "/out").split()
    assert {"/app:", "src", "target", "t", "e"} <= set(listed)
    assert not (plash.place / "context/target").exists()
    text = text.replace(",rw", "")
    assert "cannot bind the cache mount on /app/target: " in build(text).error
    plash("clean").ok()


def test_a_cache_begins_as_a_copy_of_an_image(plash, build):
    text = (
        "FROM base AS first\nRUN mkdir /d && echo given >/d/file\nFROM base\n"
        "RUN --mount=type=cache,target=/c,from=first,source=/d cp /c/file /1 && echo more >>/c/file\n"
        "RUN --mount=type=cache,target=/c,from=first,source=/d cp /c/file /2\n"
        "RUN --mount=type=cache,target=/c ls /c >/3\n"
    )
    made = build(text).id
    assert shown(plash, made, "cat", "/1", "/2", "/3") == "given\ngiven\nmore\n"
    plash("clean").ok()


def test_a_secret_that_is_required_and_one_that_is_not(plash, build):
    text = "FROM base\nRUN --mount=type=secret,id=no ls /run/secrets/no || echo none >/none\n"
    assert shown(plash, build(text).id, "cat", "/none") == "none\n"
    text = text.replace("id=no", "id=no,required")
    assert "there is no --secret id=no" in build(text).error


def test_onbuild_runs_in_what_is_built_on_it(plash, build, put):
    put("file")
    first = build((corpus.CORPUS / "onbuild-base/Containerfile").read_text()).id
    plash("map", "on", first).ok()
    made = build("FROM on\n").id
    assert shown(plash, made, "cat", "/app/triggered", "/app/file") == "built\nx\n"
    assert "OnBuild" not in settings(plash, made)
    assert "TRIGGERED=yes" in settings(plash, made)["Env"]


def test_parents_and_exclude(plash, build):
    plash.run(["cp", "-r", f"{corpus.CORPUS}/parents-exclude/.", "context"]).ok()
    made = build((corpus.CORPUS / "parents-exclude/Containerfile").read_text()).id
    found = plash("mounted", made, "find", "parents", "pivot", "excluded", "-type", "f").ok().out
    assert sorted(found.split()) == [
        "excluded/keep",
        "excluded/sub/k.md",
        "parents/a/b/c.txt",
        "parents/x/y/z/f",
        "pivot/b/c.txt",
    ]


@pytest.mark.parametrize(
    "text, why",
    [
        (
            "FROM base\nRUN --network=none true\n",
            "2: RUN --network=none true: --network can only be",
        ),
        (
            "FROM base\nRUN --security=insecure true\n",
            "2: RUN --security=insecure true: --security",
        ),
        ("FROM base\nRUN --mount=type=cache,target=/c,sharing=x true\n", "sharing of --mount is"),
        ("FROM base\nRUN --mount=type=cache,target=/c,source=/x true\n", "needs from"),
        ("FROM base\nRUN --mount=type=ssh,uid=1 true\n", "the agent's socket keeps its owner"),
        ("FROM base\nRUN --device=x true\n", "2: RUN --device=x true: there is no flag --device"),
        ("FROM base\nADD --checksum=sha256:0 http://[::1]/a b /c/\n", "is for one URL"),
        ("FROM base\nCOPY --nonsense a b\n", "2: COPY --nonsense a b: there is no flag --nonsense"),
        ("FROM base\n\nCOPY missing /\n", "3: COPY missing /: missing: No such file"),
        ("FROM base\nNONSENSE\n", "2: unknown instruction: NONSENSE"),
        ("FROM base\nRUN <<EOF\nx\n", "2: unterminated heredoc"),
        ("RUN x\n", "1: RUN x: only ARG can stand before the first FROM"),
        ("FROM base\nENV A\n", "2: ENV must have two arguments"),
        ("FROM base\nEXPOSE x\n", "2: EXPOSE x: not a port: 'x'"),
        ("FROM base\nEXPOSE ²\n", "2: EXPOSE ²: not a port: '²'"),
        ("FROM base\nEXPOSE 1-²\n", "not a port: '1-²'"),
        ("FROM base\nEXPOSE " + "9" * 5000 + "\n", "not a port: '999"),
        ("FROM base\nHEALTHCHECK --retries=² CMD x\n", "not a number: '²'"),
        ("FROM base\nCOPY x[z-a] /y\n", "not a pattern: 'x[z-a]'"),
        (
            "FROM base\nRUN --mount=type=tmpfs,target=/t,size=abc true\n",
            "not a size of --mount=type=tmpfs: 'abc'",
        ),
        ("FROM base\nRUN --mount=target=/t,source=missing true\n", "missing: No such file"),
        (
            "FROM base\nRUN --mount=target=/t,from=base,source=missing true\n",
            "missing: No such file",
        ),
        (
            "FROM base\nRUN --mount=target=/t,source=Containerfile,rw true\n",
            "rw of --mount is for directories",
        ),
        ("FROM base\nHEALTHCHECK --interval=1 CMD x\n", "not a duration: '1'"),
        ("FROM scratch\nRUN true\n", "2: RUN true: the image is empty"),
        ("FROM base\nUSER ${A?message}\n", "message"),
        ("FROM base\nADD git@example.org:x/y.git /y\n", "ADD of a Git repository is not supported"),
        ("FROM base\nCOPY Containerfile Containerfile /nowhere\n", "has to end with /"),
        ("", "has no FROM"),
    ],
)
def test_errors_name_file_line_and_instruction(plash, build, text, why):
    result = build(text)
    assert why in result.error and result.error.startswith("plash build:file: ")
    assert "context/Containerfile" in result.error


def test_a_command_that_fails_is_named(plash, build):
    result = build("FROM base\nRUN echo output; exit 3\n")
    assert (result.status, result.out) == (1, "")
    assert result.err == (
        "output\nplash build:file: context/Containerfile:2: RUN echo output; exit 3:"
        " the command failed with exit status 3\n"
    )


def test_no_host_hides_the_host(plash, build):
    text = "FROM base\nRUN ls /host/etc >/list || echo hidden >/list\n"
    assert shown(plash, build(text).id, "cat", "/list") != "hidden\n"
    assert shown(plash, build(text, "--no-host").id, "cat", "/list") == "hidden\n"


def test_the_history_of_what_is_pushed_names_the_instructions(plash, build):
    need_program("skopeo")
    made = build("FROM base\nENV A=1\nRUN echo >/a\n").id
    plash("push:oci", made, f"oci:{plash.place}/layout:x").ok()
    argv = ["skopeo", "inspect", "--config", "--raw", f"oci:{plash.place}/layout:x"]
    config = json.loads(plash.run(argv).ok().out)
    found = [(each["created_by"], each.get("empty_layer", False)) for each in config["history"]]
    assert found[1:] == [("ENV A=1", True), ("RUN /bin/sh -c echo >/a", False)]
    assert len(config["rootfs"]["diff_ids"]) == 2


# What buildah 1.28 does not know, or does in another way than BuildKit, which `python tests/corpus.py`
# compares too: the ARGs of a stage are not those of a stage on it.
COMPARED = set(corpus.NAMES) - {"heredocs", "parents-exclude", "patterns", "onbuild", "args"}
# The root of an archive gives its owner to the directory that it is unpacked in.
KNOWN = {"add-archives": ("packed", "plain", "several", "owned")}


@pytest.mark.slow
@pytest.mark.only_for("root")
@pytest.mark.parametrize("name", sorted(COMPARED))
def test_the_same_comes_of_it_as_of_buildah(plash, image, name, tmp_path):
    need_program("buildah", "umoci", "skopeo", "runc")
    image = plash("config", '--cmd=["sh"]', image).id
    plash("map", "base", image).ok()
    plash("push:oci", image, f"oci:{tmp_path}/base:x").ok()

    def call(*argv):
        return plash(*argv).ok().out.strip()

    ours = corpus.unpacked(corpus.by_plash(call, name, "base", tmp_path)[1], tmp_path)
    buildah = corpus.Buildah(tmp_path)
    try:
        theirs = corpus.unpacked(buildah.build(name, f"oci:{tmp_path}/base:x"), tmp_path)
    finally:
        buildah.remove()
    skipped = KNOWN.get(name, ())
    assert [
        line for line in corpus.differences(ours[0], theirs[0]) if line.split(":")[0] not in skipped
    ] == []
    for gone in "Healthcheck", "Shell", "OnBuild":  # which OCI's own format of buildah has not
        ours[1].pop(gone, None)
    assert corpus.differences(ours[1], theirs[1]) == []
    plash("clean").ok()


def test_a_terminal_shows_the_steps(plash, build, put):
    put("file")
    (plash.place / "file.txt").write_text(
        "FROM base\nRUN echo one\nCOPY file /x\nRUN echo two; false\n"
    )

    def typed():
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(plash.place)
            command = LIBEXEC / "plash-build:file"
            os.execve(command, [command, "-f", "file.txt", "context"], plash.env)
        output = b""
        try:
            while piece := os.read(fd, 4096):
                output += piece
        except OSError:
            pass  # EIO: nobody has the terminal open any more
        os.close(fd)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        return output.decode().splitlines()

    failed = (
        "plash build:file: file.txt:4: RUN echo two; false: the command failed with exit status 1"
    )
    end = ["4/4 RUN echo two; false", "two", failed]
    steps = ["1/4 FROM base (remembered)", "2/4 RUN echo one", "one", "3/4 COPY file /x"]
    assert typed() == steps + end
    steps = [line + " (remembered)" for line in steps if line[:2] in ("2/", "3/")]
    assert typed() == ["1/4 FROM base (remembered)", *steps, *end]
