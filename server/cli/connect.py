"""`seatrial connect`: what to write into an agent's settings."""

import os
import sys
from collections.abc import Mapping

from clients.connect import guide
from server.app import TOOLS
from server.cli.display import write_json, write_line
from server.settings import Settings


def show_connection(client: str, *, as_json: bool) -> int:
    """Print how to connect ``client``; as JSON only the entry.

    ``-I`` keeps the server from importing anything of the folder that the agent stands in.
    """
    command = (sys.executable, "-I", "-m", "server", "serve")
    found = guide(client, command, environment_of(Settings.from_environment()), [tool.__name__ for tool in TOOLS])
    if as_json:
        write_json(found.entry)
    else:
        write_line(found.text.rstrip())
    return 0


def environment_of(settings: Settings) -> Mapping[str, str]:
    """Return the variables that mean ``settings`` to a server started anywhere, in any environment: paths are absolute."""
    folders = {"PATH": settings.search_path, "SEATRIAL_PYTHONS": settings.pythons, "SEATRIAL_TASKS": settings.tasks}
    variables = {name: os.pathsep.join(map(str, paths)) for name, paths in folders.items()}
    variables["SEATRIAL_BWRAP"] = str(settings.bwrap or "")
    variables["SEATRIAL_CONTAINMENT"] = settings.containment
    variables["SEATRIAL_REVEAL"] = settings.reveal
    variables["SEATRIAL_STATE"] = str(settings.state)
    return {name: value for name, value in sorted(variables.items()) if value}
