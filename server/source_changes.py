"""Adding, updating and removing sources of tasks. One process at a time; the record changes whole or not at all."""

import hashlib
import os
import re
import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.locations import Location
from server.repositories import Checkout, check_out
from server.state import State, remove_tree
from server.task_sources import SourceFile, SourcesError, TaskSource, read_sources, sources_folder
from tasks.catalog import Place, Problem, read_place
from tasks.model import Task

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Change:
    """What came of a source: the ids of tasks that are new, changed and gone since before, and what is not usable."""

    source: TaskSource
    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    problems: tuple[str, ...]
    submodules: tuple[str, ...] = ()
    """Folders that stay empty: submodules are never fetched."""


@dataclass(frozen=True)
class _Found:
    source: TaskSource
    problems: tuple[str, ...]
    submodules: tuple[str, ...]


def add_source(location: Location, name: str, state: State) -> Change:
    """Record a source after looking at its tasks; a repository is fetched first.

    Raises:
        SourcesError: the name or the place is taken, or no task lies there.
        RepositoryError: the repository cannot be fetched.
    """
    name = name or location.leaf
    if not NAME.fullmatch(name):
        raise SourcesError(
            f"{name[:100]!r} cannot be a name: lower-case letters, digits, '.', '_' and '-'. Give one: --name NAME"
        )
    with _changing(state) as sources:
        for source in sources:
            if source.name == name:
                raise SourcesError(
                    f"There is a source {name!r} already ({source.shown}). Give this one a name of its own with --name, or renew "
                    f"that one: seatrial tasks update {name}"
                )
            if (source.location, source.rev, source.subfolder) == (location.place, location.rev, location.subfolder):
                raise SourcesError(f"It was added before, as {source.name!r}. Renew it: seatrial tasks update {source.name}")
        found = _look(location, name, state)
        _write(state, [*sources, found.source])
    return _change(found, {})


def remove_source(name: str, state: State) -> TaskSource:
    """Take a source out of the record; checkouts that no source uses any more are removed, a user's own folder never.

    Raises:
        SourcesError: there is none of this name.
    """
    with _changing(state) as sources:
        source = find_source(sources, name)
        left = [one for one in sources if one.name != name]
        _write(state, left)
        used = {one.checkout for one in left}
        for folder in sources_folder(state.root).iterdir():
            if folder.is_dir() and folder.name not in used:
                remove_tree(folder)
    return source


def update_source(name: str, state: State) -> Change:
    """Look again what a source's revision is now, and record it with the tasks that are there.

    The checkout that was used before stays until a source is removed: running servers may read it.

    Raises:
        SourcesError: there is none of this name, or no task is there any more; the source stays as it was.
        RepositoryError: the repository cannot be fetched.
    """
    with _changing(state) as sources:
        old = find_source(sources, name)
        found = _look(Location(old.kind, old.location, old.rev, old.subfolder), name, state)
        _write(state, [found.source if one.name == name else one for one in sources])
    return _change(found, old.digests)


def find_source(sources: Sequence[TaskSource], name: str) -> TaskSource:
    """Return the source of this name.

    Raises:
        SourcesError: there is none; the text lists what there is.
    """
    for source in sources:
        if source.name == name:
            return source
    known = ", ".join(source.name for source in sources)
    raise SourcesError(
        f"No source {name!r}. {f'There are: {known}.' if known else 'None was added: seatrial tasks add PATH|GIT_URL'}"
    )


@contextmanager
def _changing(state: State) -> Generator[tuple[TaskSource, ...]]:
    """Hold the lock of the sources; what a process that died left half-made is removed first."""
    with state.lock("sources"):
        folder = sources_folder(state.root)
        folder.mkdir(0o700, exist_ok=True)
        for left in folder.glob(".*"):
            remove_tree(left)
        yield read_sources(state.root)


def _write(state: State, sources: Sequence[TaskSource]) -> None:
    path = sources_folder(state.root) / "sources.json"
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with fresh.open("x") as file:
        file.write(SourceFile(sources=tuple(sources)).model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(path)


def _look(location: Location, name: str, state: State) -> _Found:
    """Return the source that ``location`` makes now, fetched and in its place."""
    if location.kind == "path":
        digests, problems = _read(Path(location.place), location)
        source = TaskSource(name=name, kind="path", location=location.place, digests=digests)
        return _Found(source, problems, ())
    incoming = sources_folder(state.root) / f".incoming.{secrets.token_hex(4)}"
    tree = incoming / location.leaf
    try:
        tree.mkdir(parents=True)
        checkout = check_out(location.place, location.rev, location.subfolder, tree)
        digests, problems = _read(tree, location)
        published = _publish(location, checkout, tree, digests, state)
    finally:
        remove_tree(incoming)
    source = TaskSource(
        name=name,
        kind="git",
        location=location.place,
        rev=location.rev,
        subfolder=location.subfolder,
        commit=checkout.commit,
        checkout=published.name,
        leaf=location.leaf,
        digests=digests,
    )
    return _Found(source, tuple(text.replace(str(tree), str(published / tree.name)) for text in problems), checkout.submodules)


def _publish(location: Location, checkout: Checkout, tree: Path, digests: Mapping[str, str], state: State) -> Path:
    """Give the tree its place, named by what it is; one that is there is kept unless somebody changed its tasks."""
    facts = "\n".join((location.place, checkout.commit, location.subfolder))
    target = sources_folder(state.root) / hashlib.sha256(facts.encode()).hexdigest()
    if (
        target.exists()
        and {one.id: one.digest for one in read_place(Place(target / tree.name)) if isinstance(one, Task)} != digests
    ):
        remove_tree(target)

    def fill(folder: Path) -> None:
        tree.rename(folder / tree.name)

    return state.publish(target, fill)


def _read(folder: Path, location: Location) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the digests of the tasks in ``folder`` by id, and the problems of others.

    Raises:
        SourcesError: there is no task at all.
    """
    remedy = "Name a folder that is a task or holds tasks" + (", after ':'." if location.kind == "git" else ".")
    found = list(read_place(Place(folder, None, remedy)))
    problems = [one for one in found if isinstance(one, Problem)]
    if len(found) == 1 and problems and problems[0].folder == folder and not _meant(folder):
        text = problems[0].message
        shown = location.place + (f":{location.subfolder}" if location.subfolder else "")
        raise SourcesError(text.replace(str(folder), shown))
    digests = {one.id: one.digest for one in found if not isinstance(one, Problem) and not (folder / one.id).is_symlink()}
    return digests, tuple(one.message for one in problems)


def _meant(folder: Path) -> bool:
    return (folder / "task.toml").is_file() or (folder / "instruction.md").is_file()


def _change(found: _Found, before: Mapping[str, str]) -> Change:
    now = found.source.digests
    return Change(
        found.source,
        new=tuple(sorted(now.keys() - before.keys())),
        changed=tuple(sorted(one for one in now.keys() & before.keys() if now[one] != before[one])),
        gone=tuple(sorted(before.keys() - now.keys())),
        problems=found.problems,
        submodules=found.submodules,
    )
