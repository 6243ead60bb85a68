"""What a command printed: merged in the order of arrival, told apart in the record, bounded however much it is."""

from collections.abc import Iterable
from dataclasses import dataclass

HEAD_BYTES = 4 << 20
TAIL_BYTES = 64 << 10
_MAX_RUNS = 4096


@dataclass(frozen=True)
class Page:
    """A piece of output: ``data`` starts at byte ``start`` of ``total``; what lies before ``start`` may not have been kept."""

    data: bytes
    start: int
    total: int


class Output:
    """The first `HEAD_BYTES` and the last `TAIL_BYTES` of an endless stream, addressed by byte offset."""

    def __init__(self) -> None:
        self.total = 0
        self._head = bytearray()
        self._tail = bytearray()
        self._runs: list[list[int]] = []

    def add(self, stream: int, data: bytes) -> None:
        """Append what came from ``stream`` (1 stdout, 2 stderr)."""
        self.total += len(data)
        room = HEAD_BYTES - len(self._head)
        if room > 0:
            self._head += data[:room]
            self._note(stream, min(room, len(data)))
        if len(data) > room:
            self._tail += data[max(room, 0) :]
            if len(self._tail) > 2 * TAIL_BYTES:
                del self._tail[:-TAIL_BYTES]

    def _note(self, stream: int, size: int) -> None:
        if self._runs and self._runs[-1][0] == stream:
            self._runs[-1][1] += size
        elif len(self._runs) < _MAX_RUNS:
            self._runs.append([stream, size])
        else:
            self._runs[-1] = [0, self._runs[-1][1] + size]  # too many changes to keep apart: from here on mixed

    def page(self, start: int, size: int) -> Page:
        """Return up to ``size`` bytes from offset ``start``; in the part that was not kept, from where the tail begins."""
        if start < len(self._head):
            data = bytes(self._head[start : start + size])
            if len(data) == size or len(self._head) + len(self._tail) < self.total:
                return Page(data, start, self.total)
            return Page(data + bytes(self._tail[: size - len(data)]), start, self.total)
        start = min(max(start, self.total - len(self._tail)), self.total)
        offset = len(self._tail) - (self.total - start)
        return Page(bytes(self._tail[offset : offset + size]), start, self.total)

    @property
    def lost(self) -> tuple[int, int]:
        """From where to where nothing was kept; twice the same where all was."""
        return len(self._head), max(len(self._head), self.total - len(self._tail))

    def record(self) -> tuple[bytes, bytes, list[list[int]]]:
        """Return what to keep: head, tail, and the head's pieces as [stream, bytes] (stream 0: no longer told apart)."""
        return bytes(self._head), bytes(self._tail), self._runs

    @classmethod
    def restored(cls, head: bytes, tail: bytes, total: int, runs: Iterable[Iterable[int]] = ()) -> "Output":
        """Return an output from its record."""
        output = cls()
        output._head += head
        output._tail += tail
        output._runs = [list(run) for run in runs]
        output.total = total
        return output
