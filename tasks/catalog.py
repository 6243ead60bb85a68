"""Every task that can be used here, and why others cannot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from tasks.errors import TaskError, UnknownTaskError
from tasks.harbor import load_task
from tasks.model import Task

BUNDLED = Path(__file__).parent / "bundled"
MAX_TASKS = 10_000


class Place(NamedTuple):
    """A folder to look for tasks in: it is a task or holds tasks.

    With ``digests``, tasks by id, nothing else may lie there: a task that has another digest is refused. ``remedy`` says
    what to do about a folder that cannot be read, or a task that is refused.
    """

    folder: Path
    digests: Mapping[str, str] | None = None
    remedy: str = "Check SEATRIAL_TASKS."


class Problem(NamedTuple):
    """A folder that is no usable task, and what to do about it."""

    folder: Path
    message: str


@dataclass(frozen=True)
class Catalog:
    """Tasks by id, bundled ones first, and what could not be read."""

    tasks: Mapping[str, Task]
    problems: tuple[Problem, ...] = ()

    def find(self, task_id: str) -> Task:
        """Return the task with this id.

        Raises:
            TaskError: its folder is there and cannot be used; the text says why.
            UnknownTaskError: there is none.
        """
        if task := self.tasks.get(task_id):
            return task
        for problem in self.problems:
            if problem.folder.name == task_id:
                raise TaskError(problem.message)
        raise UnknownTaskError(task_id)

    def search(self, query: str = "") -> tuple[Task, ...]:
        """Return the tasks in which every word of ``query`` occurs, whatever its case; all of them for no words."""
        words = query.casefold().split()
        return tuple(task for task in self.tasks.values() if all(word in _searched(task) for word in words))


def load_catalog(folders: Sequence[Path | Place] = ()) -> Catalog:
    """Read the bundled tasks, then those of ``folders``: each is a task folder or holds task folders.

    A task that is broken, or whose id is taken, becomes a problem and does not hide the others.
    """
    tasks: dict[str, Task] = {}
    problems: list[Problem] = []
    for folder in (BUNDLED, *folders):
        for found in read_place(folder if isinstance(folder, Place) else Place(folder)):
            if isinstance(found, Problem):
                problems.append(found)
                continue
            first = tasks.setdefault(found.id, found)
            if first.folder != found.folder:
                problems.append(Problem(found.folder, _taken(found, first)))
    return Catalog(MappingProxyType(tasks), tuple(problems))


def read_place(place: Place) -> Iterator[Task | Problem]:
    """Yield every task of one place, and every problem there is with it."""
    try:
        candidates = list(_task_folders(place))
    except TaskError as error:
        yield Problem(place.folder, str(error))
        return
    for candidate in candidates:
        try:
            yield _read(candidate, place)
        except TaskError as error:
            yield Problem(candidate, str(error))


def _read(folder: Path, place: Place) -> Task:
    if place.digests is None:
        return load_task(folder)
    if folder.is_symlink():
        raise TaskError(f"{folder} is a symbolic link. Put the task itself there.")
    task = load_task(folder)
    if place.digests.get(task.id) != task.digest:
        how = "differs from what" if task.id in place.digests else "was not there when its source"
        raise TaskError(f"{folder} {how} was added: its files were changed by hand. {place.remedy}")
    return task


def _task_folders(place: Place) -> Iterator[Path]:
    """Yield the place's folder if it is a task, else the tasks in it, by name; what lies deeper is not looked at."""
    folder = place.folder
    try:
        if _is_task(folder):
            yield folder
            return
        found = sorted(entry for entry in folder.iterdir() if not entry.name.startswith(".") and _is_task(entry))
    except OSError as error:
        raise TaskError(f"The tasks folder {folder} cannot be read ({error.strerror}). {place.remedy}") from error
    if not found and folder != BUNDLED:
        raise TaskError(f"{folder} holds no task: neither it nor a folder in it has a task.toml. {place.remedy}")
    if len(found) > MAX_TASKS:
        raise TaskError(f"{folder} holds more than {MAX_TASKS:,} tasks. Name smaller folders.")
    yield from found


def _is_task(folder: Path) -> bool:
    """Whether somebody meant this to be a task; a folder with half of it is one, so that its problem is shown."""
    return (folder / "task.toml").is_file() or (folder / "instruction.md").is_file()


def _taken(task: Task, first: Task) -> str:
    return f"{task.folder}: the id {task.id!r} is taken by {first.folder}. Rename this folder."


def _searched(task: Task) -> str:
    parts = (task.id, task.title, *task.keywords, task.language, task.difficulty, task.instruction)
    return "\n".join(parts).casefold()
