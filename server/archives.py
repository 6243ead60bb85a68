"""Unpack a released archive or copy a folder into a plain tree; the archive is hostile until every entry was looked at."""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from tasks.errors import SeaTrialError, TaskError
from tasks.folders import read_folder

MAX_TREE_BYTES = 1 << 30
MAX_ENTRIES = 100_000
MAX_HEADER_BYTES = 1 << 20
"""The most that is read at once; only an entry's header, never its content, could ask for more."""

_CHUNK = 1 << 18


class ArchiveError(SeaTrialError):
    """An archive that will not be unpacked; the text says what is wrong with it."""

    def __init__(self, archive: Path, what: str) -> None:
        super().__init__(f"{archive.name} {what}. It is not used: choose another release as the task's source.")


class _Bounded:
    """What a gzip file holds, for tarfile: too much of it, or too large a piece, is an error instead of memory."""

    def __init__(self, file: gzip.GzipFile, archive: Path) -> None:
        self._file = file
        self._archive = archive

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise ArchiveError(self._archive, "has an oversized header")
        data = self._file.read(size)
        self._check(self._file.tell())
        return data

    def seek(self, position: int) -> int:
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > MAX_TREE_BYTES + MAX_ENTRIES * 2 * tarfile.BLOCKSIZE:
            raise ArchiveError(self._archive, f"unpacks to more than {MAX_TREE_BYTES >> 20} MiB")


def unpack_sdist(archive: Path, tree: Path) -> None:
    """Unpack a ``.tar.gz`` into the empty folder ``tree``, without its single top folder and without any ``.git``.

    Only regular files, folders and links that stay inside come out; hard links become files of their own.

    Raises:
        ArchiveError: something in it is broken, too large or leads outside.
    """
    with _opened(archive) as tar:
        _Unpacking(archive, tree, tar).run()


class _Unpacking:
    """One run over an archive. Links are made last, so that nothing can be written through them."""

    def __init__(self, archive: Path, tree: Path, tar: tarfile.TarFile) -> None:
        self.archive, self.tree, self.tar = archive, tree, tar
        self.left = MAX_TREE_BYTES
        self.top = ""
        self.links: list[tuple[Path, str]] = []

    def run(self) -> None:
        for number, member in enumerate(self.tar):
            if number >= MAX_ENTRIES:
                raise ArchiveError(self.archive, f"has more than {MAX_ENTRIES:,} entries")
            if (path := self._place(member)) is not None:
                self._put(member, path)
        for link, target in self.links:
            self._link(link, target)
        for link, _ in self.links:
            if not link.resolve().is_relative_to(self.tree.resolve()):
                raise ArchiveError(self.archive, f"has a link that leads outside, {_shown(link.name)}")

    def _place(self, member: tarfile.TarInfo) -> Path | None:
        """Return where the entry goes, None if it stays out; refuse names that are no plain relative paths."""
        if data_filter := getattr(tarfile, "data_filter", None):  # Python 3.11.4; the checks below do not count on it
            data_filter(member, str(self.tree))
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\0" in member.name:
            raise ArchiveError(self.archive, f"has an entry with an unusable name, {_shown(member.name)}")
        if not path.parts:
            return None
        self.top = self.top or path.parts[0]
        if path.parts[0] != self.top:
            raise ArchiveError(self.archive, f"has more than one top folder, also {_shown(path.parts[0])}")
        inner = path.parts[1:]
        if not inner and not member.isdir():
            raise ArchiveError(self.archive, "has no top folder")
        if not inner or any(is_git(part) for part in inner):
            return None
        return self.tree.joinpath(*inner)

    def _put(self, member: tarfile.TarInfo, path: Path) -> None:
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            self.links.append((path, member.linkname))
            return
        if member.size > self.left:
            raise ArchiveError(self.archive, f"unpacks to more than {MAX_TREE_BYTES >> 20} MiB")
        path.unlink(missing_ok=True)  # as tar does: of two entries with one name the later counts
        with self._content(member) as content, path.open("xb") as file:
            while chunk := content.read(_CHUNK):
                self.left -= len(chunk)
                if self.left < 0:
                    raise ArchiveError(self.archive, f"unpacks to more than {MAX_TREE_BYTES >> 20} MiB")
                file.write(chunk)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)

    def _content(self, member: tarfile.TarInfo) -> IO[bytes]:
        """Open what the entry holds; for a hard link, the file that is already out."""
        if member.islnk():
            target = PurePosixPath(member.linkname)
            first = self.tree.joinpath(*target.parts[1:])
            if target.parts[:1] != (self.top,) or ".." in target.parts or not first.is_file():
                raise ArchiveError(self.archive, f"has a link to nothing, {_shown(member.name)}")
            return first.open("rb")
        content = None if member.issparse() or not member.isreg() else self.tar.extractfile(member)
        if content is None:
            raise ArchiveError(self.archive, f"has an entry that is no plain file, {_shown(member.name)}")
        return content

    def _link(self, link: Path, target: str) -> None:
        parts = PurePosixPath(target).parts
        inside = link.parent.resolve() == self.tree.resolve() / link.parent.relative_to(self.tree)
        if not inside or target.startswith("/") or any(is_git(part) for part in parts):
            raise ArchiveError(self.archive, f"has a link that leads outside, {_shown(link.name)}")
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def copy_folder(source: Path, tree: Path) -> None:
    """Copy the regular files of ``source`` into the empty folder ``tree``, without any ``.git``.

    Raises:
        TaskError: it holds links, special files or too much, or it changed meanwhile.
    """
    folder = read_folder(source)
    for name, executable in folder.files.items():
        if any(is_git(part) for part in PurePosixPath(name).parts):
            continue
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, path, follow_symlinks=False)
        path.chmod(0o755 if executable else 0o644)
    if read_folder(source).digest != folder.digest:
        raise TaskError(f"{source} changed while it was copied. Run the command again when it is at rest.")


def is_git(name: str) -> bool:
    """Whether git would take this name for its own folder, on any file system."""
    return name.rstrip(". ").lower() in (".git", "git~1")


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with gzip.open(archive) as plain:
            bounded = cast("IO[bytes]", _Bounded(plain, archive))
            with tarfile.open(fileobj=bounded, mode="r:", errorlevel=2) as tar:
                yield tar
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, ValueError, RuntimeError) as error:
        raise ArchiveError(archive, f"is broken ({str(error)[:200]})") from error
    except OSError as error:
        raise ArchiveError(archive, f"cannot be unpacked ({error.strerror or error})") from error


def _shown(name: str) -> str:
    return ascii(name[-200:])
