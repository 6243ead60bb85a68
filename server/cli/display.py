"""What the command line writes: tables and JSON on stdout, the progress of long work on stderr."""

import io
import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

_WIDE = 10_000


class Board(Protocol):
    """Shows several pieces of work that go on at once, each under its name."""

    def stage(self, name: str, text: str) -> None:
        """Say what ``name`` is at now."""
        ...

    def done(self, name: str, text: str) -> None:
        """Say how ``name`` ended."""
        ...


def write_line(text: str = "") -> None:
    """Write one line to stdout, with control characters made visible."""
    sys.stdout.write(harmless(text) + "\n")


def write_failure(text: str) -> None:
    """Write a line to stderr: what failed, and why."""
    sys.stderr.write(harmless(text) + "\n")


def write_json(value: Any) -> None:
    """Write ``value`` to stdout as indented JSON."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table to stdout: a plain line for each row; only a narrow terminal folds cells, never the first."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(harmless(cell)) for cell in row))
    if sys.stdout.isatty():
        Console(file=sys.stdout).print(table)
        return
    plain = io.StringIO()
    Console(file=plain, width=_WIDE).print(table)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in plain.getvalue().splitlines()))


def shown_reward(reward: float | None) -> str:
    """Return the reward as text; an error has none."""
    return "error" if reward is None else f"{reward:.1f}"


def harmless(text: str) -> str:
    """Return ``text`` without anything that could steer a terminal: agents name themselves, tasks bring their own text."""
    return "".join(character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text)


@contextmanager
def open_board() -> Generator[Board]:
    """Show progress on stderr: live on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines(lambda text: sys.stderr.write(text + "\n"))
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Live(progress)


class Lines:
    """One line for each new stage."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._last: dict[str, str] = {}

    def stage(self, name: str, text: str) -> None:
        if self._last.get(name) != text:
            self._last[name] = text
            self._write(harmless(f"{name}: {text}"))

    def done(self, name: str, text: str) -> None:
        self.stage(name, text)


class Live:
    """One changing line for each name, with the time since it began; what has ended moves up and stays as a plain line."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rows: dict[str, TaskID] = {}

    def stage(self, name: str, text: str) -> None:
        description = harmless(f"{name}: {text}")
        if name in self._rows:
            self._progress.update(self._rows[name], description=description)
        else:
            self._rows[name] = self._progress.add_task(description, total=None)

    def done(self, name: str, text: str) -> None:
        if name in self._rows:
            self._progress.remove_task(self._rows.pop(name))
        self._progress.console.print(Text(harmless(f"{name}: {text}")), soft_wrap=True)
