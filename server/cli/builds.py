"""`seatrial tasks build`, and the building that comes before a run."""

import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

import anyio

from server.cli.display import Board, open_board, write_failure, write_json, write_table
from server.doctor import refusal
from server.environments import build_environment, on_docker
from server.services import open_bench
from server.settings import Settings, with_sandbox
from server.state import State, open_state
from server.task_sources import task_folders
from tasks.catalog import Catalog, load_catalog
from tasks.errors import SeaTrialError
from tasks.model import Task


class UnusableError(SeaTrialError):
    """No sandbox can work on this machine; the text says why and what to do."""


@dataclass(frozen=True)
class Built:
    """How the building of one task's environment went; ``error`` is empty if it is there."""

    task: str
    seconds: float
    error: str


def build_tasks(task_ids: Sequence[str], sandbox: str = "", *, as_json: bool, folders: Sequence[str] = ()) -> int:
    """Build the named tasks, or all; one that fails does not stop the others, but makes the code 1."""
    settings = with_sandbox(Settings.from_environment(), sandbox).with_tasks(folders)
    catalog = load_catalog(task_folders(settings))
    wanted = chosen(catalog, task_ids)
    check_machine(settings, wanted)
    state = open_state(settings)
    with open_board() as board:
        built = anyio.run(build_all, wanted, settings, state, board)
    if as_json:
        write_json({"tasks": [{**asdict(one), "seconds": round(one.seconds, 3)} for one in built]})
    else:
        write_table(("task", "seconds", "result"), [(one.task, f"{one.seconds:.1f}", _result(one)) for one in built])
        write_not_built(built)
    return 1 if any(one.error for one in built) else 0


def check_machine(settings: Settings, wanted: Sequence[Task]) -> None:
    """Try what every local sandbox rests on if a task needs one, so that it is told once and not by each task.

    Raises:
        UnusableError: something of it does not work here.
    """
    if any(not on_docker(task, settings) for task in wanted) and (text := refusal(settings)):
        raise UnusableError(text)


def write_not_built(built: Sequence[Built]) -> None:
    """Write to stderr why environments could not be built."""
    for one in built:
        if one.error:
            write_failure(f"{one.task} was not built: {one.error}")


def _result(one: Built) -> str:
    return "not built" if one.error else "built"


def chosen(catalog: Catalog, task_ids: Sequence[str]) -> tuple[Task, ...]:
    """Return the tasks of these ids in their order, each once; all of them if none is named.

    Raises:
        UnknownTaskError: one does not exist.
    """
    return tuple(catalog.find(task_id) for task_id in dict.fromkeys(task_ids)) if task_ids else catalog.search()


async def build_all(wanted: Sequence[Task], settings: Settings, state: State, board: Board) -> tuple[Built, ...]:
    """Build environments one after the other (each uses all cores by itself); failures are values."""
    built = []
    async with AsyncExitStack() as stack, anyio.create_task_group() as background:
        bench = open_bench(settings, state, background, stack)
        for task in wanted:
            began, error = time.perf_counter(), ""
            try:
                await build_environment(task, bench, _report(board, task.id))
            except SeaTrialError as failure:
                error = str(failure)
            seconds = time.perf_counter() - began
            board.done(task.id, "not built" if error else f"ready after {seconds:.1f} s")
            built.append(Built(task.id, seconds, error))
        background.cancel_scope.cancel()
    return tuple(built)


def _report(board: Board, name: str) -> Callable[[str], None]:
    return lambda text: board.stage(name, text)
