"""`seatrial connect`: what to write into an agent's settings."""

import sys

from clients.connect import guide
from server.cli.display import write_json, write_line
from server.settings import Settings, inherited_environment


def show_connection(client: str, *, as_json: bool) -> int:
    """Print how to connect ``client``; as JSON only the entry.

    ``-I`` keeps the server from importing anything of the folder that the agent stands in. State and PATH are written
    down, so that the server finds what was built here, whatever environment the agent starts it with.
    """
    environment = inherited_environment()
    kept = {name: value for name, value in environment.items() if name.startswith("SEATRIAL_") or name == "PATH"}
    kept["SEATRIAL_STATE"] = str(Settings.from_environment().state)
    found = guide(client, (sys.executable, "-I", "-m", "server", "serve"), dict(sorted(kept.items())))
    if as_json:
        write_json(found.entry)
    else:
        write_line(found.text.rstrip())
    return 0
