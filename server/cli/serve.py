"""`seatrial serve`: MCP over stdio. Clients wait for its first answer, so it is parsed without typer and loads nothing else."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import anyio

from server.app import serve as serve_stdio
from server.settings import Assignment, Settings
from tasks.errors import SeaTrialError


def serve(arguments: Sequence[str]) -> int:
    """Serve until stdin closes or a signal comes, and return the exit code."""
    try:
        anyio.run(serve_stdio, settings_of(arguments))
    except SeaTrialError as error:
        sys.stderr.write(f"seatrial: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def settings_of(arguments: Sequence[str]) -> Settings:
    """Return the environment's settings as changed by ``arguments``; a wrong option ends the process with code 2."""
    given = _parser().parse_args(arguments)
    settings = Settings.from_environment()
    return replace(
        settings,
        state=Path(given.state).expanduser().absolute() if given.state else settings.state,
        tasks=_folders(given.tasks) or settings.tasks,
        reveal=given.reveal or settings.reveal,
        containment=given.containment or settings.containment,
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
    add("--job", default="", help="the job that its trial belongs to")
    add("--group", default="", help="the trials that are compared with each other")
    add("--repetition", type=int, default=0, metavar="N", help="which of the repetitions this is")
    add("--agent", default="", help="the agent's name, where the client's own does not tell")
    add("--model", default="", help="the model that the agent uses")
    add("--reveal", choices=("counts", "none"), help="what submit tells the agent (default: counts)")
    add("--containment", choices=("open", "sealed"), help="what else the agent can reach (default: open)")
    add("--state", default="", metavar="FOLDER", help="the state folder (default: SEATRIAL_STATE, or a standard place)")
    add("--tasks", action="append", metavar="FOLDER", help="a folder of tasks beside the bundled ones; may be repeated")
    return parser


def _folders(values: Sequence[str] | None) -> tuple[Path, ...]:
    parts = [part for value in values or () for part in value.split(os.pathsep) if part]
    return tuple(Path(part).expanduser().absolute() for part in parts)
