"""Squashfs files, mounted without unpacking: by the kernel for root, by squashfuse(1) for others.

It rests on mount(2), mount_namespaces(7) and fuse(4).
"""

import os

from plashlib import Error, ids, namespaces, processes

MAGIC = b"hsqs"
FUSE = 3  # the descriptor of /dev/fuse that squashfuse gets


def mount(file: str, directory: str) -> None:
    """Mount a squashfs file on directory, in a mount namespace of this process's own.

    The process that serves it ends when that namespace, and all that was mounted on top of the
    file, are gone. Raises Error, OSError.
    """
    may_mount = namespaces.mapped("uid") == ids.ALL_IDS
    if may_mount and _run(["mount", "-t", "squashfs", "-o", "loop,ro", "--", file, directory]) == 0:
        return
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Error(f"cannot mount {file}: /dev/fuse: {error.strerror}") from None
    owner = f"user_id={os.geteuid()},group_id={os.getegid()}"
    options = f"fd={fuse},rootmode=40000,{owner},allow_other,default_permissions"
    namespaces.mount("squashfuse", directory, "fuse.squashfuse", namespaces.MS_RDONLY, options)
    status = processes.Child(_serve, file, directory, fuse).wait()
    os.close(fuse)
    if status:
        namespaces.unmount(directory)
        why = (
            "squashfuse is not installed"
            if status == 127
            else f"squashfuse ended with status {status}"
        )
        raise Error(f"cannot mount {file}: {why}")


def _serve(file, directory, fuse):
    """Become squashfuse, which serves the file through the descriptor fuse."""
    # In a namespace without the mount: else it would keep what it serves, and never end.
    namespaces.unshare(namespaces.CLONE_NEWNS)
    namespaces.unmount(directory)
    os.dup2(fuse, FUSE)
    os.set_inheritable(FUSE, True)
    namespaces.default_signals()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    # Among them the locks that this process holds for what it becomes.
    os.closerange(FUSE + 1, 1024)
    try:
        os.execvp("squashfuse", ["squashfuse", file, f"/dev/fd/{FUSE}"])
    except FileNotFoundError:
        os._exit(127)


def _run(argv):
    """Run a program whose output nobody needs; returns its exit status."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        pid = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in range(3)],
        )
    except FileNotFoundError:
        return 127
    finally:
        os.close(null)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
