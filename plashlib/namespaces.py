"""System calls that Python lacks: user, mount and pid namespaces, mounts, pivot_root.

This knows nothing of images. It rests on user_namespaces(7), mount_namespaces(7), mount(2),
mount_setattr(2), openat2(2), pivot_root(2) and the kernel's overlayfs.rst. Little is imported,
because every `plash run` pays for it.
"""

import errno
import os
import sys

from plashlib import Error

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_RDONLY = 1 << 0
MS_NOSUID = 1 << 1
MS_NODEV = 1 << 2
MS_NOEXEC = 1 << 3
MS_REMOUNT = 1 << 5
MS_BIND = 1 << 12
MS_REC = 1 << 14
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS = 0x01, 0x02
# New system calls have one number on all architectures (since Linux 5.2).
SYS_CLONE3, SYS_OPENAT2, SYS_MOUNT_SETATTR = 435, 437, 442
NS_GET_OWNER_UID = 0xB704
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
CAP_SYS_ADMIN = 21
SIGKILL, SIGPIPE, SIGTERM, SIGCHLD, SIGXFSZ = 9, 13, 15, 17, 25

SEE_DOCTOR = " (see plash doctor)"  # ends an error whose cause is the host

SPARE_FILES = 40  # open at once, besides those that are counted

_libc = None  # what _load_libc() returns
_few_files = None  # the limits on open files before they were raised

# Each setting that forbids what plash needs, its forbidding value, and one that allows it.
_SETTINGS = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def _load_libc():
    """A function that calls a function of libc by its name; returns its result and errno.

    Arguments are bytes, integers (long) or None. This is ctypes without its Python half, which
    takes twice as long to import.
    """
    import _ctypes

    class Int(_ctypes._SimpleCData):
        _type_ = "i"

    class Long(_ctypes._SimpleCData):
        _type_ = "L"

    class Function(_ctypes.CFuncPtr):
        _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
        _restype_ = Int

    handle = _ctypes.dlopen(None, 0)

    def call(name, *arguments):
        function = Function(_ctypes.dlsym(handle, name))
        result = function(*(Long(each) if isinstance(each, int) else each for each in arguments))
        return result, _ctypes.get_errno()

    return call


def call(function: str, *arguments: "bytes | int | None", path: "str | None" = None) -> int:
    """Call a function of libc; returns its result.

    Raises OSError, with path as its filename, if the result is -1.
    """
    # Not before the first call: commands that mount nothing need not pay for it.
    global _libc
    _libc = _libc or _load_libc()
    result, code = _libc(function, *arguments)
    if result == -1:
        raise OSError(code, os.strerror(code), path)
    return result


def prctl(option: int, *arguments: int) -> int:
    """prctl(2); raises OSError."""
    return call("prctl", option, *arguments, *[0] * (4 - len(arguments)))


def mount(
    source: "str | None",
    target: str,
    kind: "str | None" = None,
    flags: int = 0,
    options: "str | None" = None,
) -> None:
    """mount(2); options is ASCII. Raises OSError."""
    call(
        "mount",
        *(os.fsencode(source) if source else None, os.fsencode(target)),
        *(kind.encode() if kind else None, flags, options.encode() if options else None),
        path=target,
    )


def restrict_mount(path: str, attributes: int, alone: bool = False) -> None:
    """Set attributes, of MOUNT_ATTR_*, of a mount and of all mounts below it (Linux 5.12).

    path is the mount point. An older kernel can only do it to a mount that has none below it: a
    file's, and one that the caller says is alone. Raises OSError.
    """
    attr = b"".join(each.to_bytes(8, sys.byteorder) for each in (attributes, 0, 0, 0))
    try:
        call(
            *("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(path), AT_RECURSIVE),
            *(attr, len(attr)),
            path=path,
        )
    except OSError as error:
        if error.errno != errno.ENOSYS or os.path.isdir(path) and not alone:
            raise
        # The flags that it has are locked. MOUNT_ATTR_* and the first of MS_* are the same.
        flags = os.statvfs(path).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC) | attributes
        mount(None, path, flags=MS_BIND | MS_REMOUNT | flags)


def can_restrict_mounts() -> bool:
    """Whether restrict_mount() can change the mounts of directories."""
    try:
        call("syscall", SYS_MOUNT_SETATTR, -1, b"", 0, b"", 0)
    except OSError as error:
        return error.errno != errno.ENOSYS
    return True


