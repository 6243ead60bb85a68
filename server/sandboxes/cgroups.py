"""Limits that the kernel keeps for a whole sandbox, where this process may make control groups (both versions)."""

import contextlib
import os
import signal
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from server.sandboxes.base import Limits

PREFIX = "seatrial-"

LIMIT_OF = {"memory": "memory", "pids": "processes", "cpu": "cpu"}
"""What the limit of each controller is called in what we report."""

REMOVAL_S = 1.0
"""How long the end of a group waits for the last of its processes, which it kills."""

PERIOD_US = 100_000


@dataclass(frozen=True)
class Parents:
    """Folders in which groups can be made, by controller: three trees in version 1, one folder in version 2."""

    version: int
    folders: Mapping[str, Path]


@dataclass(frozen=True)
class Cgroup:
    """The control group of one sandbox; without ``folders`` it is a group in name only.

    ``enforced`` says which limits hold, and how; a controller that refuses a process of ours is taken out of it.
    """

    limits: Limits
    folders: Mapping[str, Path] = field(default_factory=dict)
    enforced: dict[str, str] = field(default_factory=dict)

    def add(self, pid: int) -> None:
        """Put a process into the group; fine if it has ended. What it forked before stays outside: add it while it is alone."""
        for controller, folder in self.folders.items():
            try:
                (folder / "cgroup.procs").write_text(str(pid))
            except ProcessLookupError:
                return
            except OSError:
                self.enforced.pop(LIMIT_OF[controller], None)

    def memory_kills(self) -> int:
        """Return how many processes were killed so far because the group had used up its memory."""
        memory = self.folders.get("memory")
        names = ("memory.events", "memory.oom_control")
        return sum(_count(memory / name, "oom_kill") for name in names) if memory else 0

    def kill_reason(self) -> str | None:
        """Say which limit was hit so far, or None. Only that of memory makes the kernel kill."""
        pids = self.folders.get("pids")
        if self.memory_kills():
            return f"it ran out of its memory (limit {self.limits.memory_bytes >> 20:,} MiB)"
        if pids and _count(pids / "pids.events", "max"):
            return f"it ran out of processes (limit {self.limits.processes:,})"
        return None


@contextmanager
def cgroup(limits: Limits, name: str) -> Generator[Cgroup]:
    """Make a control group, and kill and remove whatever is left of it at the end (at most `REMOVAL_S`).

    ``name`` distinguishes the sandboxes of this process. Where no group can be had, what is yielded enforces nothing;
    where only some limits can be set, its ``enforced`` says which.
    """
    parents = find_parents()
    folders: dict[str, Path] = {}
    enforced: dict[str, str] = {}
    try:
        for controller, parent in parents.folders.items():
            folder = parent / f"{PREFIX}{os.getpid()}-{name}"
            with contextlib.suppress(OSError):
                folder.mkdir(exist_ok=True)
                folders[controller] = folder
                for file, value in _settings(parents.version, controller, limits):
                    (folder / file).write_text(value)
                enforced[LIMIT_OF[controller]] = f"cgroup v{parents.version}"
                _no_swap(folder, limits)
        yield Cgroup(limits, folders, enforced)
    finally:
        _remove(set(folders.values()))


def reap_cgroups() -> None:
    """Remove the empty groups that dead servers left; groups with processes in them stay."""
    for parent in set(find_parents().folders.values()):
        with contextlib.suppress(OSError):
            for folder in parent.glob(f"{PREFIX}*"):
                owner = folder.name.removeprefix(PREFIX).partition("-")[0]
                if not (owner.isdecimal() and Path("/proc", owner).exists()):
                    with contextlib.suppress(OSError):
                        folder.rmdir()


