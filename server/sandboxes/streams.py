"""One ``docker exec`` as a stream: what we write is its standard input, what it prints comes in pieces, told apart.

Docker multiplexes: each piece is preceded by 8 bytes, the stream's number, 3 zeros, and the length, big-endian. A program
can make a piece as long as it likes, so pieces are passed on as they come in, never collected.
"""

import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio

from server.sandboxes.daemon import Daemon, DockerError

_RECEIVE = 1 << 18
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Exec:
    """What to start in a running container; an empty ``user`` or ``cwd`` is the container's."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    cwd: str = ""
    stdin: bool = False


class Frames:
    """Takes the multiplexed bytes apart, however they are cut."""

    def __init__(self) -> None:
        self._head = b""
        self._stream = 1
        self._left = 0

    def take(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return the pieces (stream, bytes) that ``data`` completes or goes on with."""
        found: list[tuple[int, bytes]] = []
        at = 0
        while at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                found.append((self._stream, piece))
                self._left -= len(piece)
                at += len(piece)
                continue
            missing = 8 - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == 8:
                if self._head[0] > 3 or self._head[1:4] != b"\0\0\0":
                    raise DockerError("Docker sent a broken stream. See whether DOCKER_HOST leads to a Docker daemon.")
                self._stream, self._left = self._head[0] or 1, int.from_bytes(self._head[4:], "big")
                self._head = b""
        return found


class ExecStream:
    """A running exec; made by `open_exec`, closed by whoever opened it. One task may read at a time, and one write."""

    def __init__(self, id: str, reader: Any) -> None:
        self.id = id
        self._reader, self._response = reader, reader._response  # which closes the socket when it is forgotten
        self._socket: socket.socket = getattr(reader, "_sock", reader)
        self._socket.setblocking(False)
        self._frames = Frames()
        self._early = _buffered(self._response)

    async def send(self, data: bytes) -> None:
        """Write all of ``data``.

        Raises:
            DockerError: the other side is gone.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except ssl.SSLWantReadError:
                await anyio.wait_readable(self._socket)
            except (BlockingIOError, ssl.SSLWantWriteError):
                await anyio.wait_writable(self._socket)
            except (OSError, ValueError, anyio.ClosedResourceError) as error:
                raise DockerError(f"The stream to a container broke: {error}. Try again.") from error

    async def receive(self) -> list[tuple[int, bytes]] | None:
        """Wait for output and return it; None at the end."""
        while True:
            data, self._early = self._early or self._received(), b""
            if data is None:
                try:
                    await anyio.wait_readable(self._socket)
                except (anyio.ClosedResourceError, ValueError):  # closed by us
                    return None
            elif not data:
                return None
            elif pieces := self._frames.take(data):
                return pieces

    def _received(self) -> bytes | None:
        """Return what has come in, nothing at the end, None if there is nothing now."""
        try:
            return self._socket.recv(_RECEIVE)
        except _NOT_NOW:
            return None
        except OSError:
            return b""

    def close(self) -> None:
        with suppress(OSError):
            anyio.notify_closing(self._socket)
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._response.close()
        for held in (self._response.raw._fp, self._reader, self._socket):  # each keeps the socket open by itself
            with suppress(OSError):
                held.close()


def _buffered(response: Any) -> bytes:
    """Return what was read together with the head of the answer: it is already output."""
    try:
        return bytes(response.raw._fp.fp.read1(_RECEIVE) or b"")
    except (*_NOT_NOW, ValueError):
        return b""


async def open_exec(daemon: Daemon, container: str, given: Exec) -> ExecStream:
    """Start a program in a running container.

    Raises:
        DockerError: the container is not there or not running.
    """

    def start(client: Any) -> ExecStream:
        made = client.exec_create(
            container,
            list(given.argv),
            stdin=given.stdin,
            user=given.user,
            workdir=given.cwd or None,
            environment=dict(given.env) or None,
        )
        return ExecStream(made["Id"], client.exec_start(made["Id"], socket=True))

    return await daemon.call(start)
