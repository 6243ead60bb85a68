"""`seatrial tasks add | remove | update | sources`: the folders and repositories that tasks of the user come from."""

from collections.abc import Sequence
from typing import Any

from server.cli.display import write_failure, write_json, write_line, write_table
from server.locations import parse_location
from server.settings import Settings
from server.source_changes import Change, add_source, find_source, remove_source, update_source
from server.state import open_state
from server.task_sources import TaskSource, read_sources, task_folders
from tasks.catalog import load_catalog
from tasks.errors import SeaTrialError

SHOWN_IDS = 20


def add_tasks(text: str, name: str, *, as_json: bool) -> int:
    """Add a source and say what was found in it; tasks that are not usable do not keep the others out."""
    settings = Settings.from_environment()
    location = parse_location(text)
    change = add_source(location, name, open_state(settings))
    problems = (*change.problems, *_taken(settings, change))
    if as_json:
        write_json(_change_data(change, problems))
        return 0
    source, usable = change.source, len(change.new) - (len(problems) - len(change.problems))
    pinned = f" at {source.commit[:12]}" if source.commit else ", used where it is"
    write_line(f"added {source.name}: {source.shown}{pinned}")
    write_line(f"{usable} usable {_tasks(usable)}, {len(problems)} not usable")
    _write_ids("", change.new)
    _write_troubles(problems, change)
    if usable:
        write_line(f"\nNext: build them      seatrial tasks build {' '.join(change.new[:3])}")
        write_line("      see every task  seatrial tasks list")
    else:
        write_line(f"\nNext: mend them, then  seatrial tasks update {source.name}")
    return 0


def remove_tasks(name: str, *, as_json: bool) -> int:
    """Take a source out."""
    source = remove_source(name, open_state(Settings.from_environment()))
    if as_json:
        write_json({"removed": _data(source)})
    else:
        write_line(f"removed {source.name}: {source.shown} ({len(source.digests)} {_tasks(len(source.digests))})")
    return 0


def update_tasks(names: Sequence[str], *, as_json: bool) -> int:
    """Update the named sources, or all; one that fails stays as it was, does not stop the others, and makes the code 1."""
    settings = Settings.from_environment()
    state = open_state(settings)
    sources = read_sources(settings.state)
    wanted = [find_source(sources, name).name for name in dict.fromkeys(names)] or [source.name for source in sources]
    before = {source.name: source.commit for source in sources}
    changes, failures = [], {}
    for name in wanted:
        try:
            changes.append(update_source(name, state))
        except SeaTrialError as error:
            failures[name] = str(error)
    if as_json:
        failed = [{"name": name, "error": text} for name, text in failures.items()]
        write_json({"updated": [_change_data(change, change.problems) for change in changes], "failed": failed})
        return 1 if failures else 0
    if not wanted:
        write_line("No source was added. Add one: seatrial tasks add PATH|GIT_URL")
    for change in changes:
        _write_update(change, before[change.source.name])
    for name, text in failures.items():
        write_failure(f"{name} was not updated: {text}")
    return 1 if failures else 0


def list_sources(*, as_json: bool) -> int:
    """Print the added sources."""
    sources = read_sources(Settings.from_environment().state)
    if as_json:
        write_json({"sources": [_data(source) for source in sources]})
    elif sources:
        rows = [(one.name, one.kind, str(len(one.digests)), one.commit[:12] or "-", one.shown) for one in sources]
        write_table(("name", "kind", "tasks", "commit", "from"), rows)
    else:
        write_line("No source was added. Add one: seatrial tasks add PATH|GIT_URL")
    return 0


def _write_update(change: Change, before: str) -> None:
    source = change.source
    moved = f" {before[:12]} -> {source.commit[:12]}" if before != source.commit else ""
    counts = {"new": change.new, "changed": change.changed, "gone": change.gone}
    told = ", ".join(f"{len(ids)} {word}" for word, ids in counts.items() if ids) or "no task changed"
    write_line(f"{source.name}:{moved} {told}")
    for word, ids in counts.items():
        _write_ids(f"{word}: ", ids)
    _write_troubles(change.problems, change)


def _write_ids(start: str, ids: Sequence[str]) -> None:
    if ids:
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        write_line(f"  {start}{', '.join(ids[:SHOWN_IDS])}{more}")


def _write_troubles(problems: Sequence[str], change: Change) -> None:
    for problem in problems:
        write_line(f"Not usable: {problem}")
    if change.submodules:
        write_line(f"Left empty, as submodules are not fetched: {', '.join(change.submodules[:SHOWN_IDS])}")


def _taken(settings: Settings, change: Change) -> tuple[str, ...]:
    """Return the problems that tasks of this source have only beside all others: their ids are taken."""
    folder = change.source.place(settings.state).folder
    found = load_catalog(task_folders(settings)).problems
    ours = [problem.message for problem in found if folder in (problem.folder, problem.folder.parent)]
    return tuple(text for text in ours if "is taken by" in text)


def _data(source: TaskSource) -> dict[str, Any]:
    facts = source.model_dump(mode="json", exclude={"checkout", "leaf", "digests"})
    return {**facts, "tasks": dict(source.digests)}


def _change_data(change: Change, problems: Sequence[str]) -> dict[str, Any]:
    return {
        "source": _data(change.source),
        "new": list(change.new),
        "changed": list(change.changed),
        "gone": list(change.gone),
        "problems": list(problems),
        "submodules": list(change.submodules),
    }


def _tasks(count: int) -> str:
    return "task" if count == 1 else "tasks"
