"""Released archives by digest: fetched once through the user's own package index, then kept; nothing of them is run.

An archive lies at ``private/downloads/<sha256>/<file name>``. Whatever an index says, only the digest counts.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from server.indexes import DownloadError, Indexes, UnreachableError, read_pip_settings
from server.pins import Pin, read_pins
from server.state import State, remove_tree
from tasks.model import PypiSource

if TYPE_CHECKING:
    from unearth import Package, TargetPython

MAX_ARCHIVE_BYTES = 200 << 20

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,250}")


def fetch_sdist(source: PypiSource, state: State) -> Path:
    """Return the source distribution ``source`` names, downloading it only if it is not kept yet.

    Raises:
        DownloadError: it is not to be had, or what the index has is not what the task means.
    """
    pin = Pin(source.name, source.version, (source.sha256,), f"the source distribution {source.name} {source.version}")
    return _fetch(pin, state, lambda name: name.endswith(".tar.gz"), None)


def fetch_wheels(requirements: Path, python_version: tuple[int, int], state: State) -> list[Path]:
    """Return a wheel for each line of ``requirements`` that is meant for this platform and CPython ``python_version``.

    Raises:
        DownloadError: the file is not a list of pins with digests, or one of them is not to be had as a wheel.
    """
    from unearth import TargetPython  # heavy: half a second of imports that serving tasks already built never needs

    target = TargetPython(py_ver=python_version, impl="cp")
    return [
        _fetch(pin, state, lambda name: _wheel_rank(name, target) is not None, target)
        for pin in read_pins(requirements, python_version)
    ]


def _fetch(pin: Pin, state: State, suits: Callable[[str], bool], target: "TargetPython | None") -> Path:
    if kept := _kept(pin, state, suits, target):
        return kept
    with state.lock(f"download-{pin.digests[0]}"):
        if kept := _kept(pin, state, suits, target):
            return kept
        part = state.private / "downloads" / f".part-{pin.digests[0]}"
        try:
            with Indexes.opened(read_pip_settings(), target) as indexes:
                return _download(pin, indexes, state, suits, part)
        finally:
            part.unlink(missing_ok=True)


def _kept(pin: Pin, state: State, suits: Callable[[str], bool], target: "TargetPython | None") -> Path | None:
    """Return the kept archive that suits best, after checking its digest; one that has changed on disk is removed."""
    found: list[Path] = []
    for digest in pin.digests:
        folder = state.private / "downloads" / digest
        for path in folder.glob("*"):
            if _digest_of(path) != digest:
                remove_tree(folder)
            elif suits(path.name):
                found.append(path)
    return min(found, key=lambda path: _wheel_rank(path.name, target) or 0, default=None)


def _download(pin: Pin, indexes: Indexes, state: State, suits: Callable[[str], bool], part: Path) -> Path:
    """Try what the indexes have, best first, until something has one of the pin's digests."""
    seen: list[str] = []
    for package in indexes.packages(pin.name, pin.version, wheels=pin.is_wheel):
        name = package.link.filename
        if not suits(name) or not _FILE_NAME.fullmatch(name):
            continue
        advertised = (package.link.hash_option or {}).get("sha256", [""])[0]
        if advertised and advertised not in pin.digests:
            seen.append(advertised)
            continue
        try:
            got = _save(package, indexes, part)
        except UnreachableError:
            continue
        if got in pin.digests:
            return _keep(part, name, got, state)
        seen.append(got)
    if seen:
        raise DownloadError(
            f"{pin.what} has sha256 {seen[0]}, but {pin.digests[0]} is expected. "
            "Either the task names a wrong digest or the package index is not to be trusted: compare both with the project's own."
        )
    raise indexes.not_found(pin.what)


def _save(package: "Package", indexes: Indexes, part: Path) -> str:
    """Write the archive to ``part`` and return its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as file:
        for chunk in indexes.stream(package.link):
            size += len(chunk)
            if size > MAX_ARCHIVE_BYTES:
                raise DownloadError(
                    f"{package.link.filename} is larger than {MAX_ARCHIVE_BYTES >> 20} MiB. Choose a smaller release."
                )
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _keep(part: Path, name: str, digest: str, state: State) -> Path:
    def fill(folder: Path) -> None:
        folder.chmod(0o700)
        part.rename(folder / name)

    folder = state.publish(state.private / "downloads" / digest, fill)
    return next(folder.iterdir())


def _wheel_rank(name: str, target: "TargetPython | None") -> int | None:
    """Return how well a wheel suits the interpreter (0 is best), or None if it does not or ``name`` is no wheel."""
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    if target is None:
        return 0
    try:
        tags = parse_wheel_filename(name)[-1]
    except InvalidWheelFilename:
        return None
    return next((rank for rank, tag in enumerate(target.supported_tags()) if tag in tags), None)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
