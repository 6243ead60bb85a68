"""`seatrial tasks list | show`."""

from collections.abc import Sequence

from server.cli.display import write_json, write_line, write_table
from server.settings import Settings
from server.task_sources import task_folders
from tasks.catalog import load_catalog
from tasks.model import HarborTask, PytestTask, Source, Task


def list_tasks(query: str, *, as_json: bool, folders: Sequence[str] = ()) -> int:
    """Print the tasks that match ``query``; folders that cannot be used are named below."""
    catalog = load_catalog(task_folders(Settings.from_environment().with_tasks(folders)))
    found = catalog.search(query)
    problems = [problem.message for problem in catalog.problems]
    if as_json:
        listed = [task.model_dump(mode="json", include={"id", "title", "language", "difficulty", "keywords"}) for task in found]
        write_json({"tasks": listed, "problems": problems})
        return 0
    if found:
        write_table(("id", "language", "difficulty", "title"), [(t.id, t.language, t.difficulty, t.title) for t in found])
    else:
        write_line(f"No task matches {query!r}. `seatrial tasks list` shows all of them.")
    for problem in problems:
        write_line(f"Not usable: {problem}")
    return 0


def show_task(task_id: str, *, as_json: bool, folders: Sequence[str] = ()) -> int:
    """Print one task as its operator sees it."""
    task = load_catalog(task_folders(Settings.from_environment().with_tasks(folders))).find(task_id)
    if as_json:
        write_json(task.model_dump(mode="json"))
        return 0
    limits = task.limits
    for name, value in (
        ("id", task.id),
        ("title", task.title),
        ("folder", str(task.folder)),
        ("digest", task.digest),
        ("starts from", _start(task)),
        ("time", f"{task.agent_timeout_s:.0f} s"),
        (
            "limits",
            f"{limits.cpus:g} cpus, {limits.memory_mb} MB memory, {limits.storage_mb} MB disk, {limits.processes} processes",
        ),
        ("judged by", _judged(task)),
    ):
        write_line(f"{name + ':':<13}{value}")
    write_line()
    write_line(task.instruction.strip())
    return 0


def _start(task: Task) -> str:
    if isinstance(task, PytestTask):
        return starting_point(task.facts.snapshot)
    assert isinstance(task, HarborTask)
    image = task.harbor.container.image
    return f"the image {image.docker_image}" if image.docker_image else f"{image.context}/{image.dockerfile}"


def _judged(task: Task) -> str:
    if isinstance(task, PytestTask):
        return f"{len(task.fail_to_pass)} tests that must begin to pass, {len(task.pass_to_pass)} that must go on passing"
    assert isinstance(task, HarborTask)
    steps = len(task.harbor.steps)
    return f"its test.sh ({task.harbor.assurance})" + (f", in {steps} steps" if steps > 1 else "")


def starting_point(source: Source) -> str:
    """Return where a snapshot comes from, in a few words."""
    if source.kind == "pypi":
        return f"{source.name} {source.version}"
    if source.kind == "git":
        return f"{source.url} at {source.commit[:12]}" + (f", folder {source.subfolder}" if source.subfolder else "")
    return source.path
