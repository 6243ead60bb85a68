"""Many workspaces at once in one server: what each costs in memory, and how fast all of them are gone without a trace."""

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio

from server.sandboxes.cgroups import PREFIX, find_parents
from tests.bench.kit import OURS, BenchError, Joined, Kit, bare_bwrap, folder_of, joined, open_starter
from tests.bench.measure import Row
from tests.bench.processes import alive, descendants, is_asleep, may_see_pss, memory_bytes
from tests.support.front_door import H11

_AT_ONCE = 8
"""How many calls the client has under way while it opens."""
_END_S = 60

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class _Round:
    """Bytes per workspace, of the server per workspace, and of each bare bubblewrap; seconds to the end of all of them."""

    each: float
    growth: float
    seconds: float
    bare_each: float
    bare_seconds: float


async def measure_many(kit: Kit) -> Sequence[Row]:
    closing, ending = [], []
    for _ in range(kit.scale.long):
        closing.append(_Round(*await _ours(kit, by_closing=True), *await _bare(kit)))
        ending.append(_Round(*await _ours(kit, by_closing=False), *await _bare(kit)))
    both, count = [*closing, *ending], kit.scale.many
    growth = statistics.median(one.growth for one in both) / 1024
    bare = f"{count} bare bubblewraps with the same options, each running an idle `python -I -S`"
    killed = f"SIGKILL of the processes in {bare}, until they are gone"
    memory = "PSS" if may_see_pss() else "private memory (only root may see PSS)"
    rows = [
        Row(
            "many-memory",
            f"{memory} of bubblewrap and the inner process, for each of {count} open workspaces",
            bare,
            6,
            "MiB",
            [one.each for one in both],
            [one.bare_each for one in both],
            absolute=True,
            note=f"besides, the server grew by {growth:.0f} KiB for each",
        )
    ]
    for name, what, rounds in (
        ("many-close", f"close_workspace of {count}, until no process, mount, cgroup or folder is left", closing),
        (
            "many-end",
            f"the end of a server with {count} open, until no process, mount or cgroup is left",
            ending,
        ),
    ):
        ours, floor = [one.seconds for one in rounds], [one.bare_seconds for one in rounds]
        rows.append(Row(name, what, killed, 2, "s", ours, floor, absolute=True))
    return rows


async def _ours(kit: Kit, *, by_closing: bool) -> tuple[float, float, float]:
    """Open many, look at their memory, end them; return bytes for each, the server's growth for each, seconds."""
    count = kit.scale.many
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(joined(kit, OURS))
        await server.close(await server.open())
        before = memory_bytes(server.pid)
        opened = await _open_all(server, count)
        pids = descendants(server.pid)
        if len(pids) != 2 * count:
            raise BenchError(f"{count} workspaces have {len(pids)} processes.")
        each, growth = sum(map(memory_bytes, pids)) / count, (memory_bytes(server.pid) - before) / count
        folders = [folder_of(kit, workspace_id) for workspace_id in opened]
        started = time.perf_counter()
        if by_closing:
            await _for_all(opened, lambda one: server.call("close_workspace", workspace_id=one), at_once=count)
            await _ended(pids, folders)
        else:
            await stack.aclose()
            await _ended([server.pid, *pids], [])
        seconds = time.perf_counter() - started
        _nothing_left(kit, server.pid)
    if not by_closing:
        async with joined(kit, OURS) as later:
            await _for_all(opened, later.close, at_once=_AT_ONCE)
    return each, growth, seconds


async def _open_all(server: Joined, count: int) -> list[str]:
    opened: list[str] = []

    async def open_one(_: int) -> None:
        opened.append(await server.open())

    await _for_all(range(count), open_one, at_once=_AT_ONCE)
    return opened


async def _for_all(items: Sequence[_Item], do: Callable[[_Item], Awaitable[object]], *, at_once: int) -> None:
    places = anyio.CapacityLimiter(at_once)

    async def do_one(item: _Item) -> None:
        async with places:
            await do(item)

    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(do_one, item)


async def _ended(pids: Sequence[int], folders: Sequence[Path]) -> None:
    """Wait until none of the processes and folders is there."""
    with anyio.fail_after(_END_S):
        while any(map(alive, pids)) or any(folder.exists() for folder in folders):
            await anyio.sleep(0.002)


def _nothing_left(kit: Kit, server: int) -> None:
    """Check that neither a mount nor a cgroup of a server is left on this machine; its processes are gone already."""
    mounts = Path("/proc/self/mountinfo").read_text()
    groups = [str(left) for parent in find_parents().folders.values() for left in parent.glob(f"{PREFIX}{server}-*")]
    if str(kit.state.root) in mounts or groups:
        raise BenchError(f"Something is left: {groups or 'a mount'}")


async def _bare(kit: Kit) -> tuple[float, float]:
    """Hold as many bare bubblewraps; return bytes for each, and seconds from SIGKILL until they are gone."""
    count = kit.scale.many
    idle = ["-I", "-S", "-c", "import _signal; _signal.pause()"]
    with ExitStack() as stack:
        starter = stack.enter_context(open_starter(kit))
        for number in range(count):
            machine = stack.enter_context(kit.machine(H11, f"bare-{number}"))
            monitor = starter.hold(bare_bwrap(starter, kit.host, machine, [machine.python, *idle]), {})
            await _idle_below(monitor)  # before the next one reads the same descriptor
        pids = descendants(starter.pid)
        each = sum(map(memory_bytes, pids)) / count
        inner = [pid for pid in pids if not descendants(pid)]
        started = time.perf_counter()
        starter.kill(inner)
        await _ended(pids, [])
        return each, time.perf_counter() - started


async def _idle_below(monitor: int) -> None:
    """Wait until the process that a bubblewrap started is Python, asleep."""
    with anyio.fail_after(_END_S):
        while not any(is_asleep(pid, "python") for pid in descendants(monitor)):
            await anyio.sleep(0.001)
