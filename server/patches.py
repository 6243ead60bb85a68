"""A workspace's change as data: read from an overlay's upper folder, kept as a manifest and blobs, written as a layer."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from server.blobs import Blobs
from server.layers import (
    Lower,
    files_below,
    is_opaque,
    is_whiteout,
    lookup,
    make_whiteout,
    merged,
    names,
)
from server.state import opened, remove_tree
from tasks.errors import SeaTrialError

LEFT_OUT = frozenset({".git", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox"})
"""Names (at any depth) that are never part of a patch; so are ``*.pyc``."""

MAX_CHANGES = 20_000
MAX_FILE_BYTES = 64 << 20
MAX_TOTAL_BYTES = 256 << 20
MAX_DEPTH = 128
MAX_PATH_BYTES = 1024

Kind = Literal["file", "link", "deleted"]


class PatchError(SeaTrialError):
    """The change cannot become a patch; the text says what to take away."""


@dataclass(frozen=True)
class Change:
    """One path of a patch. ``sha256`` names the blob of a file's content or a symlink's target."""

    path: str
    """Relative to the workspace; bytes that are not UTF-8 as surrogate escapes (PEP 383)."""
    kind: Kind
    sha256: str = ""
    size: int = 0
    executable: bool = False


@dataclass(frozen=True)
class Patch:
    """What a submission changes against the snapshot. ``dropped`` names what was left out because it is no file."""

    changes: tuple[Change, ...]
    dropped: tuple[str, ...] = ()

    def manifest(self) -> bytes:
        """Return the patch without its contents, as JSON; the same patch gives the same bytes."""
        return json.dumps([dataclasses.asdict(change) for change in self.changes], separators=(",", ":")).encode()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the manifest, which names every content."""
        return hashlib.sha256(self.manifest()).hexdigest()


def load_patch(manifest: bytes) -> Patch:
    """Return the patch that `Patch.manifest` wrote."""
    return Patch(tuple(Change(**values) for values in json.loads(manifest)))


@dataclass(frozen=True)
class Before:
    """What was at a path before it was changed."""

    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Found:
    """A difference seen in a workspace: what is there now and what was there before."""

    path: str
    kind: Kind
    executable: bool
    size: int
    before: Before | None
    read: Callable[[], bytes]
    """Return the content (of a symlink: its target). Only valid until the walk goes on."""


def read_patch(upper: Path, lowers: Sequence[Path], blobs: Blobs) -> Patch:
    """Read the whole change of a workspace whose sandbox has ended, and keep its contents.

    Raises:
        PatchError: too many files, too large ones, or folders nested too deep.
    """
    dropped: list[str] = []
    return keep(find_changes(upper, lowers, dropped.append), dropped, blobs)


def keep(differences: Iterable[Found], dropped: Sequence[str], blobs: Blobs) -> Patch:
    """Make a patch of ``differences`` and keep their contents; ``dropped`` is complete when they are.

    Raises:
        PatchError: too many files or too large ones.
    """
    changes: list[Change] = []
    total = 0
    for found in differences:
        total += found.size
        if len(changes) >= MAX_CHANGES:
            raise PatchError(f"The change has more than {MAX_CHANGES:,} files. Remove what does not belong to it.")
        if len(os.fsencode(found.path)) > MAX_PATH_BYTES:
            raise PatchError(f"The path {found.path[:200]!r}... is longer than {MAX_PATH_BYTES:,} bytes. Remove it.")
        if found.size > MAX_FILE_BYTES or total > MAX_TOTAL_BYTES:
            raise PatchError(
                f"The change is too large at {found.path!r} ({found.size:,} bytes): a file may have {MAX_FILE_BYTES >> 20} MiB, "
                f"all together {MAX_TOTAL_BYTES >> 20} MiB. Remove what does not belong to it."
            )
        sha256 = "" if found.kind == "deleted" else blobs.put(found.read())
        changes.append(Change(found.path, found.kind, sha256, found.size, found.executable))
    patch = Patch(tuple(sorted(changes, key=lambda change: change.path)), tuple(dropped))
    blobs.put(patch.manifest())
    return patch


def find_changes(upper: Path, lowers: Sequence[Path], drop: Callable[[str], None] = lambda _: None) -> Iterator[Found]:
    """Yield what differs from the lower layers, by content, kind and executable bit; touching a file is no change."""
    with opened(upper, os.O_DIRECTORY) as folder:
        yield from _walk(folder, merged(lowers), "", drop, opaque=False)


def _walk(folder: int, lowers: Sequence[Path], prefix: str, drop: Callable[[str], None], *, opaque: bool) -> Iterator[Found]:
    if prefix.count("/") > MAX_DEPTH:
        raise PatchError(f"The folders at {prefix[:200]!r} are nested deeper than {MAX_DEPTH}. Remove them.")
    opaque = opaque or is_opaque(folder)  # nothing of the lower layers shows below an opaque folder, at any depth
    present = sorted(name for name in os.listdir(folder) if not left_out(name))
    for name in present:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            before = lookup(lowers, name)
            if stat.S_ISDIR(status.st_mode):
                yield from _folder(folder, name, before, prefix, drop, opaque=opaque)
            else:
                yield from _entry(folder, name, status, before, prefix, drop)
        except (FileNotFoundError, NotADirectoryError):
            continue  # a live workspace: it went away while we looked
    if opaque:
        for path, lower in files_below(lowers, prefix, LEFT_OUT):
            if path[len(prefix) :].split("/")[0] not in present and not left_out(path):
                yield _deleted(path, lower)


