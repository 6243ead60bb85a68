"""The local sandbox: bubblewrap, overlay layers, and one process inside for the sandbox's whole life.

The server and the inner process talk in frames over a Unix socket: 4 bytes length, 1 byte kind, 4 bytes number of the
request, payload (numbers big-endian; a frame is at most 64 KiB). Requests: ``R`` run, ``K`` kill, ``G`` read a file,
``W`` write one, ``L`` list a folder, ``p`` a piece of a payload that goes on. Answers: ``r`` ready, ``o``/``e``/``c`` output,
``x`` exit code, ``d`` data, ``D`` end of data, ``!`` refused. The inner process is not trusted: a frame that does not fit, an
answer to a question not asked, or none in time, ends the sandbox.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from server.sandboxes import seccomp
from server.sandboxes.base import (
    CHANNEL,
    STDERR,
    STDOUT,
    WORKDIR,
    Command,
    CommandResult,
    Entry,
    FileData,
    Limits,
    Listing,
    Machine,
    OnOutput,
    PathError,
    Sandbox,
    SandboxDiedError,
    SandboxRefusedError,
)
from server.sandboxes.cgroups import Cgroup, cgroup
from server.sandboxes.spawn import Process, spawn
from server.sandboxes.watchdog import usage_of, watch

logger = logging.getLogger(__name__)

_FRAME = 1 << 16
_PIECE = 60_000
_RECEIVE = 1 << 18
_ANSWER_S = 30.0
_START_S = 30.0
_KILL_S = 15.0
_FLOOD_BYTES = 32 << 20
_FLOOD_PAUSE_S = 0.002
_STREAMS = {b"o": STDOUT, b"e": STDERR, b"c": CHANNEL}
_KINDS = {b"f": "file", b"d": "dir", b"l": "link", b"o": "other"}
_OUR_PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}" if sys.version_info[3] == "final" else ""
"""The Python that reads our bytecode: compiling the inner process's source would take a quarter of its start."""
_INSIDE = "/.inner.py"
"""Source or bytecode: Python looks at what is in it."""
INNER = Path(__file__).with_name("inner.py")


@dataclass(frozen=True)
class Host:
    """What this machine gives to every sandbox, found once per process.

    ``view`` are the bubblewrap options that show the allowed part of ``/usr`` and ``/etc``; ``inner`` is a copy of the inner
    process's source that the sandboxes' user can read, and ``compiled`` its bytecode for the Python that runs us.
    """

    bwrap: Path
    view: Sequence[str]
    inner: Path
    compiled: Path
    uid: int
    gid: int
    reserve_bytes: int


@dataclass
class _Request:
    """A question under way: its answer's pieces, its end."""

    done: anyio.Event
    on_output: OnOutput | None = None
    data: bytearray | None = None
    result: bytes = b""
    refused: bytes | None = None
    received: int = 0


