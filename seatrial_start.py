"""Lets `python -m server` mean this server in whatever folder it is typed: Python would look for `server` there first.

Loaded at Python's start (by `seatrial_start.pth`), and only where the command line says `-m server`.
"""

import os
import sys


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
    """Ask the guard first at every import; it finds nothing itself."""
    if not getattr(sys.flags, "safe_path", False):
        sys.meta_path.insert(0, _Guard)  # type: ignore[arg-type]  # a class is enough: only find_spec is asked
