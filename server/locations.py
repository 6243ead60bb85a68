"""What a user types to name a folder of tasks or a git repository: `PATH`, or `GIT_URL[@REV][:SUBFOLDER]`."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from tasks.errors import SeaTrialError

REV = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+=#@-]{0,199}")
_URL = re.compile(r"(?P<start>(?P<scheme>[a-z][a-z0-9+.-]*)://[^/]*)(?P<rest>/.*)?", re.IGNORECASE)
_SCP = re.compile(r"(?P<start>[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:)(?P<rest>[^/:].*)")
_SCHEMES = ("https", "http", "ssh", "file")
_FORMS = "Name a folder, or a repository as https://host/repo.git[@REV][:SUBFOLDER], git@host:org/repo.git... or file:///path..."


class LocationError(SeaTrialError):
    """A text that names no folder and no repository; it says what it can be."""


@dataclass(frozen=True)
class Location:
    """Where tasks lie. ``place`` is an absolute path for a path, what git understands for git; ``rev`` "" is its HEAD."""

    kind: Literal["path", "git"]
    place: str
    rev: str = ""
    subfolder: str = ""

    @property
    def leaf(self) -> str:
        """Return the last part of its name, as an id: lower case, without ``.git``."""
        last = re.split(r"[/:\\]", (self.subfolder or self.place).rstrip("/"))[-1].removesuffix(".git").lower()
        return re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")[:80] or "tasks"


def parse_location(text: str) -> Location:
    """Return what ``text`` means; a path that exists is always taken as it stands.

    Raises:
        LocationError: it means nothing.
    """
    if not text or not text.isprintable():
        raise LocationError(f"{text[:200]!r} names nothing. {_FORMS}")
    if (whole := Path(text).expanduser()).exists():
        return Location("path", str(_folder(whole)))
    if match := _URL.fullmatch(text) or _SCP.fullmatch(text):
        return _remote(match.groupdict())
    return _local(text)


def check_url(url: str) -> None:
    """Refuse a URL that git would take for something else, or that holds a password.

    Raises:
        LocationError: it is refused; the text says what to use.
    """
    if url.startswith("/") or _SCP.fullmatch(url):
        return
    match = _URL.fullmatch(url)
    if match is None or match["scheme"].lower() not in _SCHEMES:
        raise LocationError(f"{url[:200]!r} is no URL that we fetch from; it can be {', '.join(_SCHEMES)}. {_FORMS}")
    if re.search(r"://[^/@]*:[^/@]*@", url):
        shown = re.sub(r"://[^@]*@", "://...@", url)
        raise LocationError(f"{shown} holds a password, which would be recorded. Take it out; git's credential helper knows it.")


def _remote(parts: dict[str, str | None]) -> Location:
    start, rest = parts["start"] or "", parts["rest"] or ""
    check_url(start + (rest or "/"))
    if start == "file://" and Path(rest).exists():
        return Location("git", f"file://{_folder(Path(rest))}")
    path, colon, subfolder = rest.partition(":")
    path, at, rev = path.rpartition("@") if "@" in path else (path, "", "")
    if not path.strip("/"):
        raise LocationError(f"{start}{rest} names no repository. {_FORMS}")
    if start == "file://" and not Path(path).is_dir():
        raise LocationError(f"There is no folder {path}, which file://{rest} names. Correct the path.")
    return Location("git", start + path, _rev(rev, at), _subfolder(subfolder, colon))


def _local(text: str) -> Location:
    """Look where an existing folder ends in ``PATH[@REV][:SUBFOLDER]``; both marks may occur in paths too."""
    for head, colon, subfolder in ((text, "", ""), text.rpartition(":"), text.partition(":")):
        for path, at, rev in ((head, "", ""), head.rpartition("@"), head.partition("@")):
            folder = Path(path).expanduser()
            if not path or ":" in rev or not folder.is_dir():  # no revision has a colon: it is the subfolder's
                continue
            place, below = _folder(folder), _subfolder(subfolder, colon)
            if at:
                return Location("git", str(place), _rev(rev, at), below)
            if not (place / below).is_dir():
                raise LocationError(f"There is no folder {below!r} in {place}. Correct what stands after ':'.")
            return Location("path", str(place / below))
    raise LocationError(f"{text[:200]!r} is no folder that exists, and no URL. {_FORMS}")


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise LocationError(f"{path} is a file. Name the folder of a task, or one that holds tasks.")
    return path.resolve()


def _rev(rev: str, at: str) -> str:
    if at and (not REV.fullmatch(rev) or ".." in rev or "@{" in rev):
        raise LocationError(f"{rev[:200]!r} is no revision. After '@' comes a branch, a tag or a commit.")
    return rev


def _subfolder(path: str, colon: str) -> str:
    parts = PurePosixPath(path).parts
    bad = path.startswith("/") or "\\" in path or any(part == ".." or part.lower() == ".git" for part in parts)
    if colon and (bad or not parts):
        raise LocationError(f"{path[:200]!r} is no subfolder. After ':' comes a path below the repository's top, without '..'.")
    return "/".join(parts)
