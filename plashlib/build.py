"""What a command sees that builds an image, how it runs, and how it ends.

Builds run what was written for an empty machine, such as `rm -rf /tmp/*` or `chown -R`: they can
read the host, below /host, and can't change it. They run in a pid namespace, so that nothing of
theirs reaches the host's processes or outlives plash. See pid_namespaces(7) and devpts in the
kernel's documentation.
"""

import errno
import os
import stat

from plashlib import Error, binds, container, execution, ids, namespaces, processes, store, work

DEVICES = "null", "zero", "full", "random", "urandom", "tty"
DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
TTY = 5  # the gid of the group tty
# What root could change of the host by its /proc.
SWITCHES = "sys", "sysrq-trigger", "irq", "bus", "fs"
# What docker gives builds, see capabilities(7). Without CAP_SYS_ADMIN, nothing that was made
# read-only can be made writable again; without CAP_SYS_PTRACE, /host/proc/PID leads nowhere.
CAPABILITIES = frozenset(
    {
        0,  # CAP_CHOWN
        1,  # CAP_DAC_OVERRIDE
        3,  # CAP_FOWNER
        4,  # CAP_FSETID
        5,  # CAP_KILL
        6,  # CAP_SETGID
        7,  # CAP_SETUID
        8,  # CAP_SETPCAP
        10,  # CAP_NET_BIND_SERVICE
        13,  # CAP_NET_RAW
        18,  # CAP_SYS_CHROOT
        27,  # CAP_MKNOD
        29,  # CAP_AUDIT_WRITE
        31,  # CAP_SETFCAP
    }
)
SCRIPT_FD = 9  # a descriptor that scripts can name
LONGEST_ARGUMENT = 1 << 17  # the kernel's MAX_ARG_STRLEN, in bytes
NO_PROC = -1  # what _init() returns if there can be no /proc of its pid namespace


class Devices(binds.Mount):
    """A small /dev, with a devpts of its own and the caller's terminal as /dev/console."""

    private = True

    def __init__(self) -> None:
        super().__init__("/dev")
        terminals = [os.ttyname(fd) for fd in range(3) if os.isatty(fd)]
        self.terminal = terminals[0] if terminals else None

    def mount(self, path: str) -> None:
        namespaces.mount("plash", path, "tmpfs", namespaces.MS_NOSUID, "mode=0755,size=64k")
        for name in DEVICES:
            if os.path.exists("/dev/" + name):
                _bind_file("/dev/" + name, f"{path}/{name}")
        if self.terminal:
            _bind_file(self.terminal, path + "/console")
        for name, target in DEVICE_LINKS.items():
            os.symlink(target, f"{path}/{name}")
        os.mkdir(path + "/pts")
        os.mkdir(path + "/shm")
        namespaces.mount(
            "plash", path + "/shm", "tmpfs", namespaces.MS_NOSUID | namespaces.MS_NODEV, "mode=1777"
        )
        options = "newinstance,ptmxmode=0666,mode=0620"
        if namespaces.maps("gid", TTY):
            options += f",gid={TTY}"
        flags = namespaces.MS_NOSUID | namespaces.MS_NOEXEC
        namespaces.mount("plash", path + "/pts", "devpts", flags, options)


