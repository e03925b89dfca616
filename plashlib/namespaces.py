"""User and mount namespaces, and the mounts inside them, straight from libc.

This knows nothing of images. It rests on user_namespaces(7), mount_namespaces(7),
mount(2), pivot_root(2), subuid(5) and the kernel's Documentation/filesystems/overlayfs.rst.
Little is imported, because every `plash run` pays for it.
"""

import errno
import os
import sys

from plashlib import Error

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 1 << 0
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SIGKILL, SIGPIPE, SIGTERM, SIGXFSZ = 9, 13, 15, 25

# The kernel's OVL_MAX_STACK: so many lower layers one overlay can have.
OVERLAY_LAYERS = 500

UIDS, GIDS = 1, 2  # bits that name the kinds of ids

SEE_DOCTOR = " (see plash doctor)"  # ends an error whose cause is the host

_libc = None  # what _load_libc() returns

# Each setting that forbids what plash needs, its forbidding value, and one that allows it.
_SETTINGS = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def _load_libc():
    """What calls a function of libc, by its name, with arguments that are bytes, integers (long) or None.

    This is ctypes without its Python half, which takes twice as long to import.
    """
    from _ctypes import (
        FUNCFLAG_CDECL,
        FUNCFLAG_USE_ERRNO,
        CFuncPtr,
        _SimpleCData,
        dlopen,
        dlsym,
        get_errno,
    )

    class Int(_SimpleCData):
        _type_ = "i"

    class Long(_SimpleCData):
        _type_ = "L"

    class Function(CFuncPtr):
        _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
        _restype_ = Int

    handle = dlopen(None, 0)

    def call(name, *arguments):
        function = Function(dlsym(handle, name))
        result = function(*(Long(each) if isinstance(each, int) else each for each in arguments))
        return get_errno() if result == -1 else 0

    return call


def _call(function, *arguments, path=None):
    """Call a function of libc; raise OSError with path as its filename where it fails."""
    # Not before the first call: commands that mount nothing need not pay for it.
    global _libc
    _libc = _libc or _load_libc()
    code = _libc(function, *arguments)
    if code:
        raise OSError(code, os.strerror(code), path)


def mount(source, target, kind=None, flags=0, options=None):
    """mount(2). Paths are str or bytes, options is ASCII; raises OSError."""
    source, target = (path and os.fsencode(path) for path in (source, target))
    _call(
        "mount",
        source,
        target,
        kind and kind.encode(),
        flags,
        options and options.encode(),
        path=target,
    )


def unmount(target):
    """Detach the mount at target, as `umount --lazy` does; raises OSError."""
    _call("umount2", os.fsencode(target), MNT_DETACH, path=target)


def syncfs(fd):
    """syncfs(2): all of the filesystem that fd is on reaches the disk; raises OSError."""
    _call("syncfs", fd)


def die_with_parent(signal=SIGKILL):
    """Be sent a signal, given by its number, when the parent process ends (PR_SET_PDEATHSIG)."""
    _call("prctl", PR_SET_PDEATHSIG, signal, 0, 0, 0)


def prepare_die_with_parent():
    """Return a function that does die_with_parent() between fork and exec.

    It looks nothing up, so it works in the child of a process that has threads.
    """
    from _ctypes import FUNCFLAG_CDECL, CFuncPtr, dlopen, dlsym

    class Function(CFuncPtr):
        _flags_ = FUNCFLAG_CDECL

    prctl = Function(dlsym(dlopen(None, 0), "prctl"))
    return lambda: prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def default_signals():
    """Undo what Python does to signals: it ignores two, and exec would pass that on."""
    for number in SIGPIPE, SIGXFSZ:
        _call("signal", number, None)


def forbidden():
    """The sysctl setting that forbids user namespaces, and the command that allows them.

    Returns one line, or None where no setting is known to forbid them.
    """
    for name, bad, good in _SETTINGS:
        try:
            with open("/proc/sys/" + name.replace(".", "/"), encoding="utf-8") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad:
            return f"{name}={value} forbids it; as root: sysctl -w {name}={good}"
    return None


def _why(error):
    return forbidden() or error.strerror + SEE_DOCTOR


def unshare(flags):
    """unshare(2), with the setting that forbids it in the Error that it raises."""
    try:
        _call("unshare", flags)
    except OSError as error:
        kind = "user" if flags & CLONE_NEWUSER else "mount"
        # AppArmor lets a user namespace be made, and then forbids what it is for.
        raise Error(f"cannot make a {kind} namespace: {_why(error)}") from None


