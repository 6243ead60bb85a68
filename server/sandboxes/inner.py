"""The one process inside a local sandbox: PID 1, started by `local.py`, which also describes the frames.

It must start in a few milliseconds and stay small, so it imports builtin modules only (``_ctypes`` for the system
calls that Python does not offer). It is **untrusted**: commands of the agent have the same uid. What protects it from
them is that it is not dumpable, and that signals without a handler do not reach a PID 1.
"""

import _ctypes
import _signal
import posix
import select
import sys

FRAME = 1 << 16
PIECE = 60_000
LATE_PIPES = 64
KILL_ROUNDS = 20
KILL_WAITS = 3000
LIST_FOLDER = 20_000
USELESS = (12, 23, 24, 27)  # ENOMEM, ENFILE, EMFILE, EFBIG: a command has taken our own means away, say with prlimit
LEFT_BEHIND = b"[what earlier commands left behind was killed: it had used up the processes]\n"

_O_PATH = 0o10000000
_RESOLVE = 0x08 | 0x02  # BENEATH, NO_MAGICLINKS
_OPENAT2 = 437
_F_SETPIPE_SZ = 1031
_RLIMITS = {"nproc": 6, "nofile": 7, "core": 4, "fsize": 1}
_libc = _ctypes.dlopen(None, posix.RTLD_NOW)


class Refused(Exception):
    """A path that cannot be used; the text goes back to the server."""


class Running:
    """A command under way: its process (also its session), and the pipes it writes to."""

    def __init__(self, number, pid, pipes):
        self.number, self.pid, self.pipes = number, pid, pipes


def call(name, *arguments):
    return _ctypes.call_function(_ctypes.dlsym(_libc, name), arguments)


def frame(kind, number, payload=b""):
    return (5 + len(payload)).to_bytes(4, "big") + kind + number.to_bytes(4, "big") + payload


def send(kind, number, payload=b""):
    write(frame(kind, number, payload))


def write(data):
    while data:
        data = data[posix.write(0, data) :]


def fields(payload):
    at, found = 0, []
    while at < len(payload):
        size = int.from_bytes(payload[at : at + 4], "big")
        found.append(payload[at + 4 : at + 4 + size])
        at += 4 + size
    return found


# --- commands ---


def start(number, payload):
    """Start a program in a session of its own; its pipes are read by the main loop."""
    channel, cwd, stdin, count, *rest = fields(payload)
    arguments, environment = rest[: int(count)], dict(item.split(b"=", 1) for item in rest[int(count) :])
    theirs, ours = [], []
    read_in, write_in = posix.pipe()
    for _ in range(3 if channel == b"1" else 2):
        reading, writing = ordered_pipe()
        poll.register(reading, select.EPOLLIN | select.EPOLLET)  # before anything is written: the order counts
        ours.append(reading)
        theirs.append(writing)
    try:
        enter(cwd)
        moves = [(posix.POSIX_SPAWN_DUP2, read_in, 0)]
        moves += [(posix.POSIX_SPAWN_DUP2, fd, n + 1) for n, fd in enumerate(theirs)]
        try:
            pid = spawn(number, arguments, environment, moves)
        except OSError as error:
            if error.errno in USELESS:
                raise
            raise Refused(f"{arguments[0].decode(errors='replace')}: {error.strerror}") from None
    except BaseException:
        for fd in (*ours, write_in):
            posix.close(fd)
        raise
    finally:
        for fd in (*theirs, read_in):
            posix.close(fd)
        posix.chdir("/")
    if stdin:
        posix.set_blocking(write_in, False)
        try:
            posix.write(write_in, stdin)  # at most 48 KiB: fits the pipe whole
        except OSError:
            pass
    posix.close(write_in)
    pipes = {}
    for kind, fd in zip((b"o", b"e", b"c"), ours, strict=False):
        pipes[fd] = kind
        owner_of[fd] = (kind, number)
    running[pid] = Running(number, pid, pipes)
    sessions.add(pid)


def enter(cwd):
    try:
        posix.chdir(cwd)
    except OSError as error:
        raise Refused(f"cwd {cwd.decode(errors='replace')}: {error.strerror}") from None


