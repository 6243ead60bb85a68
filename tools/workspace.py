"""The life of a trial: open_workspace, view_diff, submit, close_workspace."""

import difflib
from collections.abc import Iterator
from typing import Annotated

import anyio
from anyio import to_thread
from pydantic import Field

from server.patches import Found, content_before, find_changes
from server.trial import StillBuildingError, Trial
from server.trials import Trials
from tools.catalog import described
from tools.context import LIMIT, TrialContext, agent_of, bounded, escaped, head_of, inside, lines_cut, trials_of

WorkspaceId = Annotated[str, Field(description="As open_workspace answered.")]
Wait = Annotated[float, Field(ge=0, le=50, description="Seconds to wait before answering.")]

_DIFF_BYTES = 256 << 10
_DIFF_WIDTH = 400


async def open_workspace(ctx: TrialContext, task_id: Annotated[str, Field(description="An id from list_tasks.")]) -> str:
    """Start a trial of a task: a sandbox with the repository at /workspace. Answers the workspace_id for all other tools."""
    trials = trials_of(ctx)
    trial = await trials.open(task_id, agent_of(ctx))
    head = f"workspace_id: {trial.workspace_id}\n"
    if trial.over:
        return head + "This trial is over. Call submit to see its result."
    if trial.workspace is None:
        return head + bounded(trials.building(trial) + "\n\n" + described(trial.task), "get_task shows all of it.")
    return head + bounded("ready at /workspace\n\n" + described(trial.task), "get_task shows all of it.")


async def view_diff(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: Annotated[str, Field(description="Only this file or folder; empty for all.")] = "",
) -> str:
    """Show what you changed so far against the starting snapshot; this is what submit will submit."""
    trial, workspace = await trials_of(ctx).workspace(workspace_id)
    wanted = inside(path) if path else "."
    environment = trial.environment
    assert environment is not None, "a workspace has an environment"
    return await to_thread.run_sync(_diff, list(_chosen(find_changes(workspace.upper, environment.lowers), wanted)))


def _chosen(changes: Iterator[Found], wanted: str) -> Iterator[tuple[str, str]]:
    """Yield (heading, diff) of each change, in the order of paths within folders."""
    for found in changes:
        if wanted == "." or found.path == wanted or found.path.startswith(wanted + "/"):
            yield _heading(found), _text_diff(found)


def _heading(found: Found) -> str:
    sign = "D" if found.kind == "deleted" else "A" if found.before is None else "M"
    note = {"link": " (symlink)", "file": " (executable)" if found.executable else ""}.get(found.kind, "")
    return f"{sign} {_printable(found.path)}{note}"


def _printable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text_diff(found: Found) -> str:
    old_size = found.before.status.st_size if found.before is not None else 0
    if found.size > _DIFF_BYTES or old_size > _DIFF_BYTES:
        return f"(too large to show: {old_size:,} -> {found.size:,} bytes)"
    old = content_before(found.before) if found.before is not None else b""
    new = b"" if found.kind == "deleted" else found.read()
    if b"\0" in old or b"\0" in new:
        return f"(binary: {len(old):,} -> {len(new):,} bytes)"
    before, after = (data.decode(errors="replace").splitlines() for data in (old, new))
    lines = difflib.unified_diff(before, after, "before", "after", n=3, lineterm="")
    return "\n".join(lines_cut(line, _DIFF_WIDTH) for line in lines)


def _diff(changes: list[tuple[str, str]]) -> str:
    if not changes:
        return "No changes."
    names = "\n".join(heading for heading, _ in changes)
    if escaped(names) > LIMIT // 2:
        names = head_of(names, LIMIT // 2).rpartition("\n")[0]
        left = len(changes) - names.count("\n") - 1
        names += f"\n[{left:,} more changed files: view_diff(path=<folder>) shows fewer at a time]"
    text, rest = f"{len(changes)} changed:\n{names}\n", len(changes)
    for heading, diff in changes:
        piece = f"\n=== {heading}\n{diff}\n"
        if escaped(text + piece) > LIMIT - 150:
            break
        text += piece
        rest -= 1
    if rest == len(changes):
        return bounded(f"{text}\n=== {changes[0][0]}\n{changes[0][1]}", "Use view_diff(path=<file>), or view_file.")
    return text + (f"\n[the diffs of {rest:,} files are left out: view_diff(path=<file>) shows one]" if rest else "")


async def submit(ctx: TrialContext, workspace_id: WorkspaceId, wait_s: Wait = 45) -> str:
    """Submit the workspace as it is and have it judged by hidden tests. Only the first submission counts."""
    trials = trials_of(ctx)
    trial = await trials.find(workspace_id)
    if trial.record.submitted_by == "closed":
        return "not resolved\nThis workspace was closed before it was submitted."
    try:
        await trials.submit(trial, "agent")
    except StillBuildingError as building:
        return str(building)
    with anyio.move_on_after(wait_s):
        await trial.ended.wait()
    return _result(trials, trial)


def _result(trials: Trials, trial: Trial) -> str:
    record = trial.record
    if not trial.over:
        return "verifying\nYour change is frozen and the hidden tests are running. Call submit again to wait for the result."
    if record.state == "error":
        text = f"error: no score\nThe verification failed for a reason that is not yours: {record.error}"
        return bounded(text, "The operator's log has the rest.")
    if trials.settings.reveal == "none":
        return "submitted\nThis trial is over. Its result is not shown."
    resolved = record.reward == 1.0
    verdict = trials.verdict(trial)
    text = "resolved" if resolved else "not resolved"
    if verdict is not None:
        text += (
            f"\nreward {verdict.reward}: {verdict.fail_to_pass[0]} of {verdict.fail_to_pass[1]} tests of the requested change "
            f"and {verdict.pass_to_pass[0]} of {verdict.pass_to_pass[1]} other tests passed."
        )
    elif record.error:
        text += f"\n{record.error}"
    return f"{text}\nThis trial is over."


async def close_workspace(ctx: TrialContext, workspace_id: WorkspaceId) -> str:
    """Give up: end the trial without a submission. It counts as not resolved."""
    trials = trials_of(ctx)
    await trials.close(await trials.find(workspace_id))
    return "closed\nThe trial is over and counts as not resolved. Call open_workspace to start another."
