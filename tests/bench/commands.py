"""What an open workspace costs per call: a command in the sandbox, a command and a file through MCP."""

import itertools
from collections.abc import Sequence

import anyio

from server.builds import AGENT_ENV, SHELL
from server.sandboxes.base import Command
from server.sandboxes.local import open_sandbox
from tests.bench.kit import BARE, OURS, BenchError, Joined, Kit, joined, spawned
from tests.bench.measure import Row, interleaved, timed
from tests.support.front_door import H11

BASH = (SHELL, "-c", "true")
VIEWED = "h11/_connection.py"
"""A file of some 650 lines, more than one answer holds: answers are as long as they may be."""
_VIEWED_FROM = 400


async def measure_sandbox(kit: Kit) -> Sequence[Row]:
    with kit.machine(H11, "commands") as machine:
        async with anyio.create_task_group() as background:
            async with open_sandbox(machine, kit.host, background, "bench") as sandbox:

                async def run() -> None:
                    result = await sandbox.run(Command(BASH, AGENT_ENV), lambda *_: None)
                    if result.exit_code:
                        raise BenchError(f"bash ended with {result.exit_code}")

                async def floor() -> float:
                    return spawned(BASH, AGENT_ENV)

                mine, theirs = await interleaved(kit.scale.short, lambda: timed(run), floor, warm_up=5)
            background.cancel_scope.cancel()
    floor_is = "`bash -c true` by posix_spawn and waitpid"
    return [Row("bash", "`bash -c true` in a sandbox, by LocalSandbox.run", floor_is, 1.5, "ms", mine, theirs)]


async def measure_command(kit: Kit) -> Sequence[Row]:
    async with joined(kit, OURS) as server, joined(kit, BARE) as bare:
        workspace_id = await server.open()

        async def ours() -> float:
            return await timed(lambda: server.run(workspace_id, "true"))

        async def floor() -> float:
            return await _noop(bare) + spawned(BASH, AGENT_ENV)

        mine, theirs = await interleaved(kit.scale.short, ours, floor, warm_up=5)
        await server.close(workspace_id)
    floor_is = "a tool that does nothing of a bare SDK server over stdio, plus `bash -c true` by posix_spawn"
    return [Row("run_command", "run_command `true` through MCP over stdio", floor_is, 2, "ms", mine, theirs)]


async def measure_view(kit: Kit) -> Sequence[Row]:
    async with joined(kit, OURS) as server, joined(kit, BARE) as bare:
        workspace_id = await server.open()

        lines = itertools.cycle(range(1, _VIEWED_FROM))  # from another one each time: no answer is on record already

        async def ours() -> float:
            line = next(lines)
            return await timed(lambda: server.call("view_file", workspace_id=workspace_id, path=VIEWED, start_line=line))

        mine, theirs = await interleaved(kit.scale.short, ours, lambda: _noop(bare), warm_up=5)
        await server.close(workspace_id)
    what = f"view_file of {VIEWED} through MCP over stdio, as much as one answer holds"
    return [Row("view_file", what, "a tool that does nothing of a bare SDK server over stdio", 2, "ms", mine, theirs)]


async def _noop(bare: Joined) -> float:
    return await timed(lambda: bare.call("noop"))
