"""Tar streams as Docker takes and gives them: what goes into a container, and what came out of one, checked."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.folders import read_folder


@dataclass(frozen=True)
class Member:
    """One file or symlink: ``data`` is a file's content or a symlink's target. Paths are relative, with ``/``."""

    path: str
    data: bytes
    executable: bool = False
    link: bool = False


def packed(members: Iterable[Member], uid: int = 0, gid: int = 0, folders: Iterable[str] = (), folder_mode: int = 0o755) -> bytes:
    """Return a tar with ``folders`` (made if missing) and ``members``; their parents are made by whoever unpacks it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for folder in folders:
            info = tarfile.TarInfo(folder)
            info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, folder_mode, uid, gid
            tar.addfile(info)
        for member in members:
            info = tarfile.TarInfo(member.path)
            info.uid, info.gid, info.mode = uid, gid, 0o755 if member.executable else 0o644
            if member.link:
                info.type, info.linkname = tarfile.SYMTYPE, member.data.decode("utf-8", "surrogateescape")
                tar.addfile(info)
            else:
                info.size = len(member.data)
                tar.addfile(info, io.BytesIO(member.data))
    return stream.getvalue()


def packed_folder(root: Path, below: str = "") -> bytes:
    """Return a tar of the files of a task's folder, owned by root, below the path ``below``."""
    files = read_folder(root).files
    prefix = f"{below}/" if below else ""
    parents = sorted({str(parent) for name in files for parent in Path(prefix + name).parents if str(parent) != "."})
    return packed(
        (Member(prefix + name, (root / name).read_bytes(), executable) for name, executable in files.items()), folders=parents
    )


def unpacked(data: bytes) -> Iterator[tuple[str, Member | None]]:
    """Yield (path, file or symlink) of what Docker gave; None for whatever is neither, folders left out.

    Paths begin with the last name of what was asked for.
    """
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for info in tar:
            path = info.name.rstrip("/").removeprefix("./")
            if info.isreg():
                file = tar.extractfile(info)
                yield path, Member(path, file.read() if file is not None else b"", bool(info.mode & 0o100))
            elif info.issym():
                yield path, Member(path, info.linkname.encode("utf-8", "surrogateescape"), link=True)
            elif info.islnk():
                yield path, _linked(tar, info, path)
            elif not info.isdir():
                yield path, None


def _linked(tar: tarfile.TarFile, info: tarfile.TarInfo, path: str) -> Member | None:
    """Return a hard link as the file that it is, if the archive has that."""
    try:
        file = tar.extractfile(info)
    except KeyError:
        return None
    return Member(path, file.read(), bool(info.mode & 0o100)) if file is not None else None
