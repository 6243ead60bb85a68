"""Limits kept by looking, where the kernel does not keep them: memory, processes, and what lands on the disk.

Everything seen here is made by hostile hands: it may vanish while looked at, be unreadable, or be endless.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from server.sandboxes.base import Limits

MOST_PROCESSES = 20_000
MOST_DESCRIPTORS = 20_000
"""How much of a sandbox one look takes in; what is beyond is over its limits anyway, or waits for the next look."""

BUSY_S, IDLE_S = 0.25, 0.5
"""Pauses between two looks while commands run, and while only the inner process lives."""

WALK_S, WALK_SHARE = 0.5, 3
"""A walk of the files is followed by a pause of ``WALK_SHARE`` times its own duration, at least ``WALK_S``."""

WORTH_A_LOOK = 8 << 20
"""Bytes of shared memory that one process maps above which it is found out how many share them."""

ENTRY_BYTES = 64
"""Bytes that a folder grows by per entry, for guessing what is in one that we may not open."""


@dataclass(frozen=True)
class Held:
    """Bytes that no walk of files and no resident page shows: they live only in open descriptors."""

    memory_bytes: int = 0
    deleted_bytes: int = 0


def descendants(pid: int) -> Sequence[int]:
    """Return ``pid`` and all processes below it; given a sandbox's PID 1 that is every process of the sandbox."""
    found, todo = dict.fromkeys((pid,)), [pid]
    while todo and len(found) < MOST_PROCESSES:
        children = [child for child in _children(todo.pop()) if child not in found]
        found.update(dict.fromkeys(children))
        todo += children
    return tuple(found)


def processes(pid: int) -> int:
    """Return how many processes and threads live below and at ``pid``; a process that has vanished counts as none."""
    return _tasks(descendants(pid))


def memory_bytes(pid: int) -> int:
    """Return the memory that the processes at and below ``pid`` hold, without the pages of files."""
    everyone = descendants(pid)
    return _memory(everyone, held(everyone))


def held(pids: Sequence[int]) -> Held:
    """Return what open descriptors keep: memory files (not resident in anybody), and deleted files of the workspace."""
    seen: dict[tuple[int, int], tuple[str, int]] = {}
    looked = 0
    for pid in pids:
        for name in _names(f"/proc/{pid}/fd"):
            looked += 1
            if looked > MOST_DESCRIPTORS:
                break
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{pid}/fd/{name}")
                target = str(path.readlink())
                status = path.stat() if target.startswith(("/memfd:", "/workspace/")) else None
                if status and status.st_nlink == 0:
                    seen[status.st_dev, status.st_ino] = target[:2], status.st_blocks * 512
    sizes = {kind: sum(size for which, size in seen.values() if which == kind) for kind in ("/m", "/w")}
    return Held(memory_bytes=sizes["/m"], deleted_bytes=sizes["/w"])


def usage_of(upper: Path, most_files: int = 10_000_000) -> tuple[int, int]:
    """Return the bytes on disk and the number of entries below ``upper``; the walk stops beyond ``most_files``.

    No symlink is followed. A folder that cannot be opened counts with a guess from its size; one that is moved away
    during the walk ends it early, with what was seen so far. At most two folders are open at a time, however deep it goes.
    """
    fd = _open_folder(str(upper))
    if fd is None:
        return 0, 0
    size = count = 0
    with closing(_Cursor(fd)) as cursor:
        while count <= most_files:
            below, more_size, more_count = _look(cursor.fd, most_files - count)
            size, count = size + more_size, count + more_count
            cursor.found(below)
            while not cursor.down():
                if cursor.refused is not None:
                    count += _guess(cursor.refused, cursor.fd)
                elif not cursor.up():
                    return size, count
    return size, count