def become_root(keep_ids=False):
    """Become uid 0 and gid 0 of a new user namespace; root stays what it is.

    1 and up are the caller's subordinate ids, written by newuidmap(1) and newgidmap(1).
    Where there are none, or where those programs are missing or may not, the
    caller's own id is all that is mapped and setgroups(2) is denied.
    With PLASH_NO_UNSHARE=1 the caller says that it stands in such a namespace already.

    keep_ids leaves the caller its own uid and gid: they change places with 0. All
    capabilities are there until execve(2), as for root.

    Raises Error.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 or os.environ.get("PLASH_NO_UNSHARE") == "1":
        return
    reader, writer = os.pipe()
    pid = _start_mapper(reader, uid, gid, keep_ids)
    unshare(CLONE_NEWUSER)
    os.write(writer, b"\n")
    os.close(reader)
    os.close(writer)
    failed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else UIDS | GIDS
    for bit, file, own in (UIDS, "uid_map", uid), (GIDS, "gid_map", gid):
        if failed & bit:
            try:
                if file == "gid_map":
                    _write("/proc/self/setgroups", "deny")
                _write("/proc/self/" + file, f"{own if keep_ids else 0} {own} 1")
            except OSError as error:
                raise Error(f"cannot write {file}: {_why(error)}") from None


def _start_mapper(reader, uid, gid, keep_ids):
    """Start a process that maps this one's ids when a line comes out of reader; returns its pid.

    It has to be there first, since the right to use subordinate ids is held outside of the
    new namespace. The bits of its exit status tell which ids were not mapped. None where
    there is nothing to map.
    """
    codes = [
        _map_code(program, own, subordinate(path, uid), keep_ids)
        for program, own, path in (
            ("newuidmap", uid, "/etc/subuid"),
            ("newgidmap", gid, "/etc/subgid"),
        )
    ]
    if codes == ["false", "false"]:
        return None
    # A shell, which starts while this process loads ctypes, is faster than forks of this process; it runs both at once.
    code = (
        f"read line && {{ {codes[0]} & {codes[1]}; gids=$?; wait $!;"
        f" exit $((($? != 0) * {UIDS} + (gids != 0) * {GIDS})); }}"
    )
    try:
        return os.posix_spawn(
            "/bin/sh",
            ["sh", "-c", code],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)],
        )
    except FileNotFoundError:
        return None


def _map_code(program, own, ranges, keep_ids):
    """Shell code that maps this process's ids: 0 is its own id, and 1 and up are the ranges; for keep_ids, swapped."""
    if not ranges:
        return "false"
    words = [program, os.getpid(), own if keep_ids else 0, own, 1]
    first = 1
    for start, count in ranges:
        before = own - first  # of this range's ids, so many are below the own one
        if keep_ids and 0 <= before < count:
            parts = (
                (first, start, before),
                (0, start + before, 1),
                (own + 1, start + before + 1, count - before - 1),
            )
        else:
            parts = ((first, start, count),)
        for part in parts:
            words += part if part[2] else ()
        first += count
    # What the program says on failure is of no use to who runs an image: the own id alone will do then.
    return " ".join(map(str, words)) + " 2>/dev/null"


def subordinate(path, uid):
    """The caller's ranges in a subuid(5) file, as pairs of first id and count."""
    import pwd

    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = None
    ranges = []
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                owner, _, numbers = line.strip().partition(":")
                start, _, count = numbers.partition(":")
                if owner in (name, str(uid)) and start.isdigit() and count.isdigit() and int(count):
                    ranges.append((int(start), int(count)))
    except FileNotFoundError:
        pass
    return ranges


def _write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def mapped(kind):
    """How many ids (kind "uid" or "gid") this process's user namespace has."""
    with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
        return sum(int(line.split()[2]) for line in file)


def private_mounts():
    """Give this process a mount namespace of its own, from which nothing spreads; raises Error."""
    unshare(CLONE_NEWNS)
    try:
        mount(None, "/", flags=MS_REC | MS_PRIVATE)
    except PermissionError as error:
        raise Error(f"cannot change mounts: {_why(error)}") from None


def overlay(source, target, layers, changes=None, options=""):
    """Mount an overlay with `userxattr` on target.

    source   what mountinfo is to name as the mount's source
    layers   file descriptors of the lower layers' directories, the topmost first
    changes  (fd, upperdir, workdir): a directory's descriptor and two paths below it, of
             plain characters; None mounts read-only
    options  more of overlayfs's options

    Descriptors, because mount(2) takes one page of options: named by number from inside
    of /proc/self/fd, 500 layers fit, whatever characters the paths have. The working
    directory is left there. Raises OSError.
    """
    target = os.path.abspath(target)
    words = ["userxattr", "index=off", "lowerdir=" + ":".join(map(str, layers))]
    if changes:
        fd, upper, work = changes
        words += [f"upperdir={fd}/{upper}", f"workdir={fd}/{work}"]
    if options:
        words.append(options)
    os.chdir("/proc/self/fd")
    try:
        mount(source, target, "overlay", 0 if changes else MS_RDONLY, ",".join(words))
    except OSError as error:
        raise OSError(error.errno, error.strerror + SEE_DOCTOR, target) from None


def pivot(old):
    """Make the mount at the working directory this process's root filesystem.

    The old one is then visible at the path old below it. pivot_root(2) copies no mounts and
    lets the process make user namespaces of its own; where the old root is no mount point
    (in a chroot, in an initramfs) a recursive bind and chroot(2) do. Returns whether the
    mounts of the old root are the very ones, rather than copies. Raises OSError.
    """
    try:
        _call("pivot_root", b".", os.fsencode(old), path=old)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        if old != ".":
            mount("/", old, flags=MS_BIND | MS_REC)
        os.chroot(".")
        return False
    return True


def run_child(function):
    """Call function in a forked process, and kill what that process leaves running.

    Returns its exit status as a shell has it: 128 and the signal's number where one killed it.
    """
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        return wait_child(start_child(function))
    finally:
        _kill_children()


def start_child(function):
    """Call function in a forked process, which then exits 0, or as an exception says; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        function()
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def wait_child(pid):
    """Wait for a child process; returns its exit status as a shell has it."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def _kill_children():
    """Kill all descendants: those of a killed child become children of this process."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            children = file.read().split()
        if not children:
            return
        for child in children:
            os.kill(int(child), SIGKILL)
            os.waitpid(int(child), 0)
