"""`seatrial serve`: MCP over stdio. Clients wait for its first answer, so it is parsed without typer and loads nothing else."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio

from server.app import serve as serve_stdio
from server.settings import Assignment, Settings
from server.task_sources import task_folders
from tasks.catalog import load_catalog
from tasks.errors import SeaTrialError, UnknownTaskError

SHOWN_IDS = 20
BY_HAND = "Serving MCP on stdin and stdout, for a client to start. Ctrl-C ends it; see seatrial --help.\n"
_TASKS = "a folder of tasks beside the bundled ones, in place of those in SEATRIAL_TASKS; may be repeated"


class NoSuchTaskError(SeaTrialError):
    """The one task of this server does not exist."""

    def __init__(self, task_id: str, ids: Sequence[str]) -> None:
        more = ", ..." if len(ids) > SHOWN_IDS else ""
        super().__init__(f"No task {task_id!r}. There are: {', '.join(ids[:SHOWN_IDS])}{more} (see: seatrial tasks list).")


def serve(arguments: Sequence[str]) -> int:
    """Serve until stdin closes or a signal comes, and return the exit code."""
    try:
        settings = settings_of(arguments)
        check_task(settings)
        if sys.stdin is not None and sys.stdin.isatty():
            sys.stderr.write(BY_HAND)
        anyio.run(serve_stdio, settings)
    except SeaTrialError as error:
        sys.stderr.write(f"seatrial: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def check_task(settings: Settings) -> None:
    """Look whether the one task that this server is for is there and whole: told at the start, its starter hears of it.

    Raises:
        NoSuchTaskError: it is not there.
        TaskError: it cannot be used.
    """
    if not settings.assignment.task:
        return
    catalog = load_catalog(task_folders(settings))
    try:
        catalog.find(settings.assignment.task)
    except UnknownTaskError as error:
        raise NoSuchTaskError(settings.assignment.task, list(catalog.tasks)) from error


def settings_of(arguments: Sequence[str]) -> Settings:
    """Return the environment's settings as changed by ``arguments``; a wrong option ends the process with code 2."""
    given = _parser().parse_args(arguments)
    settings = Settings.from_environment().with_tasks(given.tasks)
    return replace(
        settings,
        state=Path(given.state).expanduser().absolute() if given.state else settings.state,
        reveal=given.reveal or settings.reveal,
        containment=given.containment or settings.containment,
        sandbox=given.sandbox or settings.sandbox,
        assignment=Assignment(
            task=given.task,
            job=given.job,
            group=given.group,
            repetition=given.repetition,
            agent=given.agent,
            model=given.model,
        ),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seatrial serve",
        description="Serve MCP over stdio. Your agent starts this; by hand it only waits for messages.",
        epilog="Without options any task may be opened, and every trial counts.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--task", default="", metavar="ID", help="the one task of this server; opening it again returns the same trial")
    add("--job", type=_name, default="", help="the job that its trial belongs to")
    add("--group", type=_name, default="", help="the trials that are compared with each other")
    add("--repetition", type=_count, default=0, metavar="N", help="which of the repetitions this is; 0: none")
    add("--agent", type=_name, default="", help="the agent's name, where the client's own does not tell")
    add("--model", type=_name, default="", help="the model that the agent uses")
    add("--reveal", choices=("counts", "none"), help="what submit tells the agent (default: counts)")
    add("--containment", choices=("open", "sealed"), help="what else the agent can reach (default: open)")
    add("--sandbox", choices=("local", "docker", "auto"), help="where tasks run (default: auto)")
    add("--state", default="", metavar="FOLDER", help="the state folder (default: SEATRIAL_STATE, or a standard place)")
    add("--tasks", action="append", metavar="FOLDER", help=_TASKS)
    return parser


def _name(value: str) -> str:
    if not value.isprintable():
        raise argparse.ArgumentTypeError("it holds control characters")
    return value


def _count(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise argparse.ArgumentTypeError(f"{value[:50]!r} is no whole number from 0 on")
    return int(value)