def open_in_mount(path: str) -> int:
    """Open a file for reading if all of its path, links too, is on the root directory's mount.

    openat2(2) with RESOLVE_NO_XDEV. Does not wait for the writer of a FIFO. Raises OSError.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    resolve = RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS
    how = b"".join(each.to_bytes(8, sys.byteorder) for each in (flags, 0, resolve))
    return call("syscall", SYS_OPENAT2, AT_FDCWD, os.fsencode(path), how, len(how), path=path)


def unmount(target: str) -> None:
    """Detach the mount at target, as `umount --lazy` does; raises OSError."""
    call("umount2", os.fsencode(target), MNT_DETACH, path=target)


def syncfs(fd: int) -> None:
    """syncfs(2): write the filesystem that fd is on to the disk. Raises OSError."""
    call("syncfs", fd)


def set_dumpable(dumpable: bool) -> None:
    """Say whether processes of the same ids and user namespace can look into this one.

    If not, /proc/PID/fd, cwd, root and mem of it, and of those that it forks, are closed to them,
    and so is ptrace(2), until execve(2): PR_SET_DUMPABLE.
    """
    prctl(PR_SET_DUMPABLE, dumpable)


def keep_capabilities(kept: "frozenset[int]") -> None:
    """Let the program that this process becomes have no capabilities but those of kept.

    That is PR_CAPBSET_DROP of capabilities(7); this process keeps what it has until then.
    """
    for number in range(64):
        if number not in kept:
            try:
                prctl(PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # the kernel knows no more
                # Without CAP_SETPCAP none can be dropped, and a container's root keeps its few.


def die_with_parent(signal: int = SIGKILL) -> None:
    """Get a signal when the parent process ends (PR_SET_PDEATHSIG)."""
    prctl(PR_SET_PDEATHSIG, signal)


def prepare_die_with_parent():
    """Return a function that does die_with_parent() between fork and exec.

    It looks nothing up, so it works in the child of a process that has threads.
    """
    from _ctypes import FUNCFLAG_CDECL, CFuncPtr, dlopen, dlsym

    class Function(CFuncPtr):
        _flags_ = FUNCFLAG_CDECL

    function = Function(dlsym(dlopen(None, 0), "prctl"))
    return lambda: function(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


def default_signals() -> None:
    """Undo what Python does to signals: it ignores two, and programs would inherit that."""
    for number in SIGPIPE, SIGXFSZ:
        call("signal", number, None)


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit on open files, if count of them might be more than it."""
    global _few_files
    if count + SPARE_FILES > os.sysconf("SC_OPEN_MAX"):
        import resource

        _few_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (_few_files[1], _few_files[1]))


def default_limits() -> None:
    """Undo allow_open_files(), for a program that this process becomes."""
    if _few_files:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, _few_files)


