"""What solves a task, as data for the oracle: the difference between the snapshot and the ground truth, without tests."""

import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from server.layers import Lower, files_below
from server.patches import LEFT_OUT, content_before
from server.settings import Settings
from server.snapshots import find_snapshot, find_truth
from server.state import State
from tasks.errors import SeaTrialError
from tasks.folders import read_folder
from tasks.model import HarborTask, PytestTask, Task
from tasks.templates import resolved


class NotBuiltError(SeaTrialError):
    """The trees of a task are not here yet."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"The trees of {task_id} are not here. Run: seatrial tasks build {task_id}")


@dataclass(frozen=True)
class GoldChange:
    """One path to be made so. ``data`` None and no ``link`` deletes it."""

    path: str
    data: bytes | None = None
    executable: bool = False
    link: str | None = None


@dataclass(frozen=True)
class GoldScript:
    """What solves one step: ``changes`` (paths in the workspace, or absolute), then a shell ``command``, if there is one."""

    changes: tuple[GoldChange, ...]
    command: str = ""


def gold_script(task: Task, settings: Settings, state: State) -> tuple[GoldScript, ...]:
    """Return what solves ``task``, step by step; up to the first step without a solution.

    Raises:
        NotBuiltError: `build_environment` has not been here before.
        TaskError: a variable that the solution needs is not set.
    """
    if isinstance(task, PytestTask):
        return (GoldScript(gold_change(task, state)),)
    assert isinstance(task, HarborTask)
    env = resolved(task.harbor.solution_env, settings.variables, f"{task.folder}: solution.env")
    given = " ".join(shlex.quote(f"{name}={value}") for name, value in env.items())
    scripts = []
    for step in task.harbor.steps:
        if not step.solution:
            break
        root, place = task.folder / step.solution, "/tmp/solution" if step.user else "/solution"  # noqa: S108 - inside
        files = read_folder(root).files
        changes = tuple(GoldChange(f"{place}/{name}", (root / name).read_bytes(), True) for name in files)
        scripts.append(GoldScript(changes, f"env {given} {place}/solve.sh && rm -rf {place}"))
    return tuple(scripts)


def gold_change(task: PytestTask, state: State) -> tuple[GoldChange, ...]:
    """Return the change that solves ``task``, sorted by path; what its verifier replaces anyway is left out.

    Raises:
        NotBuiltError: `build_environment` has not been here before.
    """
    snapshot = find_snapshot(task.facts.snapshot, task.folder, state)
    truth = find_truth(task.facts.solution, task.folder, state)
    if snapshot is None or truth is None:
        raise NotBuiltError(task.id)
    before, after = _files(snapshot.tree, task), _files(truth, task)
    changes = [GoldChange(path) for path in before.keys() - after.keys()]
    for path, now in after.items():
        change = _wanted(path, now)
        if path not in before or change != _wanted(path, before[path]):
            changes.append(change)
    return tuple(sorted(changes, key=lambda change: change.path))


def _files(tree: Path, task: PytestTask) -> dict[str, Lower]:
    facts = task.facts.verifier
    hidden = (*facts.test_paths, *facts.protected)
    every = files_below((tree,), "", LEFT_OUT)
    return {path: file for path, file in every if not any(PurePosixPath(path).is_relative_to(one) for one in hidden)}


def _wanted(path: str, file: Lower) -> GoldChange:
    if file.path.is_symlink():
        return GoldChange(path, link=str(file.path.readlink()))
    return GoldChange(path, content_before(file), bool(file.status.st_mode & 0o100))