@cache
def find_parents(process: Path = Path("/proc/self")) -> Parents:
    """Return where this process may make groups; nothing is created or changed to find out.

    Version 1: below our own group, so that what limits us goes on limiting sandboxes. Version 2: a folder that already
    hands its controllers to its children. That is never our own group, unless it is the root (a group with processes
    may not hand them on), so it is the one above; we do not rearrange what systemd or a container engine has set up.
    """
    mounts = tuple(_mounts(process / "mountinfo"))
    own = _own_groups(process / "cgroup")
    for root, point, controllers in mounts:
        if "cgroup2" in controllers and (second := _version_2(point, point / _relative(own.get("", "/"), root))):
            return second
    found = {}
    for root, point, controllers in mounts:
        for controller in {"memory", "pids", "cpu"} & controllers:
            below = point / _relative(own.get(controller, "/"), root)
            parent = below if below.is_dir() else point
            if os.access(parent, os.W_OK):
                found[controller] = parent
    return Parents(1, found)


def _version_2(point: Path, own: Path) -> Parents | None:
    for parent in dict.fromkeys((own, own.parent, point)):
        given = {"memory", "pids", "cpu"} & set(_words(parent / "cgroup.subtree_control"))
        inside = parent == point or point in parent.parents
        # Moving a process takes the right to write this file of the folder above where it was and where it goes.
        if inside and given and all(os.access(path, os.W_OK) for path in (parent, parent / "cgroup.procs")):
            return Parents(2, dict.fromkeys(sorted(given), parent))
    return None


def _settings(version: int, controller: str, limits: Limits) -> Iterator[tuple[str, str]]:
    memory, quota = str(limits.memory_bytes), str(max(1_000, int(limits.cpus * PERIOD_US)))
    yield from {
        (1, "memory"): (("memory.limit_in_bytes", memory),),
        (1, "pids"): (("pids.max", str(limits.processes)),),
        (1, "cpu"): (("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", quota)),
        (2, "memory"): (("memory.max", memory),),
        (2, "pids"): (("pids.max", str(limits.processes)),),
        (2, "cpu"): (("cpu.max", f"{quota} {PERIOD_US}"),),
    }[version, controller]


def _no_swap(folder: Path, limits: Limits) -> None:
    """Make the memory limit one of memory and swap together, where this kernel counts swap."""
    for file, value in (("memory.memsw.limit_in_bytes", str(limits.memory_bytes)), ("memory.swap.max", "0")):
        if (folder / file).exists():
            (folder / file).write_text(value)


def _mounts(mountinfo: Path) -> Iterator[tuple[str, Path, set[str]]]:
    """Yield (root within the hierarchy, mount point, controllers) of each mounted hierarchy; version 2 is ``cgroup2``."""
    with contextlib.suppress(OSError):
        for line in mountinfo.read_text().splitlines():
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ", 2)
            if kind in ("cgroup", "cgroup2"):
                root, point = before.split()[3:5]
                yield root, Path(point), {"cgroup2"} if kind == "cgroup2" else set(options.split(","))


def _own_groups(groups: Path) -> dict[str, str]:
    """Return our own group by controller; that of version 2 has the empty name."""
    with contextlib.suppress(OSError):
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
        return {name: path for _, names, path in lines for name in names.split(",")}
    return {}


def _relative(group: str, root: str) -> str:
    """Return where ``group`` lies below a mount of ``root``; a container sees its own group as the root."""
    return group.removeprefix(root.rstrip("/")).strip("/") if ".." not in group else ""


def _remove(folders: set[Path]) -> None:
    end = time.monotonic() + REMOVAL_S
    for folder in folders:
        while folder.exists():
            try:
                folder.rmdir()
            except OSError:
                if time.monotonic() > end:
                    break  # `reap_cgroups` takes it when we are gone
                _kill(folder)
                time.sleep(0.005)


def _kill(folder: Path) -> None:
    for pid in map(int, _words(folder / "cgroup.procs")):
        if pid > 0:  # 0 is a process that we cannot see; killing 0 would kill ourselves
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _words(path: Path) -> Sequence[str]:
    try:
        return path.read_text().split()
    except OSError:
        return ()


def _count(path: Path, name: str) -> int:
    words = _words(path)
    return int(words[words.index(name) + 1]) if name in words else 0
