"""What clients see before they call anything: names, schemas, sizes; and that nothing else is accepted."""

import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import pytest
from front_door import CACHETOOLS, H11, Agent, Serve, connected
from mcp.shared.exceptions import MCPError
from mcp.types import TextResourceContents, Tool

pytestmark = pytest.mark.anyio

TOOLS = (
    "list_tasks",
    "get_task",
    "open_workspace",
    "list_files",
    "view_file",
    "save_file",
    "edit_file",
    "search_files",
    "run_command",
    "command_output",
    "stop_command",
    "view_diff",
    "submit",
    "close_workspace",
)
BUNDLED = Path(__file__).parents[2] / "tasks" / "bundled"


@pytest.fixture(scope="module")
async def joined(built_state: Path) -> AsyncGenerator[Agent]:
    async with connected(built_state) as agent:
        yield agent


@pytest.fixture(scope="module")
async def tools(joined: Agent) -> tuple[Tool, ...]:
    return tuple((await joined.client.list_tools()).tools)


async def test_the_tools_have_the_names_and_the_order_of_the_design(tools: tuple[Tool, ...]) -> None:
    assert tuple(tool.name for tool in tools) == TOOLS


async def test_the_list_of_tools_is_one_page_of_at_most_9000_bytes(joined: Agent) -> None:
    listed = await joined.client.list_tools()

    assert not listed.next_cursor
    assert len(listed.model_dump_json(by_alias=True, exclude_none=True).encode()) <= 9_000


async def test_every_schema_is_flat_and_closed(tools: tuple[Tool, ...]) -> None:
    for tool in tools:
        schema = tool.input_schema
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        assert not {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title"} & set(schema)
        for argument in schema["properties"].values():
            assert argument["type"] in ("string", "integer", "number", "boolean")
            assert not {"$ref", "anyOf", "oneOf", "allOf", "properties", "items", "title"} & set(argument)


async def test_no_tool_has_an_output_schema_and_every_one_says_what_it_does(tools: tuple[Tool, ...]) -> None:
    assert all(tool.output_schema is None for tool in tools)
    assert all(tool.description and len(tool.description) > 30 for tool in tools)


@pytest.mark.parametrize("tool", TOOLS)
async def test_an_unknown_argument_is_refused_by_name(joined: Agent, tool: str) -> None:
    answer = await joined.call(tool, file_path="x")

    assert answer.is_error
    assert "file_path" in answer.text
    assert "Its arguments are:" in answer.text


WRONG: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "missing": ("view_file", {"workspace_id": "x"}, "path: Field required"),
    "list for text": ("view_file", {"workspace_id": "x", "path": ["a"]}, "path: Input should be a valid string"),
    "nothing for text": ("get_task", {"task_id": None}, "task_id: Input should be a valid string"),
    "words for a number": ("list_files", {"workspace_id": "x", "depth": "deep"}, "depth: Input should be a valid integer"),
    "number too small": ("view_file", {"workspace_id": "x", "path": "a", "start_line": 0}, "start_line: "),
    "number too large": ("run_command", {"workspace_id": "x", "command": "true", "wait_s": 51}, "less than or equal to 50"),
    "not finite": ("run_command", {"workspace_id": "x", "command": "true", "timeout_s": "inf"}, "timeout_s: "),
    "too long": ("search_files", {"workspace_id": "x", "pattern": "a" * 2_001}, "at most 2000 characters"),
}


@pytest.mark.parametrize("tool, arguments, said", WRONG.values(), ids=WRONG)
async def test_a_wrong_argument_is_explained_in_plain_words(
    joined: Agent, tool: str, arguments: Mapping[str, Any], said: str
) -> None:
    answer = await joined.call(tool, **arguments)

    assert answer.is_error
    assert said in answer.text
    assert answer.text.startswith(f"{tool} was called wrongly: ")
    assert "pydantic" not in answer.text
    assert "http" not in answer.text


async def test_an_unknown_tool_is_answered_with_the_names_of_those_there_are(joined: Agent) -> None:
    answer = await joined.call("bash", command="ls")

    assert answer.is_error
    assert all(name in answer.text for name in TOOLS)


async def test_the_resource_of_a_task_holds_what_get_task_shows(joined: Agent) -> None:
    shown = await joined.call("get_task", task_id=H11)

    resource = await read(joined, f"seatrial://tasks/{H11}")

    assert set(resource) == {"id", "title", "language", "difficulty", "time_limit_s", "text"}
    assert resource["text"] == shown.text
    hidden = (BUNDLED / H11 / "tests" / "fail_to_pass.txt").read_text().split()
    assert not any(test in json.dumps(resource) for test in hidden)


async def test_the_resource_of_a_trial_shows_its_state_and_nothing_of_the_operators(joined: Agent) -> None:
    workspace = await joined.open()

    before = await read(joined, f"seatrial://trials/{workspace}")
    await joined.call("close_workspace", workspace_id=workspace)
    after = await read(joined, f"seatrial://trials/{workspace}")

    assert set(before) == {"task", "state", "deadline_at"}
    assert before["state"] == "open"
    assert set(after) == {"task", "state", "deadline_at", "reward"}
    assert after["reward"] == 0.0


@pytest.mark.parametrize("uri", ["seatrial://tasks/nope", "seatrial://trials/nope", f"seatrial://trials/{'0' * 32}"])
async def test_a_resource_of_nothing_is_refused(joined: Agent, uri: str) -> None:
    with pytest.raises(MCPError, match=r"nope|0000"):
        await joined.client.read_resource(uri)


async def test_an_assigned_server_offers_its_task_only(serve: Serve) -> None:
    async with serve("--task", H11) as agent:
        listed = await agent.call("list_tasks")
        other = [await agent.call(tool, task_id=CACHETOOLS) for tool in ("get_task", "open_workspace")]
        first, second = await agent.open(H11), await agent.open(H11)
        with pytest.raises(MCPError):
            await agent.client.read_resource(f"seatrial://tasks/{CACHETOOLS}")

    assert H11 in listed.text
    assert CACHETOOLS not in listed.text
    assert all(answer.is_error and H11 in answer.text for answer in other)
    assert first == second


async def test_reveal_none_says_only_that_the_trial_is_over(serve: Serve) -> None:
    async with serve(SEATRIAL_REVEAL="none") as agent:
        workspace = await agent.open()
        answer = await agent.submit(workspace)
        again = await agent.submit(workspace)
        resource = await read(agent, f"seatrial://trials/{workspace}")

    assert answer == again
    assert answer.text == "submitted\nThis trial is over. Its result is not shown."
    assert "reward" not in resource


async def read(agent: Agent, uri: str) -> Mapping[str, Any]:
    (content,) = (await agent.client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    found: Mapping[str, Any] = json.loads(content.text)
    return found
