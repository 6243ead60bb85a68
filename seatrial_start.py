"""Lets `python -m server` mean this server in whatever folder it is typed: Python would look for `server` there first.

Loaded at Python's start (by `seatrial_start.pth`), and only where a word of the command line ends in `server`.
"""

import os
import sys

_ALONE = "?bBdEhiIOPqRsSuvVx"
"""Python's options of one letter that take no word."""


class _Guard:
    """Takes the current folder, which ``-m`` puts first, out of the import path before anything is looked for in it."""

    done = False

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        if not cls.done and sys.path and sys.path[0] in ("", _here()):
            cls.done = True
            del sys.path[0]


def _here() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - pathlib could come from the folder that is not trusted
    except OSError:  # it was removed
        return ""


def install() -> None:
    """Where this Python is to run our server, ask the guard first at every import; it finds nothing itself."""
    if not getattr(sys.flags, "safe_path", False) and module_of(sys.orig_argv) == "server":
        sys.meta_path.insert(0, _Guard)  # type: ignore[arg-type]  # a class is enough: only find_spec is asked


def module_of(command: "list[str]") -> str:
    """Return what ``-m`` names in a command line of Python, "" where it runs something else.

    Options may be joined (``-um server``, ``-mserver``), and some take a word: ``-W error``, ``-X utf8``.
    """
    words = iter(command[1:])
    for word in words:
        if word == "--check-hash-based-pycs":
            next(words, "")
            continue
        if word == "-" or not word.startswith("-"):
            return ""
        option = word[1:].lstrip(_ALONE)
        value = option[1:] or (next(words, "") if option else "")
        if option[:1] == "m":
            return value
        if option[:1] not in ("", "W", "X"):
            return ""
    return ""
