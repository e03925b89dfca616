"""Helper programs such as tar and skopeo: how they are found and started.

What the caller's environment says changes no result, and no helper looks for code in its working
directory, which may be an image's root. Every helper ends when the thread that started it ends,
whatever ends that: prctl(2), PR_SET_PDEATHSIG.
"""

import os
import subprocess

from plashlib import namespaces, processes

# What helpers get of the caller's environment. All else, such as TAR_OPTIONS, GZIP, XZ_DEFAULTS,
# ZSTD_CLEVEL, POSIXLY_CORRECT or SOURCE_DATE_EPOCH, would change what they do.
KEPT = (
    *("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"),
    *("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
    *("no_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "CURL_HOME"),
)
# What programs that get all the rest (`as_caller`) go without.
DROPPED = ("LD_PRELOAD", "LD_AUDIT", "SOURCE_DATE_EPOCH", "POSIXLY_CORRECT", "LANGUAGE")
PATHS = "PATH", "LD_LIBRARY_PATH"  # whose relative entries would mean the working directory


def find(name: str) -> "str | None":
    """Return the absolute path of a program of the caller's PATH; None if there is none.

    Relative and empty entries of PATH, which mean the working directory, do not count.
    """
    # Not by shutil, which imports re and more: 7 ms for each import and export.
    for directory in _absolute("PATH") or os.defpath.split(":"):
        path = f"{directory}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def environment(as_caller: bool = False) -> "dict[str, str]":
    """Return the environment of helper programs.

    as_caller  also what the caller set otherwise, for programs that speak to registries and
               daemons: their credential helpers read variables of any name
    """
    kept = os.environ if as_caller else {name: os.environ.get(name) for name in KEPT}
    clean = {name: value for name, value in kept.items() if value and name not in DROPPED}
    if not os.path.isabs(clean.get("TMPDIR", "/")):
        del clean["TMPDIR"]
    for name in PATHS:
        clean.pop(name, None)
        entries = _absolute(name)
        if entries:
            clean[name] = ":".join(entries)
    return {"PATH": os.defpath, **clean, "LC_ALL": "C"}


def _absolute(variable):
    """The absolute directories that one of PATHS lists.

    A link such as /proc/self/cwd is resolved here, where it is not the helper's.
    """
    paths = os.environ.get(variable, "")
    if variable == "LD_LIBRARY_PATH":
        paths = paths.replace(";", ":")  # ld.so(8) takes both
    return [os.path.realpath(entry) for entry in paths.split(":") if entry.startswith("/")]


def start(argv: "list[str]", as_caller: bool = False, **options) -> subprocess.Popen:
    """Start a helper program, as subprocess.Popen does.

    as_caller  as for environment(): the helper gets the caller's variables
    options    of Popen; stdin is /dev/null and the working directory / where they don't say

    argv[0] is looked for by find(). SIGTERM and SIGHUP raise SystemExit from now on, so that
    `with` and `finally` clean up. Raises FileNotFoundError with the program's name.
    """
    path = argv[0] if argv[0].startswith("/") else find(argv[0])
    if path is None:
        raise FileNotFoundError(2, os.strerror(2), argv[0])
    processes.exit_on_signals()
    options = {"stdin": subprocess.DEVNULL, "cwd": "/", **options}
    # A child of a child would see another parent than this thread's process.
    die, parent = namespaces.prepare_die_with_parent(), os.getpid()

    def in_child():
        # The child of a process that may have threads: this takes no lock and imports nothing.
        die()
        if os.getppid() != parent:
            os._exit(1)

    # By its name, with which it begins its messages.
    return subprocess.Popen(
        [os.path.basename(path), *argv[1:]],
        executable=path,
        env=environment(as_caller),
        preexec_fn=in_child,
        **options,
    )


def run(argv: "list[str]", as_caller: bool = False, **options) -> subprocess.CompletedProcess:
    """Run a helper program until it ends, like start(); it is killed if an exception comes first.

    Returns what it wrote to the pipes that options ask for. Raises FileNotFoundError, as start().
    """
    with start(argv, as_caller, **options) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def ending(program: str, status: int) -> str:
    """How a program ended, in words; status is that of subprocess."""
    if status >= 0:
        return f"{program} ended with status {status}"
    import signal

    return f"{program} was ended by a signal: {signal.strsignal(-status) or -status}"
