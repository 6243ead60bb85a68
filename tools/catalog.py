"""What there is to do: list_tasks and get_task."""

from typing import Annotated

from pydantic import Field

from server.places import NO_NETWORK, Habits
from server.sandboxes.base import WORKDIR
from tasks.errors import SeaTrialError
from tasks.model import PytestTask, Task
from tools.context import LIMIT, TrialContext, escaped, head_of, trials_of

WORKFLOW = (
    "Workflow: get_task to read a task, open_workspace to start (it answers a workspace_id for all other tools);\n"
    "work with view_file, edit_file, save_file, search_files, run_command; then submit once."
)
_PAGE_CHARS = 6_000


async def list_tasks(
    ctx: TrialContext,
    query: Annotated[str, Field(description="Words to look for; empty for all.")] = "",
    cursor: Annotated[str, Field(description="Where to go on, as the last answer said.")] = "",
) -> str:
    """List benchmark tasks: id, title, language, difficulty. Start here; then open_workspace(task_id)."""
    found = trials_of(ctx).offer.search(query)
    start = _start(cursor, len(found))
    lines, size = [], 0
    for task in found[start:]:
        line = _line(task)
        size += escaped(line) + 2
        if size > _PAGE_CHARS:
            break
        lines.append(line)
    rest = len(found) - start - len(lines)
    if not found:
        lines.append(f"No task matches {query[:100]!r}. Call list_tasks without a query to see all.")
    if rest:
        lines.append(f'[{rest:,} more: list_tasks(cursor="{start + len(lines)}"' + (", query=...)]" if query else ")]"))
    return "\n".join([WORKFLOW, "", *lines])


def _start(cursor: str, count: int) -> int:
    if not cursor:
        return 0
    if not cursor.isascii() or not cursor.isdigit() or int(cursor[:9]) > count:
        raise SeaTrialError(f"{cursor[:50]!r} is not a cursor that list_tasks gave. Call list_tasks without one.")
    return int(cursor[:9])


def _line(task: Task) -> str:
    return f"{task.id}: {task.title[:200]} ({task.language}, {task.difficulty})"


async def get_task(
    ctx: TrialContext,
    task_id: Annotated[str, Field(description="An id from list_tasks.")],
    start: Annotated[int, Field(ge=0, description="Character to go on from.")] = 0,
) -> str:
    """Read a task: the full instruction, limits, and what is allowed."""
    text = described(trials_of(ctx).offer.task(task_id))[start:]
    shown = head_of(text, LIMIT - 100)
    if len(shown) == len(text):
        return shown
    return f"{shown}\n[{len(text) - len(shown):,} more characters: get_task(start={start + len(shown)}) shows them]"


def described(task: Task, habits: Habits | None = None) -> str:
    """Return what an agent is told of a task; what its workspace is like if that is known."""
    limits = task.limits
    workdir = habits.workdir if habits is not None else WORKDIR if isinstance(task, PytestTask) else "where open_workspace says"
    network = habits.network if habits is not None else NO_NETWORK if isinstance(task, PytestTask) else ""
    return (
        f"{task.id}: {task.title}\n\n{task.instruction.strip()}\n\n"
        f"Limits: {task.agent_timeout_s / 60:.0f} minutes from when the workspace is ready; {limits.cpus:g} CPUs, "
        f"{limits.memory_mb} MB memory, {limits.storage_mb} MB disk. The repository is at {workdir}. "
        f"{network}{' ' if network else ''}One submission counts. Hidden tests decide: every one must pass. "
        f"Changes outside {workdir} are not judged."
    )