def _bind_file(source, target):
    """Bind a device so that it can be written to, but its mode and owner can't be changed."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    namespaces.mount(source, target, flags=namespaces.MS_BIND)
    namespaces.restrict_mount(target, namespaces.MOUNT_ATTR_RDONLY)


class Processes(binds.Mount):
    """/proc of this process's pid namespace; the host's one if it has none of its own."""

    own = True

    def __init__(self) -> None:
        super().__init__("/proc")

    def mount(self, path: str) -> None:
        if self.own:
            flags = namespaces.MS_NOSUID | namespaces.MS_NODEV | namespaces.MS_NOEXEC
            namespaces.mount("plash", path, "proc", flags)
        else:
            namespaces.mount("/proc", path, flags=namespaces.MS_BIND | namespaces.MS_REC)
        # In a user namespace the kernel refuses anyway, and a covered /proc would keep
        # programs such as plash from mounting one of their own in it.
        if namespaces.mapped("uid") != ids.ALL_IDS:
            return
        for name in SWITCHES:
            if os.path.lexists(f"{path}/{name}"):
                namespaces.mount(f"/proc/{name}", f"{path}/{name}", flags=namespaces.MS_BIND)
                namespaces.restrict_mount(
                    f"{path}/{name}", namespaces.MOUNT_ATTR_RDONLY, alone=True
                )


class View(container.View):
    """What a build sees and has: as container.View, without the caller's session and home.

    tmp   the directory that is its /tmp; None for the image's own
    host  whether it can read the host
    """

    def __init__(self, tmp: "str | None", image: store.Image, host: bool = True, **options) -> None:
        self.tmp = tmp
        self.can_restrict = namespaces.can_restrict_mounts()
        without = {"home", "tmp", *([] if host and self.can_restrict else ["host"])}
        super().__init__(image, without=without, **options)
        self.terminal = _foreground()
        if not self.can_restrict:
            parts = "/host and /sys are" if host else "/sys is"
            self.warnings.append(f"{parts} left out: Linux before 5.12 cannot make them read-only")

    def _default_mounts(self):
        sys = self.can_restrict and os.path.isdir("/sys")
        files = [path for path in container.HOST_FILES if os.path.isfile(path)]
        tmp = [binds.Bind(self.tmp, "/tmp")] if self.tmp else []
        for each in tmp:
            each.private = True
        self.processes = Processes()
        return [
            Devices(),
            self.processes,
            *([binds.Bind("/sys", read_only=True)] if sys else []),
            *tmp,
            *(binds.Bind(path, read_only=True) for path in files),
        ]


def run(
    image: store.Image,
    layer: work.NewLayer,
    command: "list[str]",
    script: bool = False,
    keep: bool = False,
    keep_tmp: bool = False,
    **options,
) -> "tuple[int, list[str]]":
    """Run command in the Image so that what it writes fills the work.NewLayer layer.

    command   its argv; empty is the user's login shell
    script    the one argument of command is shell code, run by /bin/sh -e
    keep      fill layer even if command fails
    keep_tmp  its /tmp is the image's own
    options   more of View

    Returns the exit status of command, as a shell has it, and warnings. All that it started has
    ended then. This process is root of its user namespace already. Raises Error, OSError.
    """
    _withhold_host_files()
    tmp = layer.path + "/tmp"
    os.mkdir(tmp)
    os.chmod(tmp, 0o1777)
    view = View(None if keep_tmp else tmp, image, **options)
    if script:
        command = _shell(command[0])
    processes.adopt_orphans()
    # The descriptors of this process, and of process 1, lead to the store and to the host.
    namespaces.set_dumpable(False)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    directory = layer.path[len(store.path()) + 1 :]
    changes = store.path(), directory + "/root", directory + "/work"
    root, warnings = None, []
    try:
        root = container.mount_root(image, view, changes, "xino=on,volatile")
        status = _run_command(command, view, view.find_user(root.points))
        processes.kill_children()
        if status == 0 and view.watch:
            _keep_lost_owners(image, layer, view)
        if root.upper != layer.root and (status == 0 or keep):
            from plashlib import layers

            # The upper directory is in the tmpfs that the overlay covers.
            namespaces.unmount(store.path() + "/mnt")
            warnings = layers.copy_layer(root.upper, layer.root)
        return status, ids.lost() + view.warnings + warnings
    finally:
        processes.kill_children()
        _take_terminal(view.terminal)
        if root:
            _unmount_all(store.path() + "/mnt")
        _return_to(here)
        namespaces.set_dumpable(True)
        _remove_empty(layer.path)


def _withhold_host_files():
    """Keep what the caller has opened from the command, if the host can be changed by it.

    Directories can, and files that are open for writing; pipes are meant for the command, as in
    `plash build ID sh <(program)`.
    """
    import fcntl

    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if fd > 2 and (kind == stat.S_IFDIR or kind == stat.S_IFREG and writes):
                os.set_inheritable(fd, False)
        except OSError:
            continue  # that of listdir()


def _run_command(command, view, user):
    """Run command in the mounted image; returns its exit status."""
    for kind in processes.FirstChild, processes.DependentChild:
        view.processes.own = kind is processes.FirstChild
        if not user or user.uid == 0:
            view.watch = _watch()
            container.prepare_emulation(view)
        try:
            child = kind(_init, command, view, user)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EPERM):
                continue
            raise namespaces.refused("pid", error) from None
        if view.watch:
            view.watch.answer(child.pid)
        status = child.result()
        child.wait()
        if status is None:
            raise Error("the build was killed")
        if status != NO_PROC:
            break
    return status


def _unmount_all(path):
    """Unmount what is stacked on path, the scratch tmpfs too."""
    while True:
        try:
            namespaces.unmount(path)
        except OSError:
            return


def _return_to(directory):
    """Change to an open directory, if that can be."""
    try:
        os.fchdir(directory)
    except OSError:
        pass  # it cannot be searched; nothing below it was named by a relative path
    os.close(directory)


def _remove_empty(directory):
    """Remove what overlayfs leaves: then the layer's directory needs no rm(1), which is slower."""
    volatile = "/work/work/incompat/volatile"
    try:
        os.unlink(f"{directory}{volatile}/dirty")
    except OSError:
        pass
    for name in volatile, "/work/work/incompat", "/work/work", "/work", "/tmp":
        try:
            os.rmdir(directory + name)
        except OSError:
            pass


