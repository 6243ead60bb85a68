"""Commands in the workspace: run_command, command_output, stop_command."""

import posixpath
import time
from typing import Annotated

import anyio
from pydantic import Field

from server.trial import Trial
from server.workspaces import CommandError, RunningCommand, Workspace
from tools.context import (
    LIMIT,
    TrialContext,
    bytes_of,
    check_path,
    escaped,
    exact_text,
    head_of,
    shown_text,
    tail_of,
    trials_of,
)
from tools.workspace import Wait, WorkspaceId

CommandId = Annotated[str, Field(description="As run_command answered.", max_length=50)]

_HEAD_SHARE = 0.35
_READ = 64 << 10
_COMMAND_BYTES = 120_000


async def run_command(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    command: Annotated[str, Field(description="Shell text.")],
    cwd: Annotated[str, Field(description="Folder to run in; empty for the workspace's own.")] = "",
    timeout_s: Annotated[float, Field(gt=0, le=3600, description="Seconds after which it is killed.")] = 600,
    wait_s: Wait = 45,
) -> str:
    """Run a command in a fresh bash in the workspace (cd and export do not last). If it is not over after wait_s seconds it goes
    on: the answer says `running` and a command_id for command_output. A failing command is an answer: read its exit code.
    Redirect the output of background processes to a file. There is no network."""
    trial, workspace = await trials_of(ctx).workspace(workspace_id)
    sent = command.encode(errors="replace")
    if "\0" in command or len(sent) > _COMMAND_BYTES or sent.decode() != command:
        raise CommandError(
            f"A command is at most {_COMMAND_BYTES:,} bytes of text, no NUL. Save a script with save_file and run it."
        )
    if not command.strip():
        raise CommandError("The command is empty.")
    if trial.record.deadline_at:
        timeout_s = min(timeout_s, max(1.0, trial.record.deadline_at - time.time()))
    check_path(cwd)
    folder = posixpath.join(workspace.place.habits.workdir, cwd.strip())
    running = await workspace.start(command, folder, timeout_s)
    return await _shown(trial, running, wait_s)


async def command_output(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    command_id: CommandId,
    start: Annotated[int, Field(ge=0, description="Byte offset to show from; 0 for the usual summary.")] = 0,
    wait_s: Wait = 45,
) -> str:
    """Wait for a command's end, or page through its output with start."""
    trial, workspace = await trials_of(ctx).workspace(workspace_id)
    running = _command(trial, workspace, command_id)
    if start:
        if start >= running.output.total:
            await _ended(running, wait_s)
        return _page(running, start)
    return await _shown(trial, running, wait_s)


async def stop_command(ctx: TrialContext, workspace_id: WorkspaceId, command_id: CommandId) -> str:
    """Kill a command with its descendants, and orphans that no other running command owns; also when it is over already."""
    trial, workspace = await trials_of(ctx).workspace(workspace_id)
    running = _command(trial, workspace, command_id)
    over = running.done.is_set()
    await workspace.stop(running)
    return (f"{command_id} was over already; what ended commands left running was killed.\n" if over else "") + _summary(running)


def _command(trial: Trial, workspace: Workspace, command_id: str) -> RunningCommand:
    return workspace.commands.get(command_id) or trial.log.command(command_id)


async def _ended(running: RunningCommand, wait_s: float) -> None:
    with anyio.move_on_after(wait_s):
        await running.done.wait()


async def _shown(trial: Trial, running: RunningCommand, wait_s: float) -> str:
    await _ended(running, wait_s)
    if running.refused:
        raise CommandError(f"The command was not started: {running.refused}.{_remedy(running.refused)}")
    if not running.done.is_set():
        trial.log.command_runs_on(running)
    return _summary(running)


def _remedy(refused: str) -> str:
    if refused.endswith("Resource temporarily unavailable"):
        return " No further process may be started here: stop a running command with stop_command."
    return ""


def _summary(running: RunningCommand) -> str:
    """Return how the command stands and what it printed: all of it, or beginning and end."""
    output, total = running.output, running.output.total
    head = _state(running) + "\n"
    room = LIMIT - escaped(head) - 250
    first = exact_text(output.page(0, _READ).data)
    if bytes_of(first) == total and escaped(first) <= room:
        return head + (shown_text(first) or "(no output)")
    beginning = head_of(first, int(room * _HEAD_SHARE))
    last = exact_text(output.page(max(0, total - _READ), _READ).data)
    end = tail_of(last, room - escaped(beginning))
    went = bytes_of(beginning)
    left = total - went - bytes_of(end)
    more = f'command_output(command_id="{running.id}", start={went}) shows them{_lost(running)}'
    return f"{head}{shown_text(beginning)}\n[... {left:,} bytes left out; {more} ...]\n{shown_text(end)}"


def _lost(running: RunningCommand) -> str:
    start, end = running.output.lost
    return f", but bytes {start:,} to {end:,} were not kept" if end > start else ""


def _state(running: RunningCommand) -> str:
    if not running.done.is_set():
        so_far = time.time() - running.started_at
        return f'running: {running.id} ({so_far:.0f} s so far). command_output(command_id="{running.id}") waits for its end.'
    if running.result is None:
        return f"{running.id} was killed: {running.fault}. Files in the workspace are kept."
    result = running.result
    if result.timed_out:
        return f"{running.id} was killed: not over after its timeout_s of {result.duration_s:.1f} s."
    shell = "" if running.shell.endswith("bash") else f", {running.shell}"
    signal = f" (killed by signal {-result.exit_code})" if result.exit_code < 0 else ""
    if result.out_of_memory:
        signal += ": the workspace's memory was used up"
    return f"exit code {result.exit_code}{signal} ({running.id}, {result.duration_s:.1f} s{shell})"


def _page(running: RunningCommand, start: int) -> str:
    page = running.output.page(start, _READ)
    over = running.done.is_set()
    missing = f"[bytes {start:,} to {page.start:,} were not kept: redirect long output to a file]\n" if page.start > start else ""
    if not page.data and over:
        return f"{_state(running)}\n{missing}Its output has {page.total:,} bytes; there is nothing from {page.start:,} on."
    text = head_of(exact_text(page.data, whole=over or page.start + len(page.data) < page.total), LIMIT - 500)
    end = page.start + bytes_of(text)
    more = f"\n[bytes {page.start:,}-{end:,} of {page.total:,}; start={end} shows more]" if end < page.total else ""
    return f"{_state(running)}\n{missing}{shown_text(text)}{more}"
