"""Just enough of ELF to copy a program to another prefix: what it needs, where it looks, and changing the latter."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import SeaTrialError

MAGIC = b"\x7fELF"
LOAD_SEGMENT, DYNAMIC_SEGMENT = 1, 2
NEEDED, STRING_TABLE, RPATH, RUNPATH = 1, 5, 15, 29


class ElfError(SeaTrialError):
    """A program or library that cannot be read or changed."""


@dataclass(frozen=True)
class Dynamic:
    """What the dynamic linker reads of a file. ``runpath_offset`` is where in the file that string lies."""

    needed: tuple[str, ...] = ()
    runpath: str = ""
    runpath_offset: int = 0


def is_elf(path: Path) -> bool:
    """Whether ``path`` is a program or library, not a script."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def read_dynamic(path: Path) -> Dynamic:
    """Return what ``path`` needs and where it looks for it; empty for a static program.

    Raises:
        ElfError: it is not a 64-bit little-endian ELF file, or a damaged one.
    """
    data = path.read_bytes()
    if data[:6] != MAGIC + b"\x02\x01":
        raise ElfError(f"{path} is not a 64-bit little-endian ELF file.")
    try:
        return _dynamic(data)
    except (struct.error, ValueError) as error:
        raise ElfError(f"{path} is a damaged ELF file ({error}).") from error


def set_runpath(path: Path, runpath: str) -> None:
    """Write ``runpath`` over the one that ``path`` has.

    Raises:
        ElfError: it has none, or a shorter one.
    """
    dynamic = read_dynamic(path)
    room = len(dynamic.runpath.encode())
    new = runpath.encode()
    if len(new) > room:
        raise ElfError(f"{path} has no room for the library path {runpath!r} (its own is {dynamic.runpath!r}).")
    with path.open("r+b") as file:
        file.seek(dynamic.runpath_offset)
        file.write(new.ljust(room, b"\0"))


def _dynamic(data: bytes) -> Dynamic:
    segments = tuple(_segments(data))
    entries = [entry for kind, offset, _, size in segments if kind == DYNAMIC_SEGMENT for entry in _entries(data, offset, size)]
    tables = [value for tag, value in entries if tag == STRING_TABLE]
    if not tables:
        return Dynamic()
    strings = _file_offset(segments, tables[0])
    paths = [value for tag, value in entries if tag == RUNPATH] or [value for tag, value in entries if tag == RPATH]
    return Dynamic(
        needed=tuple(_string(data, strings + value) for tag, value in entries if tag == NEEDED),
        runpath=_string(data, strings + paths[0]) if paths else "",
        runpath_offset=strings + paths[0] if paths else 0,
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield (type, offset in the file, address, size in the file) of each program header."""
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for index in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + index * size)
        yield kind, offset, address, length


def _entries(data: bytes, offset: int, size: int) -> Iterator[tuple[int, int]]:
    for position in range(offset, offset + size, 16):
        tag, value = struct.unpack_from("<qQ", data, position)
        if tag == 0:
            return
        yield tag, value


def _file_offset(segments: tuple[tuple[int, int, int, int], ...], address: int) -> int:
    for kind, offset, start, size in segments:
        if kind == LOAD_SEGMENT and start <= address < start + size:
            return address - start + offset
    raise ValueError("its string table lies in no segment")


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
