"""Processes: which one is which, which use an image, and children of this one.

It rests on proc(5), pid_namespaces(7), prctl(2) and fork(2).
"""

import errno
import os

from plashlib import Error, namespaces

TYPE_CHECKING = False  # for a type checker, which takes it for true
if TYPE_CHECKING:
    from collections.abc import Iterator

INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # the kernel's PROC_PID_INIT_INO


def mark(pid: "int | str") -> str:
    """A name for a process that no other process has, now or later. Raises OSError."""
    return f"{pid}.{_status(pid)[2]}.{namespaces.pid_namespace()}.{namespaces.boot_id()}"


def marks_live_process(name: str) -> bool:
    """Whether name begins with the mark() of a process that may be alive."""
    if name.count(".") < 3:
        return False
    pid, start, namespace, boot = name.split(".")[:4]
    if boot != namespaces.boot_id():
        return False
    if namespace == str(namespaces.pid_namespace()):
        try:
            return _status(pid)[2] == start
        except OSError:
            return False
    # Whether another pid namespace is empty can be seen only from one above it.
    if namespaces.pid_namespace() != INITIAL_PID_NAMESPACE:
        return True
    return namespace in _pid_namespaces()


def _pid_namespaces():
    """The pid namespaces of the processes that can be seen, as text."""
    return {str(namespaces.pid_namespace(pid)) for pid in filter(str.isdigit, os.listdir("/proc"))}


def ancestors() -> "list[str]":
    """The pids of this process's ancestors that are in its session, the nearest first."""
    session, found = str(os.getsid(0)), []
    pid = str(os.getppid())
    while pid != "0":
        try:
            parent, its_session, _ = _status(pid)
        except OSError:
            break
        if its_session != session:
            break
        found.append(pid)
        pid = parent
    return found


def _status(pid):
    """A process's parent, session, and start in clock ticks after boot. Raises OSError."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    if fields[0] in "ZX":
        # It has ended, and its parent has not looked yet.
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return fields[1], fields[3], fields[19]


def hidden_users(data: str) -> bool:
    """Whether processes that can't be seen from here may use images of the store at data.

    Those are of pid namespaces that used images since the kernel was started (pidns/ has them),
    and are not below this one.
    """
    if namespaces.pid_namespace() == INITIAL_PID_NAMESPACE:
        return False
    boot, seen = namespaces.boot_id(), _pid_namespaces()
    entries = [entry.partition(".") for entry in os.listdir(data + "/pidns")]
    return any(namespace not in seen for namespace, _, its in entries if its == boot)


def forget_pid_namespaces(data: str) -> None:
    """Remove the pid namespaces that are known to be gone from pidns/ of the store at data."""
    boot, seen = namespaces.boot_id(), _pid_namespaces()
    see_all = namespaces.pid_namespace() == INITIAL_PID_NAMESPACE and _is_real_root(_our_uids())
    for entry in os.listdir(data + "/pidns"):
        namespace, _, its = entry.partition(".")
        if its != boot or see_all and namespace not in seen:
            try:
                os.unlink(f"{data}/pidns/{entry}")
            except OSError:
                pass  # another command was faster, or it is none of plash's


def image_users(data: str) -> "dict[str, set[int]]":
    """The processes that use images of the store at data, a path without symbolic links.

    Returns a dict of the directories of images, and of those above, to pids. A process uses an
    image if it has an overlay mounted whose source is the image's directory, by whatever path.
    """
    using: dict[str, set[int]] = {}
    for pid, source, _ in overlays(os.stat(data).st_uid):
        directory = _in_store(os.fsdecode(source), data)
        while directory.strip("/"):
            using.setdefault(directory, set()).add(pid)
            directory = os.path.dirname(directory)
    return using


def _in_store(source, data):
    """The path below data of the image that an overlay's source names; "" if that is another's.

    source is as store.Image.source() has it: it may name the store by another path, that of a
    bind mount, or the one before it was moved.
    """
    path, _, identity = source.rpartition("@")
    above, _, ids = path.rpartition("/layer/0/")
    if above == data:
        return path
    try:
        status = os.stat(f"{data}/layer/0/{ids}")
    except OSError:
        return ""
    same = f"{status.st_dev}:{status.st_ino}" == identity
    return f"{data}/layer/0/{ids}" if same else ""


def overlays(owner: int) -> "Iterator[tuple[int, bytes, bytes]]":
    """The overlays that processes have mounted: the pid, the source, the line of mountinfo.

    Only processes that may use images of owner, the uid of the store's owner: what others mount
    has no effect. /proc/PID/mountinfo can be read from outside the process's mount namespace.
    """
    uids, namespace = _our_uids(), os.readlink("/proc/self/ns/user")
    real_root = _is_real_root(uids)
    creators = [(0, 1), *_uids(owner)] if real_root else []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            uid = os.stat(f"/proc/{pid}").st_uid
            if not _is_in(uid, uids):
                continue
            # What root sees may be of any user namespace. That of another user can mount an
            # overlay, and give it the name of any image as its source.
            its_namespace = f"/proc/{pid}/ns/user"
            if real_root and os.readlink(its_namespace) != namespace:
                if not _is_in(namespaces.owner(its_namespace), creators):
                    continue
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                lines = [line for line in file if b" - overlay " in line]
        except OSError:
            continue
        for line in lines:
            yield int(pid), _unescape(line.partition(b" - overlay ")[2].split(b" ")[0]), line


def _our_uids():
    """The uids of processes that may use this user's images, as pairs of first id and count.

    For root of the initial user namespace, and of one that maps ids, those are all that there are.
    """
    own = os.geteuid()
    if own == 0:
        return [(0, namespaces.mapped("uid"))]
    return [(0, 1), *_uids(own)]


def _is_real_root(uids):
    return uids == [(0, 0xFFFFFFFF)]


def _uids(user):
    """A user's uid and subordinate ones, as pairs of first id and count."""
    from plashlib import ids

    return [(user, 1), *ids.subordinate("/etc/subuid", user)]


