"""Read a Harbor task folder (https://github.com/laude-institute/harbor, formats 1.x): the one way in for both kinds of task.

Harbor keeps ``[metadata]`` free; ours are in ``[metadata.seatrial.*]``. Of the folder only ``instruction.md`` is for the
agent: comments in task.toml, a README or anything else in it is never shown.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from tasks.errors import TaskError
from tasks.folders import Folder, read_folder
from tasks.harbor_task import harbor_task
from tasks.model import Task
from tasks.pytest_task import pytest_task

TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


def load_task(folder: Path) -> Task:
    """Read and check the task in ``folder``; its id is the folder's name.

    It is a `PytestTask` where task.toml has ``[metadata.seatrial.snapshot]``, else a `HarborTask`.

    Raises:
        TaskError: it cannot be used; the text names the file and the field, and says what to do.
    """
    root = folder.resolve()
    if not TASK_ID.fullmatch(root.name):
        raise TaskError(
            f"{root}: the folder's name is the task's id and must be letters (a-z, A-Z), digits, '.', '_' or '-', "
            "starting with a letter or digit, at most 80 of them. Rename the folder."
        )
    try:
        files = read_folder(root)
        table = _parse(files)
        return pytest_task(files, table) if _is_ours(table) else harbor_task(files, table)
    except OSError as error:
        raise TaskError(f"{error.filename or root} cannot be read ({error.strerror}). Check that it is there.") from error


def _is_ours(table: Mapping[str, object]) -> bool:
    """Whether somebody meant this to be a task of ours; with half of the tables it is one, so that its problem is shown."""
    metadata = table.get("metadata")
    ours = metadata.get("seatrial") if isinstance(metadata, dict) else None
    if not isinstance(ours, dict):
        return False
    verifier = ours.get("verifier")
    return "snapshot" in ours or (isinstance(verifier, dict) and verifier.get("kind") == "pytest")


def _parse(files: Folder) -> Mapping[str, object]:
    text = files.text("task.toml")
    where = files.root / "task.toml"
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", f"at line {text.count(chr(10)) + 1}, the end of the file")
        raise TaskError(f"{where} is not valid TOML: {reason}. Correct that line.") from None
    except (RecursionError, ValueError):
        raise TaskError(f"{where} is nested too deeply or holds an endless number. Simplify it.") from None
