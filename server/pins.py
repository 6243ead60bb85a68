"""Requirements files of tasks: exact versions with digests, nothing else."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import SeaTrialError

MAX_REQUIREMENTS_BYTES = 1 << 20

_HASH = re.compile(r"\s--hash=(\S*)")
_COMMENT = re.compile(r"(^|\s)#.*$")


class PinError(SeaTrialError):
    """A line of a requirements file that is no pin with digests; the text names it."""


@dataclass(frozen=True)
class Pin:
    """One release, and the SHA-256 digests that its archives may have. ``what`` names it in messages."""

    name: str
    version: str
    digests: tuple[str, ...]
    what: str
    is_wheel: bool = False


def read_pins(requirements: Path, python_version: tuple[int, int]) -> list[Pin]:
    """Return the pins whose markers hold for CPython ``python_version`` on this machine, in the file's order.

    Raises:
        PinError: a line is not ``name==version [; marker] --hash=sha256:... ...``, or the file cannot be read.
    """
    try:
        with requirements.open("rb") as file:
            data = file.read(MAX_REQUIREMENTS_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PinError(f"{requirements} cannot be read ({error}). Check that it is a UTF-8 text file.") from error
    if len(data) > MAX_REQUIREMENTS_BYTES:
        raise PinError(f"{requirements} is longer than {MAX_REQUIREMENTS_BYTES:,} bytes. Shorten it.")
    pins = [_read_pin(f"{requirements} line {number}", line, python_version) for number, line in _logical_lines(text)]
    return [pin for pin in pins if pin is not None]


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines without comments, those that end in a backslash joined, each with the number of its first line."""
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        start = start if joined else number
        bare = _COMMENT.sub("", line)
        if bare.rstrip().endswith("\\"):
            joined += bare.rstrip()[:-1] + " "
            continue
        if (whole := (joined + bare).strip()) != "":
            yield start, whole
        joined = ""
    if joined.strip():
        yield start, joined.strip()


def _read_pin(where: str, line: str, python_version: tuple[int, int]) -> Pin | None:
    from packaging.requirements import InvalidRequirement, Requirement  # only a build needs it

    digests = tuple(value.removeprefix("sha256:").lower() for value in _HASH.findall(line))
    if line.startswith("-"):
        raise PinError(f"{where}: {line[:80]!r} is an option. List pins only; indexes come from pip's own configuration.")
    try:
        requirement = Requirement(_HASH.sub("", line))
    except InvalidRequirement:
        raise PinError(f"{where}: {line[:80]!r} is not a requirement. Write 'name==version --hash=sha256:...'.") from None
    specifiers = list(requirement.specifier)
    if requirement.url or len(specifiers) != 1 or specifiers[0].operator != "==" or "*" in specifiers[0].version:
        raise PinError(f"{where}: {requirement.name} is not pinned. Write '{requirement.name}==version'.")
    if not digests or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in digests):
        raise PinError(f"{where}: {requirement.name} needs '--hash=sha256:' and 64 hexadecimal digits. `pip hash` shows them.")
    if requirement.marker and not requirement.marker.evaluate(_marker_values(python_version)):
        return None
    version = specifiers[0].version
    what = f"a wheel of {requirement.name} {version} for Python {python_version[0]}.{python_version[1]}"
    return Pin(requirement.name, version, digests, what, is_wheel=True)


def _marker_values(python_version: tuple[int, int]) -> dict[str, str]:
    short = f"{python_version[0]}.{python_version[1]}"
    return {
        "python_version": short,
        "python_full_version": f"{short}.0",
        "implementation_version": f"{short}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