def _is_in(uid, ranges):
    return any(first <= uid < first + count for first, count in ranges)


class Observer:
    """A process that stays outside of the user namespace that this one enters, and looks at others.

    If /proc is mounted with hidepid, processes of other user namespaces are hidden from inside
    one. Start it before ids.become_root(); data is as for image_users().
    """

    def __init__(self, data: str) -> None:
        requests, self._requests = os.pipe()
        answer, answers = os.pipe()
        self._answers = open(answer, "rb")  # buffered: an answer may be larger than a pipe
        if os.fork():
            os.close(requests)
            os.close(answers)
            return
        try:
            os.close(self._requests)
            self._answers.close()
            namespaces.die_with_parent()
            import marshal

            with open(answers, "wb") as file:
                while os.read(requests, 1):
                    marshal.dump(
                        {key: sorted(pids) for key, pids in image_users(data).items()}, file
                    )
                    file.flush()
        finally:
            os._exit(0)

    def image_users(self) -> "dict[str, set[int]]":
        """As image_users(), seen by the process outside. Raises Error if that has ended."""
        import marshal

        try:
            os.write(self._requests, b".")
            return {key: set(pids) for key, pids in marshal.load(self._answers).items()}
        except (EOFError, BrokenPipeError):
            raise Error("cannot tell which images are in use") from None


def _unescape(field):
    """A field of mountinfo without its octal escapes."""
    first, *rest = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest)


class Child:
    """A forked process that calls a function, and answers with what that returns or raises."""

    _fork = staticmethod(os.fork)

    def __init__(self, function, *arguments):
        reader, writer = os.pipe()
        self.pid = self._fork()
        if self.pid:
            os.close(writer)
            self._reader = reader
            return
        status = 1
        try:
            os.close(reader)
            _send(writer, "result", function(*arguments))
            status = 0
        except Error as error:
            status = error.status
            _send(writer, "Error", (str(error), status))
        except OSError as error:
            names = [name and os.fsencode(name) for name in (error.filename, error.filename2)]
            _send(writer, "OSError", (error.errno, error.strerror or str(error), *names))
        except SystemExit as error:
            status = error.code
            _send(writer, "exit", status)
        except KeyboardInterrupt:
            status = 130
        except BaseException as error:
            _send(writer, "Error", (f"internal error: {type(error).__name__}: {error}", 1))
        finally:
            os._exit(status)

    def result(self):
        """What the function returned, of types that marshal knows.

        None if the process has become another program (execve(2)). Raises what the function
        raised, and Error if the process was killed before it answered.
        """
        import marshal

        with open(self._reader, "rb") as file:
            answer = file.read()
        if not answer:
            return None
        kind, value = marshal.loads(answer)
        if kind == "result":
            return value
        if kind == "exit":
            raise SystemExit(value)
        if kind == "Error":
            raised = Error(value[0])
            raised.status = value[1]
            raise raised
        code, text, *names = value
        raise OSError(code, text, names[0], None, names[1])

    def wait(self) -> int:
        """Wait for the process to end; returns its exit status as a shell has it."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status if status >= 0 else 128 - status


class DependentChild(Child):
    """A Child that is killed when its parent ends, however that ends."""

    def __init__(self, function, *arguments):
        alive, parent = os.pipe()
        super().__init__(_depend, alive, parent, function, *arguments)
        os.close(alive)
        self._parent = parent  # closed when this process ends

    def wait(self) -> int:
        os.close(self._parent)
        return super().wait()


class FirstChild(DependentChild):
    """A DependentChild that is process 1 of a new pid namespace: when it ends, all of that do.

    Raises OSError if there can be no such namespace.
    """

    _fork = staticmethod(namespaces.fork_into_pid_namespace)


def _depend(alive, parent, function, *arguments):
    """Call function in a process that is killed when its parent ends, the writer of alive."""
    os.close(parent)
    namespaces.die_with_parent()
    os.set_blocking(alive, False)
    try:
        if os.read(alive, 1) == b"":
            os._exit(1)  # the parent ended before die_with_parent()
    except BlockingIOError:
        os.close(alive)
    return function(*arguments)


def _send(writer, kind, value):
    import marshal

    os.write(writer, marshal.dumps((kind, value)))


def call(function, *arguments):
    """Call function in a forked process; returns what it returns, or raises what it raises."""
    child = Child(function, *arguments)
    try:
        answer = child.result()
    finally:
        status = child.wait()
    if answer is None and status:
        raise Error(f"a process of plash ended with status {status}")
    return answer


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (PR_SET_CHILD_SUBREAPER)."""
    namespaces.prctl(namespaces.PR_SET_CHILD_SUBREAPER, 1)


def kill_children() -> None:
    """Kill all descendants: those of a killed child become children of this process."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            children = file.read().split()
        if not children:
            return
        for child in children:
            os.kill(int(child), namespaces.SIGKILL)
            os.waitpid(int(child), 0)


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, unless they are ignored or handled already."""
    # Not the module signal: its enums take half as long to make as Python takes to start.
    import _signal

    for number in _signal.SIGTERM, _signal.SIGHUP:
        if _signal.getsignal(number) == _signal.SIG_DFL:
            try:
                _signal.signal(number, _exit)
            except ValueError:
                return  # not the main thread; that one has done it, or starts no helpers


def _exit(number, _):
    raise SystemExit(128 + number)
