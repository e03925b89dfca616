"""What a command sees that builds an image, how it runs, and how it ends.

Builds run what was written for an empty machine, such as `rm -rf /tmp/*` or `chown -R`: they can
read the host, below /host, and can't change it. They run in a pid namespace, so that nothing of
theirs reaches the host's processes or outlives plash. See pid_namespaces(7) and devpts in the
kernel's documentation.
"""

import errno
import os

from plashlib import Error, binds, container, execution, ids, namespaces, processes, store, work

DEVICES = "null", "zero", "full", "random", "urandom", "tty"
DEVICE_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
# What root could change of the host by its /proc.
SWITCHES = "sys", "sysrq-trigger", "irq", "bus", "fs"
SCRIPT_FD = 9  # a descriptor that scripts can name
LONGEST_ARGUMENT = 1 << 17  # the kernel's MAX_ARG_STRLEN, in bytes


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
        flags = namespaces.MS_NOSUID | namespaces.MS_NOEXEC
        try:
            namespaces.mount("plash", path + "/pts", "devpts", flags, options + ",gid=5")
        except OSError:
            # gid 5, of the group tty, is not mapped.
            namespaces.mount("plash", path + "/pts", "devpts", flags, options)


def _bind_file(source, target):
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
    namespaces.mount(source, target, flags=namespaces.MS_BIND)


class Processes(binds.Mount):
    """/proc of this process's pid namespace; the host's one if it has none of its own."""

    def __init__(self, own: bool) -> None:
        super().__init__("/proc")
        self.own = own

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
        without = {"home", "tmp", *([] if host else ["host"])}
        if host and not namespaces.can_restrict_mounts():
            without.add("host")
        super().__init__(image, without=without, **options)
        self.terminal = _foreground()
        if host and "host" in without:
            self.warnings.append(
                "the host is not below /host, since Linux before 5.12 cannot make"
                " it read-only there"
            )

    def _default_mounts(self):
        files = [path for path in container.HOST_FILES if os.path.isfile(path)]
        tmp = [binds.Bind(self.tmp, "/tmp")] if self.tmp else []
        for each in tmp:
            each.private = True
        return [
            Devices(),
            Processes(own=True),
            *([] if "host" in self.without else [binds.Bind("/sys", read_only=True)]),
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
    tmp = layer.path + "/tmp"
    os.mkdir(tmp)
    os.chmod(tmp, 0o1777)
    view = View(None if keep_tmp else tmp, image, **options)
    if script:
        command = _shell(command[0])
    processes.adopt_orphans()
    try:
        # Below a /proc that is partly covered, as docker has it, no other can be mounted.
        for own in (True, False):
            view.watch = _watch()
            child = processes.Child(_manage, os.getpid(), image, layer, command, view, own, keep)
            if view.watch:
                view.watch.answer(child.pid)
            status, warnings = child.result() or (None, [])
            child.wait()
            processes.kill_children()
            if status is not None:
                if status == 0 and view.watch:
                    _keep_lost_owners(image, layer, view)
                return status, ids.lost() + view.warnings + warnings
        raise Error("the build was killed")
    finally:
        processes.kill_children()
        _take_terminal(view.terminal)
        # Mostly empty: then the layer's directory needs no rm(1), which takes longer than all this.
        for name in (
            "work1/work/incompat/volatile",
            "work1/work/incompat",
            "work1/work",
            "work1",
            "tmp",
        ):
            try:
                os.rmdir(f"{layer.path}/{name}")
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


def _manage(parent, image, layer, command, view, own, keep):
    """Mount the Image and run command in it, in a pid namespace of its own if own.

    Returns its exit status, which is None if there can be no such namespace with a /proc of its
    own, and warnings.
    """
    namespaces.die_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # it ended before
    # plash ends the build on Ctrl-C; until then, the command may want to do something about it.
    _set_handlers(_ignore_interrupt)
    work_directory = layer.path[len(store.path()) + 1 :]
    changes = store.path(), work_directory + "/root", f"{work_directory}/work{int(own)}"
    # volatile: what the command syncs need not reach the disk before all of the layer does.
    root = container.mount_root(image, view, changes, "xino=on,volatile")
    user = view.find_user(root.points)
    copying, lost = None, []
    if root.upper != layer.root:
        # Started now, because this process can start none when the pid namespace has ended.
        done, finish = os.pipe()
        copying = processes.Child(_copy_when_done, done, finish, root.upper, layer.root)
    if own:
        namespaces.unshare(namespaces.CLONE_NEWPID)
    else:
        view.mounts = [
            Processes(own=False) if isinstance(mount, Processes) else mount for mount in view.mounts
        ]
    reader, writer = os.pipe()
    init = processes.Child(_init, command, view, own, user, reader, writer)
    status = init.result()
    init.wait()
    if copying:
        if status == 0 or keep and status is not None:
            os.write(finish, b"\n")
        os.close(finish)
        lost = copying.result() or []
        copying.wait()
    return status, lost


def _copy_when_done(done, finish, upper, target):
    """Copy what the build wrote to memory, once a line comes out of the descriptor done."""
    from plashlib import layers

    os.close(finish)
    if os.read(done, 1):
        # The upper directory is in the tmpfs that the overlay covers.
        namespaces.unmount(store.path() + "/mnt")
        return layers.copy_layer(upper, target)


def _init(command, view, own, user, reader, writer):
    """Enter the root filesystem, run command and reap what it leaves; the namespace's process 1.

    The writer of reader is open for as long as the parent lives. Returns the exit status; None if
    /proc cannot be mounted.
    """
    os.close(writer)
    namespaces.die_with_parent()
    os.set_blocking(reader, False)
    try:
        if os.read(reader, 1) == b"":
            os._exit(1)  # the parent ended before die_with_parent()
    except BlockingIOError:
        pass
    # By default, process 1 gets no signals from its namespace but those it has handlers for.
    _set_handlers(_restore_default)
    namespaces.private_mounts()
    try:
        container.enter(view, "host" not in view.without)
    except OSError as error:
        if own and error.errno == errno.EPERM and error.filename == "./proc":
            return None
        raise
    if "host" not in view.without:
        attributes = (
            namespaces.MOUNT_ATTR_RDONLY
            | namespaces.MOUNT_ATTR_NOSUID
            | namespaces.MOUNT_ATTR_NODEV
        )
        namespaces.restrict_mount(container.HOST, attributes)
    child = processes.Child(_command, command, view, own, user)
    child.result()  # raises what kept it from becoming the command
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _command(command, view, own, user):
    if not own:
        namespaces.die_with_parent()
    if not command and own and view.terminal is not None:
        # A shell that controls jobs gives the terminal back, when it ends, to the process group
        # that had it: that has to be one of its pid namespace.
        os.setpgid(0, 0)
        _take_terminal(view.terminal)
    os.dup2(2, 1)
    os.umask(0o022)
    if user:
        from plashlib import users

        users.become(user)
    command = command or execution.login_shell(user.name if user else "root")
    execution.execute(command, view.environment, view.emulate)


def _set_handlers(change):
    """Change what the signals that end a command do, except those that the caller ignores."""
    import _signal

    for number in _signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            change(_signal, number)


def _ignore_interrupt(signals, number):
    if number == signals.SIGINT:
        signals.signal(number, lambda *_: None)


def _restore_default(signals, number):
    signals.signal(number, signals.SIG_DFL)


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
