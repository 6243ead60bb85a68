"""The MCP server, put together: tools, resources, one lifespan that owns everything with a life."""

import asyncio
import json
import logging
import os
import resource
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ResourceNotFoundError, ToolError
from mcp.types import CallToolResult, TextContent
from pydantic import ValidationError

from server.records import trial_id_of
from server.sandboxes.base import PathError
from server.settings import Settings
from server.trial import StillBuildingError
from server.trials import Trials, open_trials
from tasks.errors import SeaTrialError
from tools.catalog import described, get_task, list_tasks
from tools.commands import command_output, run_command, stop_command
from tools.context import LIMIT, bounded, escaped
from tools.files import edit_file, list_files, save_file, search_files, view_file
from tools.workspace import close_workspace, open_workspace, submit, view_diff

logger = logging.getLogger(__name__)

TOOLS = (
    list_tasks,
    get_task,
    open_workspace,
    list_files,
    view_file,
    save_file,
    edit_file,
    search_files,
    run_command,
    command_output,
    stop_command,
    view_diff,
    submit,
    close_workspace,
)

INSTRUCTIONS = "Benchmark tasks in sandboxes: list_tasks, open_workspace, work with the other tools, then submit once."


class SeaTrialServer(MCPServer[Trials]):
    """An MCP server whose tool answers are plain, bounded text, whatever goes wrong, and are on record before they are sent."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Trials, Any] | None = None
    ) -> CallToolResult:
        """Call a tool; what was expected to fail is an answer that says what to do next."""
        started = time.monotonic()
        try:
            self._refuse_unknown(name, arguments)
            arguments = self._without_nulls(name, arguments)
            result = await super().call_tool(name, arguments, context)
            assert isinstance(result, CallToolResult)
            answer, ok = "\n".join(block.text for block in result.content if isinstance(block, TextContent)), True
        except ToolError as error:
            answer, ok = self._explained(name, error)
        if escaped(answer) > LIMIT + 150:
            answer = bounded(answer, "Ask for less at a time.")
        if context is not None:
            await _record(context, name, arguments, answer, ok=ok, duration_s=time.monotonic() - started)
        return CallToolResult(content=[TextContent(type="text", text=answer)], is_error=not ok)

    def _refuse_unknown(self, name: str, arguments: Mapping[str, Any]) -> None:
        """The SDK drops arguments that a tool does not have; an agent that misspelled one must hear of it."""
        tool = self._tool_manager.get_tool(name)
        if tool is None:
            known = ", ".join(one.__name__ for one in TOOLS)
            raise ToolError(f"There is no tool {name[:100]!r}. The tools are: {known}.")
        allowed = tool.parameters.get("properties", {})
        if unknown := sorted(set(arguments) - set(allowed)):
            raise ToolError(f"{name} has no argument {', '.join(unknown)[:200]!r}. Its arguments are: {', '.join(allowed)}.")

    def _without_nulls(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Some harnesses send null for what their model left out; a default is what it meant."""
        tool = self._tool_manager.get_tool(name)
        required = tool.parameters.get("required", []) if tool is not None else []
        return {key: value for key, value in arguments.items() if value is not None or key in required}

    def _explained(self, name: str, error: ToolError) -> tuple[str, bool]:
        """Return what the agent reads of a failure, and whether it is none."""
        cause = error.__cause__
        if isinstance(cause, StillBuildingError):
            return str(cause), True
        if isinstance(cause, PathError) and "no such file" in str(cause):
            return f"{cause}. list_files shows what is there.", False
        if isinstance(cause, SeaTrialError):
            return str(cause), False
        if isinstance(cause, ValidationError):
            return f"{name} was called wrongly: {_reworded(cause)}.", False
        if cause is None:
            return str(error), False
        logger.error("Tool %s failed", name, exc_info=cause)
        return f"{name} failed for a reason of the server's, not yours. Call it again; if it stays so, tell the operator.", False


def _reworded(error: ValidationError) -> str:
    parts = []
    for one in error.errors(include_url=False, include_input=False)[:5]:
        parts.append(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}")
    return "; ".join(parts)


