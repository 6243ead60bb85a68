"""Opening a workspace: against bare bubblewrap, and a large tree against a small one."""

import time
from collections.abc import Sequence

from server.builds import AGENT_ENV, SHELL
from tests.bench.kit import OURS, Joined, Kit, bare_bwrap, joined, open_starter
from tests.bench.measure import Row, interleaved
from tests.bench.trees import make_trees
from tests.support.front_door import H11


async def measure_open(kit: Kit) -> Sequence[Row]:
    with open_starter(kit) as starter, kit.machine(H11, "floor") as machine:
        argv = bare_bwrap(starter, kit.host, machine, [machine.python, "-I", "-S", "-c", "pass"])

        async def floor() -> float:
            return starter.start(argv, {}) + starter.start([SHELL, "-c", "true"], AGENT_ENV)

        async with joined(kit, OURS) as server:

            async def ours() -> float:
                return await _opened(server, H11)

            mine, theirs = await interleaved(kit.scale.medium, ours, floor, warm_up=3)
    what = "open_workspace and run_command `true` through MCP over stdio, on a warm server"
    floor_is = "the same bwrap options running `python -I -S -c pass`, then `bash -c true`, each by posix_spawn"
    return [Row("open", what, floor_is, 1.5, "ms", mine, theirs)]


async def measure_trees(kit: Kit) -> Sequence[Row]:
    small, large = make_trees(kit)
    async with joined(kit, OURS) as server:

        async def ours() -> float:
            return await _opened(server, large)

        async def floor() -> float:
            return await _opened(server, small)

        mine, theirs = await interleaved(kit.scale.medium, ours, floor, warm_up=3)
    (small_mb, large_mb) = kit.scale.trees_mb
    what = f"open_workspace and run_command `true`, a tree of {large_mb} MB"
    return [Row("open-large", what, f"the same, a tree of {small_mb} MB", 1.3, "ms", mine, theirs)]


async def _opened(server: Joined, task_id: str) -> float:
    started = time.perf_counter()
    workspace_id = await server.open(task_id)
    await server.run(workspace_id, "true")
    seconds = time.perf_counter() - started
    await server.close(workspace_id)
    return seconds