def spawn(number, arguments, environment, moves):
    """Start a process; if there can be no more of them, make room among those that no running command owns."""
    options = {"file_actions": moves, "setsid": True, "setsigdef": range(1, 32), "setsigmask": []}
    try:
        return posix.posix_spawn(arguments[0], arguments, environment, **options)
    except BlockingIOError:
        kill(None, running)
        pid = posix.posix_spawn(arguments[0], arguments, environment, **options)
        send(b"e", number, LEFT_BEHIND)
        return pid


def ordered_pipe():
    """Make a pipe that holds one write (4 KiB at most) at a time.

    Two such pipes, watched edge-triggered, come up in the order in which they were written to: the next write to either
    waits until we have read the last one. So stdout and stderr can be told apart and still be put in order.
    """
    reading, writing = posix.pipe2(posix.O_CLOEXEC | posix.O_DIRECT)
    call("fcntl", reading, _F_SETPIPE_SZ, 4096)
    posix.set_blocking(reading, False)
    return reading, writing


def pump(fd):
    """Pass on what is in a pipe; a pipe whose command has ended is only kept empty. Return False when there is no more."""
    try:
        data = posix.read(fd, PIECE)
    except BlockingIOError:
        return False
    except OSError:
        data = b""
    if not data:
        poll.unregister(fd)
        posix.close(fd)
        owner_of.pop(fd, None)
        if fd in late:
            late.remove(fd)
        return False
    if fd in owner_of:
        kind, number = owner_of[fd]
        send(kind, number, data)
    return True