def _watch():
    """The emulate.Watch of a build; None if owners are kept, or chown(2) is to fail."""
    if 1 not in map(namespaces.mapped, ("uid", "gid")):
        return None
    from plashlib import emulate

    return emulate.Watch() if emulate.is_wanted() else None


def _keep_lost_owners(image, layer, view):
    """Have the layer's image and the user know of the owners that were not kept."""
    view.warnings += view.watch.warnings()
    layer.config["owners"] = view.watch.lost(image.read("owners"))


def _shell(code):
    """The argv that runs shell code."""
    if len(os.fsencode(code)) < LONGEST_ARGUMENT:
        return ["/bin/sh", "-ec", code]
    fd = os.memfd_create("script")
    with open(fd, "w", encoding="utf-8", errors="surrogateescape", closefd=False) as file:
        file.write(f"exec {SCRIPT_FD}<&-\n{code}")
    os.dup2(fd, SCRIPT_FD)
    return ["/bin/sh", "-ec", f". /proc/self/fd/{SCRIPT_FD}"]


def _init(command, view, user):
    """Enter the root filesystem, run command and reap what it leaves; the namespace's process 1.

    Returns the exit status, or NO_PROC.
    """
    # By default, process 1 gets no signals from its namespace but those it has handlers for.
    _restore_signals()
    try:
        namespaces.call("unshare", namespaces.CLONE_NEWIPC)
    except OSError:
        pass  # the kernel has none: System V IPC is the host's
    namespaces.private_mounts()
    try:
        container.enter(view)
    except OSError as error:
        if view.processes.own and error.errno == errno.EPERM and error.filename == "./proc":
            return NO_PROC
        raise
    if "host" not in view.without:
        attributes = (
            namespaces.MOUNT_ATTR_RDONLY
            | namespaces.MOUNT_ATTR_NOSUID
            | namespaces.MOUNT_ATTR_NODEV
        )
        namespaces.restrict_mount(container.HOST, attributes)
    kind = processes.Child if view.processes.own else processes.DependentChild
    child = kind(_command, command, view, user)
    child.result()  # raises what kept it from becoming the command
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _command(command, view, user):
    if not command and view.processes.own and view.terminal is not None:
        # A shell that controls jobs gives the terminal back, when it ends, to the process group
        # that had it: that has to be one of its pid namespace.
        os.setpgid(0, 0)
        _take_terminal(view.terminal)
    os.dup2(2, 1)
    os.umask(0o022)
    namespaces.set_dumpable(True)  # for what this process writes to its own files of /proc
    namespaces.keep_capabilities(CAPABILITIES)
    if user:
        from plashlib import users

        users.become(user)
    command = command or execution.login_shell(user.name if user else "root")
    execution.execute(command, view.environment, view.emulate)


def _restore_signals():
    """Undo handlers of signals that end a command, except those that the caller ignores."""
    import _signal

    for number in _signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)


def _foreground():
    """The descriptor of a terminal in whose foreground this process is; None if there is none."""
    for fd in range(3):
        try:
            if os.isatty(fd) and os.tcgetpgrp(fd) == os.getpgrp():
                return fd
        except OSError:
            continue
    return None


def _take_terminal(fd):
    """Be in the foreground of the terminal fd again: a shell inside cannot give it back."""
    import _signal

    if fd is not None and os.tcgetpgrp(fd) != os.getpgrp():
        previous = _signal.signal(_signal.SIGTTOU, _signal.SIG_IGN)
        os.tcsetpgrp(fd, os.getpgrp())
        _signal.signal(_signal.SIGTTOU, previous)
