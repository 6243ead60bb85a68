"""Listing folders through a shell, which can look into one folder at a time: in what order, and how much of it."""

import os
import stat
from collections.abc import Awaitable, Callable

from server.sandboxes.base import Entry, Listing, PathError

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


class Walk:
    """One listing under way; ``look`` returns for a folder a text ``MODE SIZE NAME//`` and a newline for each name."""

    def __init__(self, look: Callable[[bytes], Awaitable[bytes]], limit: int) -> None:
        self._look = look
        self._limit = limit
        self._entries: list[Entry] = []
        self._seen = 0

    async def listing(self, path: str, depth: int) -> Listing:
        """List a folder, ``depth`` levels, by name within each folder."""
        await self._walk(os.fsencode(path), b"", depth)
        return Listing(tuple(self._entries), self._seen)

    async def _walk(self, folder: bytes, prefix: bytes, depth: int) -> None:
        found = sorted(_parsed(await self._look(folder)))
        self._seen += len(found)
        for name, mode, size in found:
            if len(self._entries) >= self._limit:
                return
            kind = _KINDS.get(stat.S_IFMT(mode), "other")
            self._entries.append(Entry(os.fsdecode(prefix + name), kind, size))
            if kind == "dir" and depth > 1 and name != b".git":
                try:
                    await self._walk(folder + b"/" + name, prefix + name + b"/", depth - 1)
                except PathError:
                    continue  # it may not be read, or is gone


def _parsed(said: bytes) -> list[tuple[bytes, int, int]]:
    """Take apart what ``stat`` printed: no name holds a slash, so ``//`` ends each."""
    found = []
    for line in said.split(b"//\n"):
        mode, _, rest = line.partition(b" ")
        size, _, name = rest.partition(b" ")
        if name:
            found.append((name, int(mode, 16), int(size)))
    return found
