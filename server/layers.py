"""Overlay layers as the host sees them: what a stack of folders shows, and how deletions are written in one.

The format is the kernel's (Documentation/filesystems/overlayfs.rst) as mounted with ``userxattr``: a whiteout is a
character device 0:0, an opaque folder carries ``user.overlay.opaque=y``.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_OPAQUE = "user.overlay.opaque"


@dataclass(frozen=True)
class Lower:
    """One name in the merged view of lower layers: the file that shows, or the folders that merge (top first)."""

    status: os.stat_result
    path: Path
    folders: tuple[Path, ...] = ()

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)


def merged(layers: Sequence[Path]) -> tuple[Path, ...]:
    """Return the root of a stack given bottom first, in the order that `lookup` wants: top first."""
    return tuple(reversed(layers))


def lookup(folders: Sequence[Path], name: str) -> Lower | None:
    """Return what ``name`` is in a merged folder, or None if nothing shows there."""
    found: list[Path] = []
    for folder in folders:
        path = folder / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(status.st_mode):
            if found:
                break
            return None if is_whiteout(status) else Lower(status, path)
        found.append(path)
        if is_opaque(path):
            break
    return Lower(found[0].lstat(), found[0], tuple(found)) if found else None


def names(folders: Sequence[Path]) -> list[str]:
    """Return the sorted names that a merged folder shows."""
    every = {name for folder in folders for name in os.listdir(folder)}
    return sorted(name for name in every if lookup(folders, name) is not None)


def files_below(folders: Sequence[Path], prefix: str, left_out: frozenset[str]) -> Iterator[tuple[str, Lower]]:
    """Yield (path, file) of everything below a merged folder that is not itself a folder, skipping some names."""
    for name in names(folders):
        if name in left_out:
            continue
        lower = lookup(folders, name)
        if lower is None:
            continue
        if lower.is_folder:
            yield from files_below(lower.folders, f"{prefix}{name}/", left_out)
        else:
            yield prefix + name, lower


def is_whiteout(status: os.stat_result) -> bool:
    """Say whether an entry of a layer stands for a deletion."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(folder: Path | int) -> bool:
    """Say whether a folder of a layer hides what lies under it."""
    try:
        return os.getxattr(folder, _OPAQUE, **({} if isinstance(folder, int) else {"follow_symlinks": False})) == b"y"
    except OSError:
        return False


def make_whiteout(path: Path) -> None:
    """Write a deletion; any user may (Linux 5.8 and later)."""
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def make_opaque(folder: Path) -> None:
    """Mark ``folder`` so that nothing under it shows through."""
    os.setxattr(folder, _OPAQUE, b"y")
