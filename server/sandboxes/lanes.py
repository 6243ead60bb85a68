"""A lane: one shell kept alive in a container over one exec, which does one request at a time."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio

from server.sandboxes.base import STDOUT, OnOutput, PathError
from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.shell import PRELUDE
from server.sandboxes.streams import Exec, ExecStream, open_exec

_FLOOD_BYTES = 32 << 20
_FLOOD_PAUSE_S = 0.002
_MAX_ANSWER = 64 << 20
_LINE = 4096


@dataclass
class Request:
    """What a lane is doing: the marker that ends it, and what has come of it."""

    nonce: bytes = field(default_factory=lambda: secrets.token_hex(16).encode())
    on_output: OnOutput | None = None
    done: anyio.Event = field(default_factory=anyio.Event)
    data: bytearray = field(default_factory=bytearray)
    refused: bytes | None = None
    end: tuple[int, int, int] | None = None
    received: int = 0

    def give(self, data: bytes) -> None:
        """Pass a piece of output on, or keep it if nobody listens."""
        if data:
            self.received += len(data)
            if self.on_output is not None:
                self.on_output(STDOUT, data)
            elif self.received <= _MAX_ANSWER:
                self.data += data


class Lane:
    """One shell; made by `open_lane`. ``listen`` must run all the while."""

    def __init__(self, stream: ExecStream) -> None:
        self._stream = stream
        self._waiting = b""
        self._request: Request | None = None
        self.pid = 0
        self.dirty = False
        self.over = False
        self.last_words = bytearray()

    async def ask(self, request: Request, script: bytes) -> None:
        """Send a request; its event tells the end of it, or of the lane (then ``end`` is None)."""
        self._request = request
        if self.over:
            request.done.set()
            return
        try:
            with anyio.CancelScope(shield=True):  # half a script would break what comes after it
                await self._stream.send(script)
        except DockerError:
            self._ended()

    async def listen(self, on_end: Callable[[], object]) -> None:
        """Take in what the shell and its commands print, until it says no more."""
        try:
            while (pieces := await self._stream.receive()) is not None:
                for number, data in pieces:
                    if number == STDOUT:
                        self._take(data)
                    elif len(self.last_words) < _LINE:
                        self.last_words += data
                flooded = self._request is not None and self._request.received > _FLOOD_BYTES
                await anyio.sleep(_FLOOD_PAUSE_S if flooded else 0)
        except (DockerError, OSError):
            pass
        finally:
            self._ended()
            on_end()

    def _ended(self) -> None:
        self.over = True
        if self._request is not None:
            self._request.done.set()

    def _take(self, data: bytes) -> None:
        """Pass on what is output for certain; keep back what may be the begin of a marker."""
        request = self._request
        if request is None or request.end is not None:
            return  # of a child that an ended command left behind
        waiting, self._waiting = self._waiting + data, b""
        marker = b"\n" + request.nonce + b" "
        while (at := waiting.find(marker)) >= 0:
            end = waiting.find(b"\n", at + len(marker))
            if end < 0:
                break
            request.give(waiting[:at])
            line, waiting = waiting[at + len(marker) : end], waiting[end + 1 :]
            if line.startswith(b"! "):
                request.refused = line[2:]
            else:
                self._finish(request, line)
                return
        if at < 0:
            at = waiting.rfind(b"\n", max(0, len(waiting) - len(marker)))
            if at < 0 or not marker.startswith(waiting[at:]):
                at = len(waiting)
        request.give(waiting[:at])
        self._waiting = waiting[at:]

    def _finish(self, request: Request, line: bytes) -> None:
        code, dirty, kills = (int(word) for word in line.split())
        request.end = code, dirty, kills
        self.dirty = bool(dirty)
        request.done.set()

    def close(self) -> None:
        self._stream.close()


async def open_lane(daemon: Daemon, container: str, user: str) -> Lane:
    """Start a shell in a running container and teach it the prelude; whoever opens it starts ``listen``."""
    with anyio.CancelScope(shield=True):
        lane = Lane(await open_exec(daemon, container, Exec(["sh"], user=user, stdin=True)))
        try:
            await lane._stream.send(PRELUDE)
        except BaseException:
            lane.close()
            raise
    return lane


def refusal(request: Request, path: str) -> PathError | None:
    """Return the error that a request was refused with."""
    if request.refused is None:
        return None
    text = request.refused.decode(errors="replace")[:300]
    return PathError(f"{path}: {text}" if path else text)