class _Cursor:
    """One open folder that moves through a tree that others change meanwhile; it goes up only to where it came from."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.refused: str | None = None
        self._trail: list[tuple[tuple[int, int], list[str]]] = []

    def found(self, below: list[str]) -> None:
        """Note the folders to visit in the one that is open."""
        self._trail.append((_identity(self.fd), below))

    def down(self) -> bool:
        """Open the next folder below; False if there is none left, or it was `refused`."""
        below = self._trail[-1][1]
        name = below.pop() if below else None
        inner = _open_folder(name, self.fd) if name is not None else None
        self.refused = name if inner is None else None
        return inner is not None and self._move(inner)

    def up(self) -> bool:
        """Open the folder above; False at the top, or if this one was moved away meanwhile."""
        self._trail.pop()
        outer = _open_folder("..", self.fd) if self._trail else None
        return outer is not None and self._move(outer) and _identity(outer) == self._trail[-1][0]

    def close(self) -> None:
        os.close(self.fd)

    def _move(self, fd: int) -> bool:
        os.close(self.fd)
        self.fd = fd
        return True


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that holds ``path``, as an ordinary user may use them."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


async def watch(pid: int, upper: Path, limits: Limits, reserve_bytes: int, on_breach: Callable[[str], None]) -> None:
    """Look at a sandbox until it ends or breaks a limit; call ``on_breach`` with the reason, once, and return.

    ``pid`` is the sandbox's PID 1 as we see it. An idle sandbox costs a few reads a second. Cancelling stops it at once.
    """
    next_walk, changed = 0.0, True
    while _alive(pid):
        idle = not _children(pid)
        changed = changed or not idle
        walk = changed and time.monotonic() >= next_walk
        if walk or not idle:
            started = time.monotonic()
            reason = await anyio.to_thread.run_sync(_breach, pid, upper if walk else None, limits, abandon_on_cancel=True)
            if reason:
                on_breach(reason)
                return
            if walk:
                ended = time.monotonic()
                next_walk, changed = ended + max(WALK_S, WALK_SHARE * (ended - started)), not idle
        if free_bytes(upper) < reserve_bytes:
            on_breach(f"the disk has less than {reserve_bytes >> 20:,} MiB left, which the host keeps for itself")
            return
        await anyio.sleep(IDLE_S if idle else BUSY_S)


def _breach(pid: int, upper: Path | None, limits: Limits) -> str | None:
    everyone = descendants(pid)
    if _tasks(everyone) > limits.processes:
        return f"more than {limits.processes:,} processes (limit {limits.processes:,})"
    kept = held(everyone)
    if _memory(everyone, kept) > limits.memory_bytes:
        return f"more than {limits.memory_bytes >> 20:,} MiB of memory (limit {limits.memory_bytes >> 20:,} MiB)"
    if upper is None:
        return None
    size, files = usage_of(upper, limits.files)
    if files > limits.files:
        return f"more than {limits.files:,} files in the workspace (limit {limits.files:,})"
    if size + kept.deleted_bytes > limits.disk_bytes:
        limit = f"{limits.disk_bytes >> 20:,} MiB"
        return f"more than {limit} written to the workspace (limit {limit})"
    return None


def _alive(pid: int) -> bool:
    """Whether ``pid`` still runs; one that ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1]
    except OSError:
        return False
    return state not in (b"Z", b"X")


def _children(pid: int) -> Sequence[int]:
    found: list[int] = []
    for task in _names(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    return found


def _tasks(pids: Sequence[int]) -> int:
    return sum(len(_names(f"/proc/{pid}/task")) for pid in pids)


def _memory(pids: Sequence[int], kept: Held) -> int:
    """Add up anonymous pages and shared memory; memory files count by size or by mapped pages, whichever is more."""
    private = shared = 0
    for pid in pids:
        resident = _kibibytes(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:"))
        private += resident[b"RssAnon:"]
        mapped = resident[b"RssShmem:"]
        if mapped > WORTH_A_LOOK:  # many processes may map the same pages; the kernel can share them out, slowly
            mapped = _kibibytes(f"/proc/{pid}/smaps_rollup", (b"Pss_Shmem:",))[b"Pss_Shmem:"] or mapped
        shared += mapped
    return private + max(shared, kept.memory_bytes)


def _kibibytes(path: str, names: Sequence[bytes]) -> dict[bytes, int]:
    """Return the values of some lines of a /proc file in bytes, 0 for those that are missing."""
    found = dict.fromkeys(names, 0)
    with contextlib.suppress(OSError):
        for line in Path(path).read_bytes().splitlines():
            words = line.split()
            if words and words[0] in found:
                found[words[0]] = int(words[1]) << 10
    return found


def _names(folder: str) -> Sequence[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return ()


def _open_folder(name: str, parent: int | None = None) -> int | None:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return None


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _look(fd: int, most: int) -> tuple[list[str], int, int]:
    """Return the names of the folders in ``fd``, the bytes of all its entries and their number (at most ``most`` + 1)."""
    below: list[str] = []
    size = count = 0
    for entry in _entries(fd):
        count += 1
        if count > most:
            break
        with contextlib.suppress(OSError):
            status, is_folder = entry.stat(follow_symlinks=False), entry.is_dir(follow_symlinks=False)
            size += status.st_blocks * 512 // (1 if is_folder else max(1, status.st_nlink))  # each name bears its share
            if is_folder:
                below.append(entry.name)
    return below, size, count


def _entries(fd: int) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(fd) as entries:
        yield from entries


def _guess(name: str, parent: int) -> int:
    with contextlib.suppress(OSError):
        size = os.stat(name, dir_fd=parent, follow_symlinks=False).st_size
        return size // ENTRY_BYTES if size > 4096 else 0
    return 0
