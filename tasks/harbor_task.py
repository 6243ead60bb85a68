"""Read a plain Harbor task: made for a container, judged by a ``test.sh``."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from tasks.container import HarborFacts
from tasks.errors import TaskError
from tasks.explain import explain
from tasks.facts import Facts
from tasks.folders import Folder
from tasks.harbor_container import container_facts
from tasks.harbor_file import KEYS, HarborFile, no_climbing
from tasks.harbor_steps import steps_of
from tasks.model import HarborTask

_HEADING = re.compile(r"#{1,6}[ \t]+(?P<title>.*?)[ \t#]*")
_NEVER_CARRIED = ("/tests", "/solution", "/logs/verifier", "/proc", "/sys", "/dev")


class _Verifier(Facts):
    """What of ours a plain Harbor task may say, in ``[metadata.seatrial.verifier]``."""

    kind: Literal["harbor"] = "harbor"
    carry: tuple[PurePosixPath, ...] = ()
    assurance: Literal["compat", "in-place"] = "compat"

    @field_validator("carry", mode="before")
    @classmethod
    def _paths(cls, paths: object) -> object:
        for path in paths if isinstance(paths, list) else ():
            if not isinstance(path, str) or not path.startswith("/"):
                raise ValueError("must hold absolute paths")
            no_climbing("a list of absolute paths")(path)
            pure = PurePosixPath("/" + path.lstrip("/"))
            if any(pure.is_relative_to(never) or PurePosixPath(never).is_relative_to(pure) for never in _NEVER_CARRIED):
                raise ValueError(f"must not hold {path[:80]!r}: what judges the task must not come from the agent")
        return paths


class _Ours(Facts):
    verifier: _Verifier = _Verifier()


class _Tables(Facts):
    seatrial: _Ours = Field(default_factory=_Ours)


def harbor_task(files: Folder, table: Mapping[str, object]) -> HarborTask:
    """Return the task that ``table``, the content of task.toml, and the files beside it describe.

    Raises:
        TaskError: it cannot be used; the text names the file and the field, and says what to do.
    """
    where = files.root / "task.toml"
    try:
        file = HarborFile.model_validate(table)
    except ValidationError as error:
        raise TaskError(explain(where, error, keys=KEYS)) from None
    ours = _ours(files, file).verifier
    container = container_facts(files, file.environment, "environment", "environment")
    steps = steps_of(files, file, container)
    if ours.assurance == "in-place" and any(step.verifier.separate for step in steps):
        raise TaskError(f'{where}: metadata.seatrial.verifier.assurance is "in-place", but the verifier is separate. Remove one.')
    return HarborTask(
        id=files.root.name,
        folder=files.root,
        digest=files.digest,
        title=_title(files, file, steps[0].instruction),
        language=_line(file.metadata.get("language")) or _line(file.metadata.get("category")),
        difficulty=_line(file.metadata.get("difficulty")),
        keywords=_keywords(file),
        instruction=steps[0].instruction,
        agent_timeout_s=steps[0].agent_timeout_s,
        limits=container.limits,
        harbor=HarborFacts(
            schema_version=file.schema_version or file.version or "1.4",
            container=container,
            steps=steps,
            solution_env=file.solution.env,
            reward_strategy=file.multi_step_reward_strategy,
            carry=ours.carry,
            assurance=ours.assurance,
        ),
    )


def _ours(files: Folder, file: HarborFile) -> _Ours:
    """Return our part of the free table; everything else in there is free."""
    if "seatrial" not in file.metadata:
        return _Ours()
    keys = sorted({"snapshot", *_Ours.model_fields, *_Verifier.model_fields})
    try:
        return _Tables.model_validate({"seatrial": file.metadata["seatrial"]}).seatrial
    except ValidationError as error:
        raise TaskError(explain(files.root / "task.toml", error, "metadata", keys)) from None


def _title(files: Folder, file: HarborFile, instruction: str) -> str:
    described = file.task.description.strip().partition("\n")[0]
    return _line(described) or _line(file.metadata.get("title")) or _line(_heading(instruction)) or files.root.name


def _heading(markdown: str) -> str:
    """Return the text of the first heading; a ``#`` in a code block is none."""
    fenced = False
    for line in markdown.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif not fenced and (match := _HEADING.fullmatch(line.strip())) and match["title"]:
            return match["title"]
    return ""


def _keywords(file: HarborFile) -> tuple[str, ...]:
    tags = file.metadata.get("tags")
    words = file.task.keywords or (tags if isinstance(tags, list) else ())
    return tuple(word for given in words[:100] if (word := _line(given)))


def _line(value: object) -> str:
    """Return a free value as one line of at most 300 characters; empty if it is no text."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", value).split())[:300] if isinstance(value, str) else ""
