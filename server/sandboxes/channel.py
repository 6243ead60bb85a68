"""The conversation with the process inside a local sandbox: requests out, answers in, nothing believed that does not fit.

Both talk in frames over a Unix socket: 4 bytes length, 1 byte kind, 4 bytes number of the
request, payload (numbers big-endian; a frame is at most 64 KiB). Requests: ``R`` run, ``K`` kill, ``G`` read a file,
``W`` write one, ``L`` list a folder, ``S`` sweep, ``p`` a piece of a payload that goes on. Answers: ``r`` ready,
``o``/``e``/``c`` output, ``x`` exit code, ``d`` data, ``D`` end of data, ``!`` refused. The inner process is not trusted: a
frame that does not fit, an answer to a question not asked, or none in time, ends the sandbox.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import anyio

from server.sandboxes.base import (
    CHANNEL,
    STDERR,
    STDOUT,
    Command,
    CommandResult,
    Entry,
    FileData,
    Listing,
    OnOutput,
    PathError,
    SandboxDiedError,
)

_FRAME = 1 << 16
_PIECE = 60_000
_RECEIVE = 1 << 18
_ANSWER_S = 30.0
_KILL_S = 15.0
_FLOOD_BYTES = 32 << 20
_FLOOD_PAUSE_S = 0.002
_STREAMS = {b"o": STDOUT, b"e": STDERR, b"c": CHANNEL}
_KINDS = {b"f": "file", b"d": "dir", b"l": "link", b"o": "other"}


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
        self.memory_kills: Callable[[], int] = lambda: 0
        self._kills = 0

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
        return CommandResult(
            code, time.monotonic() - started, timed_out=timed_out, out_of_memory=code != 0 and self._lost_memory()
        )

    def _lost_memory(self) -> bool:
        """Say whether the kernel has killed for memory since this was asked last."""
        before, self._kills = self._kills, self.memory_kills()
        return self._kills > before

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

    async def sweep(self) -> None:
        """See `Sandbox.sweep`."""
        await self._answered(b"S", b"", _Request(anyio.Event()), "")

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


def _fields(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "big") + value for value in values)