async def _record(
    context: Context[Trials, Any], name: str, arguments: Mapping[str, Any], answer: str, *, ok: bool, duration_s: float
) -> None:
    trials = context.request_context.lifespan_context
    workspace_id = arguments.get("workspace_id")
    if name == "open_workspace" and ok:
        workspace_id = answer.partition("\n")[0].removeprefix("workspace_id: ")
    if isinstance(workspace_id, str) and (trial := trials.known(workspace_id)) is not None:
        shown = {**arguments, "workspace_id": trial_id_of(workspace_id)} if "workspace_id" in arguments else arguments
        trial.log.call(name, shown, answer.replace(workspace_id, "<workspace_id>"), ok=ok, duration_s=duration_s)


def build_server(settings: Settings, on_closed: Callable[[], None] = lambda: None) -> SeaTrialServer:
    """Return a server that is ready to run; nothing is started yet. ``on_closed`` is called when it has stopped everything."""

    @asynccontextmanager
    async def lifespan(_: MCPServer[Trials]) -> AsyncGenerator[Trials]:
        try:
            async with open_trials(settings) as trials:
                yield trials
        finally:
            on_closed()

    server = SeaTrialServer(
        "seatrial", version=version("seatrial"), instructions=INSTRUCTIONS, lifespan=lifespan, log_level="WARNING"
    )
    for tool in TOOLS:
        server.add_tool(tool, structured_output=False)
        _plain_schema(server, tool.__name__)
    _add_resources(server)
    return server


def _plain_schema(server: SeaTrialServer, name: str) -> None:
    """Take pydantic's titles out of a tool's schema and say that there are no other arguments. Reaches into the SDK."""
    tool = server._tool_manager.get_tool(name)
    assert tool is not None
    tool.parameters.pop("title", None)
    tool.parameters["additionalProperties"] = False
    for schema in tool.parameters.get("properties", {}).values():
        schema.pop("title", None)
    tool.description = " ".join(tool.description.split())


def _add_resources(server: SeaTrialServer) -> None:
    """Offer what the tools show as resources too, for clients that read them; never more."""

    @server.resource("seatrial://tasks/{task_id}", mime_type="application/json")
    async def task_resource(task_id: str, ctx: Context[Trials, Any]) -> str:
        """A task: what get_task shows, as JSON."""
        try:
            task = ctx.request_context.lifespan_context.offer.task(task_id)
        except SeaTrialError as error:
            raise ResourceNotFoundError(str(error)) from error
        facts = {"id": task.id, "title": task.title, "language": task.language, "difficulty": task.difficulty}
        return json.dumps({**facts, "time_limit_s": task.agent_timeout_s, "text": described(task)})

    @server.resource("seatrial://trials/{workspace_id}", mime_type="application/json")
    async def trial_resource(workspace_id: str, ctx: Context[Trials, Any]) -> str:
        """A trial, named by its workspace id: its task, state, and result as submit shows it."""
        trials = ctx.request_context.lifespan_context
        try:
            trial = await trials.find(workspace_id)
        except SeaTrialError as error:
            raise ResourceNotFoundError(str(error)) from error
        record = trial.record
        facts: dict[str, Any] = {"task": record.task, "state": record.state, "deadline_at": record.deadline_at}
        if trial.over and trials.settings.reveal == "counts":
            facts["reward"] = record.reward
        return json.dumps(facts)


async def serve(settings: Settings) -> None:
    """Serve MCP over stdio until the client closes its end or a signal comes; then every sandbox is stopped.

    SIGTERM and SIGINT end the process with 128 + their number: the SDK's reader thread would keep it alive.
    """
    received = 0
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536) if most > 0 else 65_536, most))

    def leave() -> None:
        task = asyncio.current_task()
        if received or (task is not None and task.cancelling()):  # the second: SIGINT came before we listened for it
            os._exit(128 + (received or signal.SIGINT))

    server = build_server(settings, leave)

    async def end_on_signal(scope: anyio.CancelScope) -> None:
        nonlocal received
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                received = number
                scope.cancel()
                return

    async with anyio.create_task_group() as group:
        group.start_soon(end_on_signal, group.cancel_scope)
        await server.run_stdio_async()
        group.cancel_scope.cancel()
    leave()
