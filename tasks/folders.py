"""Task folders as files: what lies in one, bounded, without links out of it, and its digest."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import TaskError

MAX_FILES = 10_000
MAX_FOLDER_BYTES = 64 << 20
MAX_TEXT_BYTES = 1 << 20
IGNORED = frozenset({".DS_Store", "__pycache__"})
"""Names that tools leave behind; they are no part of a task."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Folder:
    """The regular files of a folder: whether each is executable, by its path below ``root`` with ``/``, sorted."""

    root: Path
    files: Mapping[str, bool]
    digest: str

    def has_folder(self, path: str) -> bool:
        """Whether at least one file lies below ``path``."""
        return any(name.startswith(f"{path}/") for name in self.files)

    def text(self, path: str) -> str:
        """Return a file's UTF-8 text.

        Raises:
            TaskError: it is not there, longer than `MAX_TEXT_BYTES`, empty, or not UTF-8.
        """
        where = self.root / path
        if path not in self.files:
            raise TaskError(f"{where} is missing. Every task needs it: add it.")
        with where.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
        if len(data) > MAX_TEXT_BYTES:
            raise TaskError(f"{where} is longer than {MAX_TEXT_BYTES:,} bytes. Shorten it.")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise TaskError(f"{where} line {line} is not UTF-8. Save the file as UTF-8.") from None
        if not text.strip():
            raise TaskError(f"{where} is empty. Fill it in.")
        return text


def read_folder(root: Path) -> Folder:
    """List and digest every file below ``root``, except the `IGNORED` ones.

    The digest covers names, contents and executable bits, nothing else: not times, owners or empty folders.

    Raises:
        TaskError: there are too many files or bytes, or something that is neither a regular file nor a folder.
    """
    paths = sorted(_walk(root, ""))
    digest = hashlib.sha256()
    files: dict[str, bool] = {}
    left = MAX_FOLDER_BYTES
    for path in paths:
        content, size, executable = _digest_file(root / path, left)
        left -= size
        files[path] = executable
        digest.update(f"{len(os.fsencode(path))}:".encode() + os.fsencode(path) + (b"x" if executable else b"-") + content)
    return Folder(root, files, digest.hexdigest())


def _walk(root: Path, start: str) -> Iterator[str]:
    """Yield files below ``root``; a stack instead of recursion, since how deep they lie is not ours to say."""
    pending, found = [start], 0
    while pending:
        below = pending.pop()
        with os.scandir(root / below) as entries:
            for entry in entries:
                if entry.name in IGNORED:
                    continue
                found += 1
                if found > MAX_FILES:
                    raise TaskError(f"{root} holds more than {MAX_FILES:,} files. A task folder holds facts, not projects.")
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.is_symlink():
                    raise TaskError(f"{root / path} is a symbolic link. Put the file itself into the task folder.")
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    yield path
                else:
                    raise TaskError(f"{root / path} is neither a file nor a folder. Remove it.")


def _digest_file(path: Path, limit: int) -> tuple[bytes, int, bool]:
    """Return a file's SHA-256, size and executable bit, reading no more than ``limit`` bytes."""
    digest, size = hashlib.sha256(), 0
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb", buffering=0) as file:
        executable = bool(os.fstat(fd).st_mode & stat.S_IXUSR)
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                raise TaskError(
                    f"{path} makes the task folder larger than {MAX_FOLDER_BYTES:,} bytes. "
                    "Take large files out; a snapshot can come from a released package."
                )
            digest.update(chunk)
    return digest.digest(), size, executable
