"""The whole way of an agent: open, look, work, submit."""

from pathlib import Path

import pytest
from front_door import H11, Agent, connected

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