class LocalSandbox:
    """A running local sandbox; made by `open_sandbox` only."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._requests: dict[int, _Request] = {}
        self._last = 0
        self._sending = anyio.Lock()
        self._died = ""
        self.enforced: Mapping[str, str] = {}
        self.ready = anyio.Event()

    async def run(self, command: Command, on_output: OnOutput) -> CommandResult:
        """See `Sandbox.run`."""
        payload = _fields(
            b"1" if command.channel else b"0",
            os.fsencode(command.cwd),
            command.stdin[:49_152],
            str(len(command.argv)).encode(),
            *(os.fsencode(argument) for argument in command.argv),
            *(os.fsencode(f"{name}={value}") for name, value in command.env.items()),
        )
        started = time.monotonic()
        request = _Request(anyio.Event(), on_output=on_output)
        number = await self._ask(b"R", payload, request)
        timed_out = False
        try:
            with anyio.move_on_after(command.timeout_s) as scope:
                await request.done.wait()
            timed_out = scope.cancelled_caught
        finally:
            if not request.done.is_set():
                await self._stop(number, request)
        self._check(number, request, "")
        code = int(request.result) if request.result.lstrip(b"-").isdigit() else -signal.SIGKILL
        return CommandResult(code, time.monotonic() - started, timed_out=timed_out)

    async def read(self, path: str, start: int, size: int) -> FileData:
        """See `Sandbox.read`."""
        request = _Request(anyio.Event(), data=bytearray())
        await self._answered(b"G", _fields(os.fsencode(path), b"%d" % start, b"%d" % size), request, path)
        if request.data is None or len(request.data) > size or not request.result.isdigit():
            raise self._kill("the inner process answered wrongly")
        return FileData(bytes(request.data), int(request.result))

    async def write(self, path: str, data: bytes) -> None:
        """See `Sandbox.write`."""
        await self._answered(b"W", _fields(os.fsencode(path), data), _Request(anyio.Event()), path)

    async def list(self, path: str, depth: int, limit: int) -> Listing:
        """See `Sandbox.list`."""
        request = _Request(anyio.Event(), data=bytearray())
        await self._answered(b"L", _fields(os.fsencode(path), b"%d" % depth, b"%d" % limit), request, path)
        pieces = bytes(request.data or b"").split(b"\0")
        entries = tuple(
            Entry(os.fsdecode(name), _KINDS.get(head[:1], "other"), int(head[1:]) if head[1:].isdigit() else 0)
            for head, name in zip(pieces[0::2], pieces[1::2], strict=False)
        )
        return Listing(entries, max(len(entries), int(request.result) if request.result.isdigit() else 0))

    async def _answered(self, kind: bytes, payload: bytes, request: _Request, path: str) -> None:
        number = await self._ask(kind, payload, request)
        try:
            with anyio.move_on_after(_ANSWER_S):
                await request.done.wait()
        finally:
            self._requests.pop(number, None)
        if not request.done.is_set():
            raise self._kill("the inner process did not answer")
        self._check(number, request, path)

    def _check(self, number: int, request: _Request, path: str) -> None:
        self._requests.pop(number, None)
        if self._died and not (request.result or request.refused):
            raise SandboxDiedError(self._died)
        if request.refused is not None:
            text = request.refused.decode(errors="replace")[:300]
            raise PathError(f"{path}: {text}" if path else text)

    async def _ask(self, kind: bytes, payload: bytes, request: _Request) -> int:
        if self._died:
            raise SandboxDiedError(self._died)
        self._last += 1
        number = self._last
        self._requests[number] = request
        head = number.to_bytes(4, "big")
        frames = bytearray()
        last = max(0, len(payload) - 1) // _PIECE * _PIECE
        for at in range(0, last, _PIECE):
            frames += (5 + _PIECE).to_bytes(4, "big") + b"p" + head + payload[at : at + _PIECE]
        frames += (5 + len(payload) - last).to_bytes(4, "big") + kind + head + payload[last:]
        await self._send(bytes(frames))
        return number

    async def _send(self, frames: bytes) -> None:
        """Send whole frames, even if whoever asked no longer waits: half a frame would break all that come after it."""
        left = memoryview(frames)
        try:
            with anyio.fail_after(_ANSWER_S, shield=True):
                async with self._sending:
                    while left:
                        try:
                            left = left[self._channel.send(left) :]
                        except BlockingIOError:
                            await anyio.wait_writable(self._channel)
        except TimeoutError:
            raise self._kill("the inner process did not read") from None
        except OSError:
            raise self._kill("it ended unexpectedly") from None

    async def _stop(self, number: int, request: _Request) -> None:
        with anyio.CancelScope(shield=True), suppress(SandboxDiedError):
            if not self._died:
                await self._send((5).to_bytes(4, "big") + b"K" + number.to_bytes(4, "big"))
                with anyio.move_on_after(_KILL_S):
                    await request.done.wait()
            if not request.done.is_set():
                self._kill("a command could not be stopped")
        self._requests.pop(number, None)

    def _kill(self, reason: str) -> SandboxDiedError:
        self.died(reason)
        return SandboxDiedError(self._died)

    def died(self, reason: str) -> None:
        """Note why the sandbox is over (the first reason counts) and end every question under way."""
        if not self._died:
            self._died = reason
            with suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)  # wakes whoever waits on it; the one who opened it closes it
            for request in self._requests.values():
                request.done.set()
            self.ready.set()

    @property
    def dead(self) -> str:
        """Why the sandbox is over, or nothing while it lives."""
        return self._died

    async def listen(self) -> None:
        """Take in what the inner process says until it says no more."""
        waiting = bytearray()
        while not self._died:
            try:
                data = self._channel.recv(_RECEIVE)
            except BlockingIOError:
                await anyio.wait_readable(self._channel)
                continue
            except OSError:
                return
            if not data:
                return
            waiting += data
            if self._take(waiting):
                await anyio.sleep(_FLOOD_PAUSE_S)

    def _take(self, waiting: bytearray) -> bool:
        """Handle every whole frame in ``waiting``; return whether a command is flooding us."""
        flooded = False
        at = 0
        while len(waiting) - at >= 4:
            size = int.from_bytes(waiting[at : at + 4], "big")
            if not 5 <= size <= _FRAME:
                self.died("the inner process sent a broken frame")
                return False
            if len(waiting) - at < 4 + size:
                break
            kind = bytes(waiting[at + 4 : at + 5])
            number = int.from_bytes(waiting[at + 5 : at + 9], "big")
            flooded |= self._handle(kind, number, bytes(waiting[at + 9 : at + 4 + size]))
            at += 4 + size
        del waiting[:at]
        return flooded

    def _handle(self, kind: bytes, number: int, payload: bytes) -> bool:
        request = self._requests.get(number)
        if kind == b"r" and number == 0:
            self.ready.set()
        elif request is None or request.done.is_set():
            if number > self._last or number == 0:
                self.died("the inner process answered a question that nobody asked")
        elif kind in _STREAMS and request.on_output is not None:
            request.received += len(payload)
            request.on_output(_STREAMS[kind], payload)
            return request.received > _FLOOD_BYTES
        elif kind == b"d" and request.data is not None:
            request.received += len(payload)
            request.data += payload
            if request.received > 64 << 20:
                self.died("the inner process sent too much")
        elif kind in (b"x", b"D"):
            request.result = payload or b"0"
            request.done.set()
        elif kind == b"!":
            request.refused = payload
            request.done.set()
        else:
            self.died("the inner process sent an unknown frame")
        return False


@asynccontextmanager
async def open_sandbox(machine: Machine, host: Host, background: TaskGroup, name: str) -> AsyncGenerator[Sandbox]:
    """Start a sandbox over ``machine``; every process in it ends with the block, the files of ``upper`` stay.

    ``background`` outlives the block: it takes the tasks that listen and watch. ``name`` names the cgroup.

    Raises:
        SandboxRefusedError: this machine does not let us isolate; nothing has been run.
    """
    async with AsyncExitStack() as stack:
        group = stack.enter_context(cgroup(machine.limits, name))
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        ours.setblocking(False)
        with theirs:
            monitor, log, information = _spawn(machine, host, theirs)
        stack.callback(os.close, log)
        inner = await _inner_pid(monitor, information)
        if inner is None:
            monitor.reap()
            raise SandboxRefusedError(_refusal(log))
        stack.push_async_callback(_end, monitor, inner)
        sandbox = LocalSandbox(ours)
        background.start_soon(_listen, sandbox, group)
        stack.callback(sandbox.died, "it was closed")
        await anyio.to_thread.run_sync(group.add, inner.pid)  # the kernel takes as long as the inner process does to start
        sandbox.enforced = _enforced(machine.limits, group)
        with anyio.move_on_after(_START_S):
            await sandbox.ready.wait()
        if sandbox.dead or not sandbox.ready.is_set():
            raise SandboxRefusedError(_refusal(log))
        watching = anyio.CancelScope()
        background.start_soon(_watch, sandbox, watching, inner, machine, host.reserve_bytes)
        stack.callback(watching.cancel)
        yield sandbox


def _spawn(machine: Machine, host: Host, channel: socket.socket) -> tuple[Process, int, int]:
    """Start bubblewrap from this thread (it dies with the thread that made it); return it, its log and its information pipe."""
    with ExitStack() as stack:

        def sealed(data: bytes) -> int:
            fd = os.memfd_create("seatrial", 0)
            stack.callback(os.close, fd)
            os.write(fd, data)
            os.lseek(fd, 0, os.SEEK_SET)
            return fd

        information, writing = os.pipe()
        stack.callback(os.close, writing)
        log = os.memfd_create("seatrial-log", os.MFD_CLOEXEC)
        syscalls = sealed(seccomp.filter_program(os.uname().machine))
        options = [*bwrap_options(machine, host), "--info-fd", str(writing), "--seccomp", str(syscalls)]
        arguments = sealed(b"".join(os.fsencode(option) + b"\0" for option in options))
        program = [str(host.bwrap), "--args", str(arguments), "--", *inner_argv(machine)]
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, nowhere)
        os.set_inheritable(writing, True)
        monitor = spawn(program, (channel.fileno(), nowhere, log), (writing, syscalls, arguments), host.uid, host.gid)
    return monitor, log, information


def inner_argv(machine: Machine) -> list[str]:
    """Return the command line of the inner process, with the limits that it puts on itself and so on its commands."""
    limits = machine.limits
    rlimits = (f"nproc={limits.processes}", "nofile=8192", "core=0", f"fsize={limits.disk_bytes}")
    return [machine.python, "-I", "-S", "-E", "-B", "-X", "utf8", _INSIDE, *rlimits]


def bwrap_options(machine: Machine, host: Host) -> list[str]:
    """Return the options of the recipe, in the order that matters: see bwrap(1)."""
    options = [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
        *("--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--disable-userns", "--hostname", "box"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
        *host.view,
        *("--proc", "/proc", "--dev", "/dev"),
        *_hidden_proc(),
        *("--size", str(machine.limits.tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108 - inside
        *("--size", str(machine.limits.tmp_bytes), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108 - inside
        *("--size", str(machine.limits.tmp_bytes), "--perms", "0700", "--tmpfs", "/home/agent"),
    ]
    for inside, outside in machine.read_only.items():
        options += ["--ro-bind", str(outside), inside]
    for inside, outside in machine.writable.items():
        options += ["--bind", str(outside), inside]
    for lower in machine.lowers:
        options += ["--overlay-src", str(lower)]
    options += ["--overlay", str(machine.upper), str(machine.work), WORKDIR]
    for path in machine.masked:
        options += _mask(path)
    ours = PurePosixPath(machine.python).name == _OUR_PYTHON
    options += ["--ro-bind", str(host.compiled if ours else host.inner), _INSIDE, "--chdir", WORKDIR]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def _mask(path: str) -> list[str]:
    """Hide a folder (its path ends in ``/``) or a file."""
    if path.endswith("/"):
        return ["--size", "4096", "--perms", "0555", "--tmpfs", path, "--remount-ro", path]
    return ["--ro-bind", "/dev/null", path]


def _hidden_proc() -> list[str]:
    options = []
    for name in ("kcore", "keys", "timer_list", "sched_debug", "sysrq-trigger"):
        if Path("/proc", name).exists():
            options += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in ("acpi", "scsi", "fs", "irq", "bus"):
        if Path("/proc", name).is_dir():
            options += _mask(f"/proc/{name}/")
    return options


async def _inner_pid(monitor: Process, information: int) -> Process | None:
    """Read the inner process's pid as bubblewrap tells it, and close the pipe; None if bubblewrap gave up."""
    os.set_blocking(information, False)
    text = b""
    try:
        with anyio.fail_after(_START_S):
            while b"}" not in text:
                await anyio.wait_readable(information)
                piece = os.read(information, 4096)
                if not piece:
                    return None
                text += piece
        digits = text.partition(b'"child-pid":')[2].strip(b" }\n").split(b",")[0]
        return Process(int(digits), os.pidfd_open(int(digits)))
    except (ProcessLookupError, ValueError):
        return None
    except BaseException:
        monitor.kill()
        monitor.reap()
        raise
    finally:
        os.close(information)


