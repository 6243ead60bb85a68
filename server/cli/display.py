"""What the command line writes: tables and JSON on stdout, the progress of long work on stderr."""

import io
import json
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
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
    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[since]}"),
    )
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
    """One changing line for each name, with the seconds since it began."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rows: dict[str, tuple[Any, float]] = {}

    def stage(self, name: str, text: str) -> None:
        self._show(name, text)

    def done(self, name: str, text: str) -> None:
        row = self._show(name, text)
        self._progress.update(row, total=1, completed=1)

    def _show(self, name: str, text: str) -> Any:
        if name not in self._rows:
            self._rows[name] = (self._progress.add_task("", total=None, since=""), time.monotonic())
        row, began = self._rows[name]
        since = f"{time.monotonic() - began:.1f} s"
        self._progress.update(row, description=harmless(f"{name}: {text}"), since=since)
        return row
