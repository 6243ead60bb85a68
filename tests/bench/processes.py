"""Processes as /proc shows them: who descends from whom, what each holds in memory, whether it is still there."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return every process below ``pid``, parents first."""
    found, todo = [], [pid]
    while todo:
        below = list(_children(todo.pop()))
        found += below
        todo += below
    return found


def _children(pid: int) -> Iterator[int]:
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    except OSError:
        return


def alive(pid: int) -> bool:
    """Whether there is such a process, even one that ended and was not waited for."""
    return Path(f"/proc/{pid}").exists()


def is_asleep(pid: int, name: str) -> bool:
    """Whether a process runs a program whose name starts with ``name``, and waits."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith(name) and ") S " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def pss_bytes(pid: int) -> int:
    """Return the memory of a process, what it shares divided by those that share it.

    Raises:
        PermissionError: the process is not dumpable and we are not root.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return _kib(rollup, "Pss:") << 10


def own_bytes(pid: int) -> int:
    """Return the memory of a process without pages of files: what anybody may see, and the largest part of its PSS."""
    status = Path(f"/proc/{pid}/status").read_text()
    return (_kib(status, "RssAnon:") + _kib(status, "RssShmem:")) << 10


@functools.cache
def may_see_pss() -> bool:
    """Whether the memory of processes that are not dumpable can be seen: by root only."""
    return os.geteuid() == 0


def memory_bytes(pid: int) -> int:
    """Return the PSS of a process; for an ordinary user only its own pages."""
    return pss_bytes(pid) if may_see_pss() else own_bytes(pid)


def _kib(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)
