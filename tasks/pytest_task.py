"""Read our own kind of task: a snapshot and hidden pytest suites, told in ``[metadata.seatrial.*]``, which Harbor keeps free.

Of Harbor's own tables only what such a task can use is read; its container files, if there are any, are left to Harbor.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import TaskError
from tasks.explain import explain
from tasks.facts import DEFAULT_AGENT_TIMEOUT_S, Line, ResourceLimits, Seconds
from tasks.folders import Folder
from tasks.model import DirectorySource, PytestTask, SeaTrialFacts

TEST_ID = re.compile(r"(?P<file>[^:\[\]\s][^:\[\]]*\.py)(::[^\W\d]\w*)+")
"""A function-level pytest id: no spaces, no `[case]`, at least one name after the file."""


class _Harbor(BaseModel):
    """Base of Harbor's own tables: what we do not use is left alone, as Harbor does."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class _Task(_Harbor):
    description: str = ""
    keywords: tuple[Line, ...] = ()


class _Metadata(_Harbor):
    title: Line = ""
    difficulty: Line = ""
    language: Line = ""
    tags: tuple[Line, ...] = ()


class _Agent(_Harbor):
    timeout_sec: Seconds = DEFAULT_AGENT_TIMEOUT_S
    network_mode: str = "no-network"


class _Verifier(_Harbor):
    timeout_sec: Seconds | None = None


class _Environment(ResourceLimits):
    model_config = ConfigDict(extra="ignore")

    network_mode: str = "no-network"
    allow_internet: bool = False
    gpus: int = 0


class _TaskFile(_Harbor):
    schema_version: str | float = "1.0"
    version: str | float = "1.0"
    task: _Task = _Task()
    metadata: _Metadata = _Metadata()
    agent: _Agent = _Agent()
    verifier: _Verifier = _Verifier()
    environment: _Environment = _Environment()


def pytest_task(files: Folder, table: Mapping[str, object]) -> PytestTask:
    """Return the task that ``table``, the content of task.toml, and the files beside it describe.

    Raises:
        TaskError: it cannot be used; the text names the file and the field, and says what to do.
    """
    facts = _seatrial_facts(files, table)
    instruction = files.text("instruction.md")
    fail_to_pass = _test_ids(files, facts, "fail_to_pass")
    pass_to_pass = _test_ids(files, facts, "pass_to_pass")
    if both := sorted(set(fail_to_pass) & set(pass_to_pass)):
        raise TaskError(
            f"{files.root / facts.verifier.pass_to_pass}: {both[0]} also stands in {facts.verifier.fail_to_pass}. "
            "A test either fails before the change or passes: remove it from one of them."
        )
    harbor = _harbor_facts(files, table)
    return PytestTask(
        id=files.root.name,
        folder=files.root,
        digest=files.digest,
        title=harbor.metadata.title or harbor.task.description.partition("\n")[0][:300] or files.root.name,
        language=harbor.metadata.language,
        difficulty=harbor.metadata.difficulty,
        keywords=harbor.task.keywords or harbor.metadata.tags,
        instruction=instruction,
        agent_timeout_s=harbor.agent.timeout_sec,
        limits=ResourceLimits(**harbor.environment.model_dump(include=set(ResourceLimits.model_fields))),
        facts=facts,
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
    )


def _harbor_facts(files: Folder, table: Mapping[str, object]) -> _TaskFile:
    where = files.root / "task.toml"
    try:
        harbor = _TaskFile.model_validate(table)
    except ValidationError as error:
        raise TaskError(explain(where, error)) from None
    for key, version in (("schema_version", harbor.schema_version), ("version", harbor.version)):
        if not re.fullmatch(r"1(\.\d+)*", str(version)):
            raise TaskError(f"{where}: {key} is {str(version)[:40]!r}; only 1.x is understood. Convert the task to 1.4.")
    if harbor.environment.allow_internet:
        raise TaskError(f"{where}: environment.allow_internet is true, but tasks have no network. Remove it.")
    for name, mode in (("environment", harbor.environment.network_mode), ("agent", harbor.agent.network_mode)):
        if mode != "no-network":
            raise TaskError(
                f"{where}: {name}.network_mode is {mode[:40]!r}, but the local sandbox has no network. "
                'Set it to "no-network", or remove it.'
            )
    if harbor.environment.gpus or table.get("steps"):
        what = "environment.gpus" if harbor.environment.gpus else "steps"
        raise TaskError(f"{where}: {what} is not supported by the local sandbox. Remove it, or split the task.")
    return harbor


