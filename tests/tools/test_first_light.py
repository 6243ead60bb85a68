"""The whole way of an agent: open, look, work, submit."""

from pathlib import Path

import anyio
import pytest
from front_door import H11, Agent, connected
from kept import kept

pytestmark = pytest.mark.anyio


async def test_an_unchanged_workspace_is_not_resolved(agent: Agent) -> None:
    workspace = await agent.open()

    answer = await agent.submit(workspace)

    assert answer.first == "not resolved"
    assert "0 of 1 tests of the requested change and 71 of 71 other tests passed" in answer.text


async def test_a_workspace_that_is_being_built_is_not_to_be_opened_again(state_folder: Path) -> None:
    async with connected(state_folder) as agent:
        answer = await agent.call("open_workspace", task_id=H11)

    assert answer.text.split("\n")[1].startswith("building: ")
    assert "call list_files with this workspace_id until it answers; do not open it again" in answer.text


async def test_nothing_starts_again_once_a_workspace_is_being_submitted(agent: Agent, built_state: Path) -> None:
    """A call that comes while the change is read would open the sandbox again, on files that are no longer the agent's."""
    workspace = await agent.open()

    async def keep_on() -> None:
        while not (await agent.run(workspace, "sleep 300 & echo", wait_s=0)).is_error:
            pass

    await agent.run(workspace, "for i in 1 2 3 4 5 6 7 8 9; do head -c 20000000 /dev/urandom > $i; done")
    async with anyio.create_task_group() as group:
        group.start_soon(keep_on)
        group.start_soon(keep_on)
        answer = await agent.submit(workspace)

    assert answer.first == "not resolved"
    trial = kept(built_state, workspace)
    frozen_at = trial.record.ready_at + trial.record.timings["work"] + 0.01
    late = [call for call in trial.calls("run_command") if call.at - call.duration_s > frozen_at]
    assert all(call.outcome == "error" for call in late)
    with anyio.fail_after(20):
        while Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().strip():
            await anyio.sleep(0.05)