def reap():
    """Collect every process that ended; the end of a command's own process is the end of the command."""
    while True:
        try:
            pid, status = posix.waitpid(-1, posix.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        command = running.pop(pid, None)
        if command is not None:
            finish(command, posix.waitstatus_to_exitcode(status))


def finish(command, code):
    """Pass on what the command wrote before its end, still in order, then report the end."""
    for _ in range(64):
        events = [fd for fd, _ in poll.poll(0) if fd in owner_of or fd in late]  # an edge comes once
        for fd in events:
            pump(fd)
        if not any(owns(command, fd) for fd in events):
            break
    for fd in command.pipes:
        for _ in range(16):
            if not owns(command, fd) or not pump(fd):
                break
        if owns(command, fd):
            del owner_of[fd]
            late.append(fd)  # a child it left behind may still write: closing would kill that child
    while len(late) > LATE_PIPES:
        fd = late.pop(0)
        poll.unregister(fd)
        posix.close(fd)
    send(b"x", command.number, str(code).encode())


def owns(command, fd):
    """Say whether a pipe is still this command's: one that was closed may have come back as another command's."""
    return fd in command.pipes and owner_of.get(fd) == (command.pipes[fd], command.number)


def processes():
    """Return {pid: (parent, session)} of everything in this PID namespace but us."""
    found = {}
    for name in posix.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                fd = posix.open(f"/proc/{name}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
            except OSError:
                continue
            try:
                parts = posix.read(fd, 4096).rpartition(b") ")[2].split()
            except OSError:
                parts = ()
            posix.close(fd)
            if parts and parts[0] != b"Z":
                found[int(name)] = (int(parts[1]), int(parts[3]))
    return found


def victims(root, owners):
    """Return what belongs to a command: its descendants, its session, and orphans outside the sessions of ``owners``."""
    everything = processes()
    sessions.intersection_update({session for _, session in everything.values()} | set(running))
    others = set(owners) - {root}
    chosen = {
        pid
        for pid, (parent, session) in everything.items()
        if pid == root or session == root or (parent == 1 and pid not in running and session not in others)
    }
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in everything.items() if parent in chosen} - chosen
        chosen |= more
        grown = bool(more)
    return chosen


def stop(number):
    """Kill a command with all that belongs to it."""
    root = next((pid for pid, command in running.items() if command.number == number), None)
    if root is not None:
        kill(root, sessions)


def sweep(number, payload):
    """Kill everything that no running command owns."""
    kill(None, running)
    send(b"D", number, b"0")


def kill(root, owners):
    """Kill the `victims`. If they cannot be outrun (a fork bomb), kill everything but us.

    A killed process needs the processor once more to end, so on a busy machine it is still there for some rounds: only
    rounds that bring new ones count.
    """
    struck, outrun = set(), 0
    for _ in range(KILL_WAITS):
        chosen = victims(root, owners)
        if not chosen:
            return
        outrun += not chosen <= struck
        if outrun > KILL_ROUNDS:
            posix.kill(-1, _signal.SIGKILL)
            return
        struck |= chosen
        for pid in chosen:
            try:
                posix.kill(pid, _signal.SIGKILL)
            except OSError:
                pass
        reap_orphans(root)
        select.select((), (), (), 0.001)


def reap_orphans(root):
    """Collect killed processes, but leave the command's own to the main loop, which reports it."""
    for _ in range(4096):
        try:
            found = posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid in running:
            return
        posix.waitpid(found.si_pid, posix.WNOHANG)


# --- files ---


def beneath(path, flags):
    """Open ``path`` (bytes, relative to the workspace), never leaving it. Return a descriptor, or None."""
    how = (flags | posix.O_CLOEXEC).to_bytes(8, "little") + bytes(8) + _RESOLVE.to_bytes(8, "little")
    fd = call("syscall", _OPENAT2, workspace, path or b".", how, 24)
    return None if fd < 0 else fd


def why_not(path):
    """Say why ``path`` could not be opened."""
    posix.close(posix.dup(0))  # or that we can open nothing any more
    mode = mode_of(path)
    if mode is not None:
        return Refused("permission denied" if mode & 0o170000 == 0o100000 else f"not a regular file but a {kind_of(mode)}")
    for look in (posix.lstat, posix.stat):
        try:
            look(path, dir_fd=workspace)
        except FileNotFoundError:
            return Refused("no such file or folder" if look is posix.lstat else "a symlink that leads nowhere")
        except OSError as error:
            return Refused(error.strerror)
    return Refused("a symlink that leads outside the workspace")


def mode_of(path):
    """Return the mode of what ``path`` leads to, or None if that is nothing of the workspace's."""
    fd = beneath(path, _O_PATH)
    if fd is None:
        return None
    mode = posix.fstat(fd).st_mode
    posix.close(fd)
    return mode


def is_folder(path):
    mode = mode_of(path)
    return mode is not None and mode & 0o170000 == 0o040000


def kind_of(mode):
    return {0o040000: "folder", 0o010000: "FIFO", 0o140000: "socket", 0o020000: "device", 0o060000: "device"}.get(
        mode & 0o170000, "special file"
    )


def open_regular(path, flags):
    fd = beneath(path, flags)
    if fd is None:
        raise why_not(path)
    status = posix.fstat(fd)
    if status.st_mode & 0o170000 != 0o100000:
        posix.close(fd)
        raise Refused(f"not a regular file but a {kind_of(status.st_mode)}")
    return fd, status


def read_file(number, payload):
    path, start_at, size = fields(payload)
    fd, status = open_regular(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_NOCTTY)
    try:
        at, left, last = int(start_at), int(size), b""
        while left > 0:
            data = posix.pread(fd, min(left, PIECE), at)
            if not data:
                break
            write(last)
            last = frame(b"d", number, data)
            at += len(data)
            left -= len(data)
    finally:
        posix.close(fd)
    write(last + frame(b"D", number, str(status.st_size).encode()))  # at once: the server wakes up once


def place_of(path):
    """Return (folder descriptor, name, mode) where a file is to be written, making missing parent folders."""
    try:
        fd, status = open_regular(path, _O_PATH)
    except Refused:
        try:
            posix.lstat(path, dir_fd=workspace)
        except OSError:
            return new_place(path)
        raise
    real = posix.readlink(f"/proc/self/fd/{fd}").encode("utf-8", "surrogateescape")
    posix.close(fd)
    parent, _, name = real.rpartition(b"/")
    return posix.open(parent, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC), name, status.st_mode & 0o777


def new_place(path):
    *parents, name = path.split(b"/")
    made = b""
    for part in parents:
        made = made + b"/" + part if made else part
        try:
            posix.mkdir(made, 0o755, dir_fd=workspace)
        except FileExistsError:
            pass
    folder = beneath(made, posix.O_RDONLY | posix.O_DIRECTORY)
    if folder is None:
        raise Refused("permission denied" if is_folder(made) else "its folder is not a folder of the workspace")
    return folder, name, 0o644


def write_file(number, payload):
    path, data = fields(payload)
    folder, name, mode = place_of(path)
    fresh = b".seatrial-" + posix.urandom(6).hex().encode()
    try:
        fd = posix.open(fresh, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            view = memoryview(data)
            while view:
                view = view[posix.write(fd, view) :]
            posix.fchmod(fd, mode)
            posix.rename(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            posix.unlink(fresh, dir_fd=folder)
            raise
        finally:
            posix.close(fd)
    finally:
        posix.close(folder)
    send(b"D", number, b"0")


def list_folder(number, payload):
    path, depth, limit = fields(payload)
    top = beneath(path, posix.O_RDONLY | posix.O_DIRECTORY)
    if top is None:
        if mode_of(path) is None:
            raise why_not(path)
        raise Refused("permission denied" if is_folder(path) else "not a folder")
    budget = [int(limit), 0]
    try:
        walk(number, top, b"", int(depth), budget)
    finally:
        posix.close(top)
    send(b"D", number, str(budget[1]).encode())


def walk(number, folder, prefix, depth, budget):
    """Send the entries of a folder by name while ``budget`` (entries to send, entries seen) lasts."""
    for name in first_names(folder, budget):
        if budget[0] <= 0:
            return
        budget[0] -= 1
        try:
            status = posix.lstat(name, dir_fd=folder)
        except OSError:
            continue
        kind = {0o100000: b"f", 0o040000: b"d", 0o120000: b"l"}.get(status.st_mode & 0o170000, b"o")
        send(b"d", number, kind + str(status.st_size).encode() + b"\0" + prefix + name + b"\0")
        if kind == b"d" and depth > 1 and name != b".git":
            try:
                below = posix.open(name, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC, dir_fd=folder)
            except OSError:
                continue
            try:
                walk(number, below, prefix + name + b"/", depth - 1, budget)
            finally:
                posix.close(below)


def first_names(folder, budget):
    """Return the first names of a folder, as many as are still to be sent, however many there are."""
    names = []
    with posix.scandir(folder) as found:
        for entry in found:
            names.append(entry.name.encode("utf-8", "surrogateescape"))
            budget[1] += 1
            if len(names) > LIST_FOLDER:
                names.sort()
                del names[budget[0] :]
    names.sort()
    return names[: budget[0]]


# --- the loop ---

REQUESTS = {b"R": start, b"G": read_file, b"W": write_file, b"L": list_folder, b"S": sweep}


def handle(kind, number, payload):
    if kind == b"p":
        parts.setdefault(number, []).append(payload)
    elif kind == b"K":
        stop(number)
        reap()
    else:
        try:
            REQUESTS[kind](number, b"".join([*parts.pop(number, ()), payload]))
        except Refused as refused:
            send(b"!", number, str(refused).encode("utf-8", "replace"))
        except OSError as error:
            if error.errno in USELESS:
                posix._exit(1)
            send(b"!", number, (error.strerror or "failed").encode())
        except ValueError as error:
            send(b"!", number, str(error).encode("utf-8", "replace"))


def read_exactly(size):
    data = b""
    while len(data) < size:
        piece = posix.read(0, size - len(data))
        if not piece:
            posix._exit(0)
        data += piece
    return data


def limit(name, value):
    pair = value.to_bytes(8, "little") * 2
    call("setrlimit", _RLIMITS[name], pair)


def main():
    call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: nobody attaches to us or takes our descriptors
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
        _signal.signal(number, _signal.SIG_IGN)
    for item in sys.argv[1:]:
        name, _, value = item.partition("=")
        limit(name, int(value))
    wake, waker = posix.pipe()
    posix.set_blocking(wake, False)
    posix.set_blocking(waker, False)
    _signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, lambda *_: None)
    poll.register(0, select.EPOLLIN)
    poll.register(wake, select.EPOLLIN)
    send(b"r", 0)
    while True:
        ended = False
        for fd, _ in poll.poll():
            if fd == 0:
                size = int.from_bytes(read_exactly(4), "big")
                asked = read_exactly(size)
                handle(asked[:1], int.from_bytes(asked[1:5], "big"), asked[5:])
            elif fd == wake:
                try:
                    posix.read(wake, 4096)
                except BlockingIOError:
                    pass
                ended = True  # but first what the others wrote
            elif fd in owner_of or fd in late:
                pump(fd)
        if ended:
            reap()


running = {}
sessions = set()
owner_of = {}
late = []
parts = {}
poll = select.epoll()
if __name__ == "__main__":
    workspace = posix.open("/workspace", _O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    main()