def forbidden() -> "str | None":
    """The sysctl setting that forbids user namespaces, and the command that allows them.

    One line; None if no setting is known to forbid them.
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


def reason(error: OSError) -> str:
    """Why namespaces cannot be made, or mounts changed: for the end of an error."""
    return forbidden() or error.strerror + SEE_DOCTOR


def unshare(flags: int) -> None:
    """unshare(2). Raises Error, which names the setting that forbids it."""
    try:
        call("unshare", flags)
    except OSError as error:
        raise refused("user" if flags & CLONE_NEWUSER else "mount", error) from None


def refused(kind: str, error: OSError) -> Error:
    """The Error for a namespace that cannot be made; kind is user, mount or pid."""
    why = reason(error)
    if error.errno == errno.ENOSPC and not forbidden():
        setting = f"user.max_{'mnt' if kind == 'mount' else kind}_namespaces"
        why = f"too many namespaces, or too many in each other (see {setting} in namespaces(7))"
    return Error(f"cannot make a {kind} namespace: {why}")


def pid_namespace(pid: "int | str" = "self") -> "int | None":
    """The inode of a process's pid namespace, which names it; None if it can't be read."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def boot_id() -> str:
    """What names this boot of the kernel (random(4)). Raises OSError."""
    fd = os.open("/proc/sys/kernel/random/boot_id", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def fork_into_pid_namespace() -> int:
    """fork(2), by clone3(2), of a process that is process 1 of a new pid namespace.

    Returns its pid; 0 in that process. unshare(2) would be for good: when process 1 has ended,
    the caller could start no more. Python is not told: this process must have no other thread.
    Raises OSError.
    """
    arguments = (CLONE_NEWPID, 0, 0, 0, SIGCHLD, 0, 0, 0)  # struct clone_args
    packed = b"".join(each.to_bytes(8, sys.byteorder) for each in arguments)
    return call("syscall", SYS_CLONE3, packed, len(packed))


def mapped(kind: str) -> int:
    """How many ids this process's user namespace maps; kind is "uid" or "gid"."""
    return sum(count for _, count in _id_map(kind))


def maps(kind: str, number: int) -> bool:
    """Whether this process's user namespace maps an id; kind is "uid" or "gid"."""
    return any(first <= number < first + count for first, count in _id_map(kind))


def _id_map(kind):
    """The ids that this process's user namespace maps, as pairs of first id and count."""
    with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
        return [(int(first), int(count)) for first, _, count in map(str.split, file)]


def owner(file: str) -> int:
    """The uid of the process that made a user namespace; file is /proc/PID/ns/user (ioctl_ns(2)).

    Raises OSError.
    """
    import fcntl

    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        uid = fcntl.ioctl(fd, NS_GET_OWNER_UID, bytes(4))
    finally:
        os.close(fd)
    return int.from_bytes(uid, sys.byteorder)


def private_mounts() -> None:
    """Get a mount namespace of this process's own, whose mounts no other sees. Raises Error."""
    unshare(CLONE_NEWNS)
    try:
        mount(None, "/", flags=MS_REC | MS_PRIVATE)
    except PermissionError as error:
        raise Error(f"cannot change mounts: {reason(error)}") from None


def overlay(
    source: str,
    target: str,
    layers: "list[int]",
    changes: "tuple[int, str, str] | None" = None,
    options: str = "",
    flags: int = 0,
) -> None:
    """Mount an overlay with `userxattr` on target.

    source   the mount's source, for /proc/PID/mountinfo
    layers   descriptors of the lower layers' directories, the topmost first
    changes  (fd, upperdir, workdir): a directory's descriptor and two paths below it, of
             plain characters; None mounts read-only
    options  more options of overlayfs
    flags    more of MS_*

    Layers are named by descriptor because mount(2) takes one page of options: as numbers in
    /proc/self/fd, 500 of them fit, whatever characters the paths have. The working directory
    is /proc/self/fd afterwards. Raises OSError; EINVAL if the filesystem of changes cannot
    hold them.
    """
    target = os.path.abspath(target)
    joined = ["userxattr", "index=off", "lowerdir=" + ":".join(map(str, layers))]
    if changes:
        fd, upper, work = changes
        joined += [f"upperdir={fd}/{upper}", f"workdir={fd}/{work}"]
    if options:
        joined.append(options)
    os.chdir("/proc/self/fd")
    try:
        mount(source, target, "overlay", flags | (0 if changes else MS_RDONLY), ",".join(joined))
        if changes and os.statvfs(target).f_flag & MS_RDONLY:
            # The filesystem of the upper directory lacks something, which the kernel only logs.
            unmount(target)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    except OSError as error:
        # The target is often plash's own, and would mean nothing to the user.
        why = error.strerror + SEE_DOCTOR
        raise OSError(error.errno, why, "cannot mount the image") from None


def takes_writes(directory: str) -> bool:
    """Whether an overlay, in whatever mount namespace, has directory as its upper one.

    With index=on the kernel refuses a second one at once. If there is none, it refuses the work
    directory, which is the same: nothing is mounted. The working directory is /proc/self/fd
    afterwards. This process may mount. Raises OSError.
    """
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chdir("/proc/self/fd")
    options = f"userxattr,index=on,lowerdir={fd},upperdir={fd},workdir={fd}"
    try:
        mount("plash", "/", "overlay", 0, options)
    except OSError as error:
        return error.errno == errno.EBUSY
    finally:
        os.close(fd)
    unmount("/")
    return False


def pivot(old: str) -> bool:
    """Make the mount at the working directory this process's root filesystem.

    The old root filesystem is then at the path old below it. pivot_root(2) copies no mounts and
    lets the process make user namespaces of its own; where the old root is no mount point
    (in a chroot, in an initramfs) a recursive bind and chroot(2) do. Returns whether the
    mounts of the old root are the very ones, rather than copies. Raises Error, OSError.
    """
    try:
        call("pivot_root", b".", os.fsencode(old), path=old)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise Error(f"cannot change the root filesystem: {reason(error)}") from None
        if old != ".":
            mount("/", old, flags=MS_BIND | MS_REC)
        os.chroot(".")
        return False
    return True