def _refusal(log: int) -> str:
    said = os.pread(log, 4096, 0).decode(errors="replace").strip() or "it ended without a word"
    return f"This machine did not let bubblewrap make a sandbox: {said}. Run `seatrial doctor` to see why and what to do."


def _enforced(limits: Limits, group: Cgroup) -> dict[str, str]:
    best = {
        "memory": "best effort: watchdog",
        "processes": "rlimit",
        "cpu": "not limited",
        "disk": "best effort: watchdog",
        "files": "best effort: watchdog",
        "tmp": f"tmpfs of {limits.tmp_bytes >> 20} MiB",
        "network": "none: empty namespace",
        "system calls": "seccomp",
    }
    return best | dict(group.enforced)


async def _listen(sandbox: LocalSandbox, group: Cgroup) -> None:
    try:
        await sandbox.listen()
    except Exception:
        logger.exception("Listening to a sandbox failed")
    finally:  # also when the server stops: nobody must wait for an answer that nobody would take in
        sandbox.died(group.kill_reason() or "its first process ended")


async def _watch(sandbox: LocalSandbox, scope: anyio.CancelScope, inner: Process, machine: Machine, reserve: int) -> None:
    """Watch a sandbox. One that is opened again over its limits of disk and files may not grow, but must be let to tidy up."""

    def breach(reason: str) -> None:
        sandbox.died(reason)
        inner.kill()

    with scope:
        try:
            limits = machine.limits
            size, files = await anyio.to_thread.run_sync(usage_of, machine.upper, abandon_on_cancel=True)
            limits = replace(limits, disk_bytes=max(limits.disk_bytes, size), files=max(limits.files, files))
            await watch(inner.pid, machine.upper, limits, reserve, breach)
        except Exception:
            logger.exception("Watching a sandbox failed")
            breach("its limits could not be watched")


async def _end(monitor: Process, inner: Process) -> None:
    """Kill the inner process, with it its whole PID namespace, and wait until all of it is gone."""
    with anyio.CancelScope(shield=True):
        try:
            inner.kill()
        except ProcessLookupError:
            pass
        finally:
            os.close(inner.pidfd)
        await _exited(monitor)


async def _exited(monitor: Process) -> None:
    with anyio.move_on_after(_START_S) as scope:
        await anyio.wait_readable(monitor.pidfd)
    if scope.cancelled_caught:
        monitor.kill()
    monitor.reap()


def _fields(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "big") + value for value in values)
