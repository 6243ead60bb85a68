"""`seatrial tasks list | show | build`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import anyio

from server.cli.display import Board, open_board, write_json, write_line, write_table
from server.environments import build_environment
from server.settings import Settings
from server.state import State, open_state
from tasks.catalog import Catalog, load_catalog
from tasks.errors import SeaTrialError
from tasks.model import Task


@dataclass(frozen=True)
class Built:
    """How the building of one task's environment went; ``error`` is empty if it is there."""

    task: str
    seconds: float
    error: str


def list_tasks(query: str, *, as_json: bool) -> int:
    """Print the tasks that match ``query``; a folder that cannot be read is named, and makes the code 1."""
    catalog = load_catalog(Settings.from_environment().tasks)
    found = catalog.search(query) if query else catalog.tasks
    problems = [str(problem) for problem in catalog.problems]
    if as_json:
        listed = [task.model_dump(mode="json", include={"id", "title", "language", "difficulty", "keywords"}) for task in found]
        write_json({"tasks": listed, "problems": problems})
        return 1 if problems else 0
    write_table(("id", "language", "difficulty", "title"), [(t.id, t.language, t.difficulty, t.title) for t in found])
    for problem in problems:
        write_line(f"Not usable: {problem}")
    return 1 if problems else 0


def show_task(task_id: str, *, as_json: bool) -> int:
    """Print one task as its operator sees it."""
    task = load_catalog(Settings.from_environment().tasks).find(task_id)
    if as_json:
        write_json(task.model_dump(mode="json"))
        return 0
    limits, source = task.limits, task.facts.snapshot
    start = f"{source.name} {source.version}" if source.kind == "pypi" else source.path
    for name, value in (
        ("id", task.id),
        ("title", task.title),
        ("folder", str(task.folder)),
        ("digest", task.digest),
        ("starts from", start),
        ("time", f"{task.agent_timeout_s:.0f} s"),
        ("limits", f"{limits.cpus:g} cpus, {limits.memory_mb} MB memory, {limits.storage_mb} MB disk, {limits.processes} processes"),
        ("judged by", f"{len(task.fail_to_pass)} tests that must begin to pass, {len(task.pass_to_pass)} that must go on passing"),
    ):
        write_line(f"{name + ':':<13}{value}")
    write_line()
    write_line(task.instruction.strip())
    return 0


def build_tasks(task_ids: Sequence[str], *, as_json: bool) -> int:
    """Build the named tasks, or all; one that fails does not stop the others, but makes the code 1."""
    settings = Settings.from_environment()
    catalog = load_catalog(settings.tasks)
    state = open_state(settings)
    with open_board() as board:
        built = anyio.run(build_all, chosen(catalog, task_ids), settings, state, board)
    if as_json:
        write_json({"tasks": [asdict(one) for one in built]})
    else:
        write_table(("task", "seconds", "result"), [(one.task, f"{one.seconds:.1f}", one.error or "built") for one in built])
    return 1 if any(one.error for one in built) else 0


def chosen(catalog: Catalog, task_ids: Sequence[str]) -> tuple[Task, ...]:
    """Return the tasks of these ids in their order, each once; all of them if none is named.

    Raises:
        UnknownTaskError: one does not exist.
    """
    return tuple(catalog.find(task_id) for task_id in dict.fromkeys(task_ids)) if task_ids else tuple(catalog.tasks)


async def build_all(wanted: Sequence[Task], settings: Settings, state: State, board: Board) -> tuple[Built, ...]:
    """Build environments one after the other (each uses all cores by itself); failures are values."""
    built = []
    for task in wanted:
        began, error = time.perf_counter(), ""
        try:
            await build_environment(task, settings, state, _report(board, task.id))
        except SeaTrialError as failure:
            error = str(failure)
        seconds = time.perf_counter() - began
        board.done(task.id, error or f"ready after {seconds:.1f} s")
        built.append(Built(task.id, seconds, error))
    return tuple(built)


def _report(board: Board, name: str) -> Callable[[str], None]:
    return lambda text: board.stage(name, text)