def _folder(
    folder: int, name: str, before: Lower | None, prefix: str, drop: Callable[[str], None], *, opaque: bool
) -> Iterator[Found]:
    if before is not None and not before.is_folder:
        yield _deleted(prefix + name, before)
        before = None
    with opened(name, os.O_DIRECTORY, folder) as below:
        yield from _walk(below, before.folders if before else (), f"{prefix}{name}/", drop, opaque=opaque)


def _entry(
    folder: int, name: str, status: os.stat_result, before: Lower | None, prefix: str, drop: Callable[[str], None]
) -> Iterator[Found]:
    path = prefix + name
    link, regular = stat.S_ISLNK(status.st_mode), stat.S_ISREG(status.st_mode)
    if before is not None and before.is_folder:
        for inside, lower in files_below(before.folders, f"{path}/", LEFT_OUT):
            if not left_out(inside):
                yield _deleted(inside, lower)
        before = None
    if not link and not regular:
        if not is_whiteout(status):
            drop(path)
        if before is not None:
            yield _deleted(path, before)
        return
    executable = regular and bool(status.st_mode & 0o100)

    def read() -> bytes:
        if link:
            return os.fsencode(os.readlink(name, dir_fd=folder))
        return _read_regular(folder, name)

    if before is None or not _same(before, status, executable, read):
        yield Found(path, "link" if link else "file", executable, status.st_size, _before(before), read)


def _read_regular(folder: int, name: str) -> bytes:
    with opened(name, os.O_NONBLOCK, folder) as fd, open(fd, "rb", closefd=False) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(name)
        return file.read(MAX_FILE_BYTES + 1)


def _same(before: Lower, status: os.stat_result, executable: bool, read: Callable[[], bytes]) -> bool:
    old = before.status
    if stat.S_IFMT(old.st_mode) != stat.S_IFMT(status.st_mode) or old.st_size != status.st_size:
        return False
    if status.st_size > MAX_FILE_BYTES or executable != (stat.S_ISREG(old.st_mode) and bool(old.st_mode & 0o100)):
        return False
    return content_before(before) == read()


def content_before(lower: Lower) -> bytes:
    """Return the content of a lower layer's file, or a symlink's target."""
    if stat.S_ISLNK(lower.status.st_mode):
        return os.fsencode(lower.path.readlink())
    return lower.path.read_bytes()


def _deleted(path: str, lower: Lower) -> Found:
    return Found(path, "deleted", False, 0, _before(lower), lambda: b"")


def _before(lower: Lower | None) -> Before | None:
    return None if lower is None else Before(lower.status.st_size, partial(content_before, lower))


def left_out(path: str) -> bool:
    """Say whether a path is never part of a patch, by its last name."""
    return path.rpartition("/")[2] in LEFT_OUT or path.endswith(".pyc")


def write_layer(patch: Patch, blobs: Blobs, lowers: Sequence[Path], target: Path) -> None:
    """Write ``patch`` into the empty folder ``target`` so that it can lie on ``lowers`` in an overlay."""
    files = {change.path for change in patch.changes if change.kind != "deleted"}
    for path in files:
        if any(str(above) in files for above in PurePosixPath(path).parents):
            raise PatchError(f"{path[:200]!r} lies below what the same patch says is a file.")
    for change in patch.changes:
        if change.kind != "deleted":
            put_file(target, change.path, blobs.get(change.sha256), link=change.kind == "link", executable=change.executable)
    for change in patch.changes:
        if change.kind == "deleted":
            hide(target, change.path, lowers)
    _hide_empty(target, [change.path for change in patch.changes if change.kind == "deleted"], lowers)


def _hide_empty(target: Path, deleted: Sequence[str], lowers: Sequence[Path]) -> None:
    """Hide the folders in which nothing is left: a patch knows no empty folders, and Python would take one for a package."""
    emptied = {parent for path in deleted for parent in PurePosixPath(path).parents[:-1]}
    for folder in sorted(emptied, key=lambda one: len(one.parts), reverse=True):
        folders: Sequence[Path] = (target, *merged(lowers))
        for part in folder.parts:
            found = lookup(folders, part)
            folders = found.folders if found is not None else ()
        if folders and not names(folders):
            remove_tree(target / folder)
            make_whiteout(target / folder)


def put_file(target: Path, path: str, data: bytes, *, link: bool, executable: bool) -> None:
    """Write one file or symlink of a layer, with its parent folders."""
    place = _checked(target, path)
    place.parent.mkdir(0o755, parents=True, exist_ok=True)
    if link:
        place.symlink_to(os.fsdecode(data))
        return
    place.write_bytes(data)
    place.chmod(0o755 if executable else 0o644)


def hide(target: Path, path: str, lowers: Sequence[Path]) -> None:
    """Make ``path`` of ``lowers`` not show through the layer ``target``, unless the layer hides it already."""
    place, folders = _checked(target, path), merged(lowers)
    at = target
    for part in place.relative_to(target).parts[:-1]:
        below = lookup(folders, part)
        if below is None or not below.is_folder:
            return
        folders = below.folders
        at = at / part
        if at.is_symlink() or (at.exists() and not at.is_dir()):
            return
        at.mkdir(0o755, exist_ok=True)
    if lookup(folders, place.name) is not None and not os.path.lexists(place):
        make_whiteout(place)


def _checked(target: Path, path: str) -> Path:
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise PatchError(f"{path!r} is not a path inside a workspace.")
    return target.joinpath(*parts)
