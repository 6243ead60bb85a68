"""The life of a trial: open_workspace, view_diff, submit, close_workspace."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Annotated

import anyio
from anyio import to_thread
from pydantic import Field

from server.patches import Found
from server.trial import StillBuildingError, Trial
from server.trials import Trials
from tools.catalog import described
from tools.context import LIMIT, TrialContext, agent_of, bounded, escaped, head_of, inside, lines_cut, shown_name, trials_of

WorkspaceId = Annotated[str, Field(description="As open_workspace answered.")]
Wait = Annotated[float, Field(ge=0, le=50, description="Seconds to wait before answering.")]

_DIFF_BYTES = 256 << 10
_DIFF_WIDTH = 400
_DIFF_STEPS = 200_000_000
"""The most that a diff may cost, at worst: pairs of equal lines times lines. More would keep the server busy for minutes."""


async def open_workspace(ctx: TrialContext, task_id: Annotated[str, Field(description="An id from list_tasks.")]) -> str:
    """Start a trial of a task: a sandbox with the repository. Answers where it is, and the workspace_id for all other tools."""
    trials = trials_of(ctx)
    trial = await trials.open(task_id, agent_of(ctx))
    head = f"workspace_id: {trial.workspace_id}\n"
    if trial.over:
        return head + "This trial is over. Call submit to see its result."
    habits = trial.workspace.place.habits if trial.workspace is not None else None
    text = f"ready at {habits.workdir}" if habits is not None else ""
    if habits is None:
        then = "call list_files with this workspace_id until it answers; do not open it again"
        text = trial.building(then)
    return head + bounded(f"{text}\n\n{described(trial.task, habits)}", "get_task shows all of the instruction.")


async def view_diff(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: Annotated[str, Field(description="Only this file or folder; empty for all.")] = "",
) -> str:
    """Show what you changed so far against the starting snapshot; this is what submit will submit."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    wanted = inside(path, workspace.place.habits.workdir) if path else "."

    def look() -> str:
        return _diff(found for found in workspace.place.differences() if _below(found.path, wanted))

    return await to_thread.run_sync(look)


def _below(path: str, wanted: str) -> bool:
    return wanted == "." or path == wanted or path.startswith(wanted + "/")


def _diff(changes: Iterable[Found]) -> str:
    """Return every change by name, then as many diffs as fit; no more of them than that are made."""
    names, diffs, size, count = "", [], 0, 0
    for found in changes:
        count += 1
        heading = _heading(found)
        if escaped(names) < LIMIT // 2:
            names += heading + "\n"
        if size < LIMIT:
            diffs.append(f"\n=== {heading}\n{_text_diff(found)}\n")
            size += escaped(diffs[-1])
    if not count:
        return "No changes."
    if escaped(names) > LIMIT // 2:
        names = head_of(names, LIMIT // 2 - 200).rpartition("\n")[0] + "\n"
        left = count - names.count("\n")
        how = 'view_diff(path=<folder>) shows fewer at a time, run_command(command="git status -s -uall") all'
        names += f"[{left:,} more changed files: {how}]\n"
    text, shown = f"{count:,} changed:\n{names}", 0
    for piece in diffs:
        if escaped(text + piece) > LIMIT - 150:
            break
        text += piece
        shown += 1
    if count == 1 and not shown:
        return _beginning(text + diffs[0])
    rest = count - shown
    return text + (f"\n[the diffs of {rest:,} files are left out: view_diff(path=<file>) shows one]" if rest else "")


def _beginning(text: str) -> str:
    """Return what fits of the diff of one file."""
    shown = head_of(text, LIMIT - 300).rpartition("\n")[0]
    left = text.count("\n") - shown.count("\n") - 1
    return f"{shown}\n[{left:,} more lines of this diff left out: view_file shows the file, run_command with git diff all of it]"


def _heading(found: Found) -> str:
    sign = "D" if found.kind == "deleted" else "A" if found.before is None else "M"
    note = {"link": " (symlink)", "file": " (executable)" if found.executable else ""}.get(found.kind, "")
    return f"{sign} {shown_name(found.path)}{note}"


def _text_diff(found: Found) -> str:
    old_size = found.before.size if found.before is not None else 0
    if found.size > _DIFF_BYTES or old_size > _DIFF_BYTES:
        return f"(too large to show: {old_size:,} -> {found.size:,} bytes; view_file shows the file, git diff the difference)"
    old = found.before.read() if found.before is not None else b""
    new = b"" if found.kind == "deleted" else found.read()
    if b"\0" in old or b"\0" in new:
        return f"(binary: {len(old):,} -> {len(new):,} bytes)"
    return "\n".join(lines_cut(line, _DIFF_WIDTH) for line in _hunks(_lines(old), _lines(new)))


def _lines(data: bytes) -> list[str]:
    lines = data.decode(errors="replace").split("\n")
    if lines[-1]:
        lines[-1] += "\n\\ No newline at end of file"
        return lines
    return lines[:-1]


def _hunks(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    """Yield a unified diff; where comparing would take long, everything between the first and last difference is one hunk."""
    often, most = Counter(after), len(after) // 100 + 1 if len(after) >= 200 else len(after)  # difflib skips what is more often
    pairs = sum(often[line] for line in before if often[line] <= most)
    if pairs * min(len(before), len(after)) <= _DIFF_STEPS:
        yield from difflib.unified_diff(before, after, "before", "after", n=3, lineterm="")
        return
    head = _same(zip(before, after, strict=False))
    tail = min(_same(zip(reversed(before), reversed(after), strict=False)), len(before) - head, len(after) - head)
    old, new = before[head : len(before) - tail], after[head : len(after) - tail]
    yield from ("--- before", "+++ after", f"@@ -{head + 1},{len(old)} +{head + 1},{len(new)} @@")
    yield from (f"-{line}" for line in old)
    yield from (f"+{line}" for line in new)


def _same(pairs: Iterable[tuple[str, str]]) -> int:
    """Return how many pairs are of equal lines, up to the first that is not."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


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
        if not trial.news and not trial.over:
            await trial.judged.wait()
    if trial.news and trial.record.state == "open":
        news, trial.news = trial.news, ""
        return bounded(news, "get_task shows all of the instruction.")
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
    if verdict is not None and verdict.rewards:
        text += f"\nreward {verdict.reward:g}, from 0 to 1, as the task's own tests gave it."
    elif verdict is not None and verdict.assurance in ("compat", "in-place"):
        text += f"\nreward {verdict.reward:g}: the task's own tests did not come to a result."
    elif verdict is not None:
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
    another = "" if trials.settings.assignment.task else " Call open_workspace to start another."
    return f"closed\nThe trial is over and counts as not resolved.{another}"
