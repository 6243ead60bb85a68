"""The whole way of an agent: open, look, work, submit."""

import pytest
from front_door import Agent

pytestmark = pytest.mark.anyio


async def test_an_unchanged_workspace_is_not_resolved(agent: Agent) -> None:
    workspace = await agent.open()

    answer = await agent.submit(workspace)

    assert answer.first == "not resolved"
    assert "0 of 1 tests of the requested change and 71 of 71 other tests passed" in answer.text