def _seatrial_facts(files: Folder, table: Mapping[str, object]) -> SeaTrialFacts:
    where = files.root / "task.toml"
    metadata = table.get("metadata")
    ours = metadata.get("seatrial") if isinstance(metadata, dict) else None
    if not isinstance(ours, dict):
        raise TaskError(f"{where} has no [metadata.seatrial] tables. Add them.")
    verifier = ours.get("verifier")
    harbors = table.get("verifier")
    if isinstance(verifier, dict) and isinstance(harbors, dict) and "timeout_sec" in harbors:
        ours = {**ours, "verifier": {"timeout_s": harbors["timeout_sec"], **verifier}}
    try:
        facts = SeaTrialFacts.model_validate(ours)
    except ValidationError as error:
        raise TaskError(explain(where, error, "metadata.seatrial")) from None
    _check_paths(files, facts)
    return facts


def _check_paths(files: Folder, facts: SeaTrialFacts) -> None:
    """Refuse paths that leave the task folder or the tree, and those that name nothing."""
    in_tree: dict[str, Iterable[object]] = {
        "environment.pythonpath": facts.environment.pythonpath,
        "verifier.pythonpath": facts.verifier.pythonpath,
        "verifier.test_paths": facts.verifier.test_paths,
        "verifier.protected": facts.verifier.protected,
    }
    for field, paths in in_tree.items():
        for path in paths:
            _check_inside(files, field, str(path), top_allowed=field.endswith("pythonpath"))
    for field, path in (
        ("environment.requirements", facts.environment.requirements),
        ("environment.setup", facts.environment.setup),
        ("verifier.fail_to_pass", facts.verifier.fail_to_pass),
        ("verifier.pass_to_pass", facts.verifier.pass_to_pass),
    ):
        if path:
            _check_inside(files, field, path)
            if path not in files.files:
                raise _refused(files, field, f"names {path!r}, and there is no such file. Add it, or correct the name.")
    _check_directories(files, facts)


def _check_directories(files: Folder, facts: SeaTrialFacts) -> None:
    """Refuse a directory snapshot that is not there, or through which the agent would see the solution or the test ids."""
    for field, source in (("snapshot.path", facts.snapshot), ("solution.path", facts.solution)):
        if isinstance(source, DirectorySource):
            _check_inside(files, field, source.path)
            if not files.has_folder(source.path):
                raise _refused(files, field, f"names {source.path!r}, and no files lie there. Add them, or correct it.")
    if not isinstance(facts.snapshot, DirectorySource):
        return
    seen = PurePosixPath(facts.snapshot.path)
    secrets = [facts.verifier.fail_to_pass, facts.verifier.pass_to_pass]
    if isinstance(facts.solution, DirectorySource):
        secrets.append(facts.solution.path)
        if seen.is_relative_to(facts.solution.path):
            raise _refused(files, "snapshot.path", "lies inside solution.path. Put them side by side.")
    for secret in secrets:
        if PurePosixPath(secret).is_relative_to(seen):
            raise _refused(files, "snapshot.path", f"holds {secret!r}, so the agent would see it. Put them side by side.")


def _check_inside(files: Folder, field: str, path: str, *, top_allowed: bool = False) -> None:
    parts = path.split("/")
    plain = path == "." or not ({"", ".", ".."} & set(parts) or re.search(r"[\x00-\x1f\x7f\\]", path))
    if not plain:
        raise _refused(files, field, f"is {path[:200]!r}. It must be a plain relative path: no '..', no leading or trailing '/'.")
    if (path == "." and not top_allowed) or parts[0].lower() == ".git":
        raise _refused(files, field, f"is {path[:200]!r}, which cannot be used here. Name a file or folder below it.")


def _test_ids(files: Folder, facts: SeaTrialFacts, field: str) -> tuple[str, ...]:
    """Read the ids of one list: one a line, ``#`` starts a comment line; sorted."""
    name: str = getattr(facts.verifier, field)
    found: set[str] = set()
    for number, line in enumerate(files.text(name).splitlines(), 1):
        test_id = line.strip()
        if not test_id or test_id.startswith("#"):
            continue
        where = f"{files.root / name} line {number}: {test_id[:200]!r}"
        match = TEST_ID.fullmatch(test_id)
        if not match:
            raise TaskError(f"{where} is not a function-level test id such as 'tests/test_a.py::test_b' (without [case]).")
        file = PurePosixPath(match["file"])
        if ".." in file.parts or not any(file.is_relative_to(path) for path in facts.verifier.test_paths):
            raise TaskError(f"{where} lies outside verifier.test_paths, where the agent could write it. Extend them.")
        if test_id in found:
            raise TaskError(f"{where} stands there twice. Remove one.")
        found.add(test_id)
    if not found:
        raise TaskError(f"{files.root / name} holds no test ids. List at least one.")
    return tuple(sorted(found))


def _refused(files: Folder, field: str, what: str) -> TaskError:
    return TaskError(f"{files.root / 'task.toml'}: metadata.seatrial.{field} {what}")
