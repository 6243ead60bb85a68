"""What to write into an agent's settings so that it joins a server; nothing of the agent is touched here."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tasks.errors import SeaTrialError

START_S = 120
"""Cline's `timeout`: for one call and for the start, which it gives 3 s without it."""


class UnknownClientError(SeaTrialError):
    """There are no instructions for this agent."""

    def __init__(self, client: str) -> None:
        super().__init__(f"No instructions for {client!r}. There are some for: {', '.join(sorted(GUIDES))}.")


@dataclass(frozen=True)
class Guide:
    """The settings entry of a client, and what a person must know beside it."""

    entry: Mapping[str, object]
    text: str


def cline(command: Sequence[str], environment: Mapping[str, str], tools: Sequence[str]) -> Guide:
    """Return the entry of Cline's MCP settings file; it starts ``command`` wherever the agent stands."""
    program, *arguments = command
    server = {
        "type": "stdio",
        "command": program,
        "args": arguments,
        "env": dict(environment),
        "disabled": False,
        "timeout": START_S,
        "autoApprove": list(tools),
    }
    entry = {"mcpServers": {"seatrial": server}}
    return Guide(entry, _CLINE.format(entry=json.dumps(entry, indent=2)))


GUIDES: Mapping[str, Callable[[Sequence[str], Mapping[str, str], Sequence[str]], Guide]] = {"cline": cline}


def guide(client: str, command: Sequence[str], environment: Mapping[str, str], tools: Sequence[str]) -> Guide:
    """Return how to connect ``client`` to the server that ``command`` starts, with ``tools`` to be used without asking.

    Raises:
        UnknownClientError: nothing is known about it.
    """
    if client not in GUIDES:
        raise UnknownClientError(client)
    return GUIDES[client](command, environment, tools)


_CLINE = """\
1. Add this entry to Cline's MCP settings, beside the servers that are there
   (~/.cline/data/settings/cline_mcp_settings.json; in VS Code: MCP Servers > Configure).
   One malformed entry makes Cline refuse the whole file, so check the commas:

{entry}

   "autoApprove" lets Cline use the tools without asking: all that they do is done in a sandbox.

2. Say to Cline:

   Use only the tools of the MCP server seatrial. List its tasks, open a workspace for one of them, solve the task
   in that workspace, and submit it.

3. See the score: seatrial results

What the score means. Cline and this server run as the same user, so with its own tools Cline could read this machine
or the network: its trials are marked "open" and are never averaged with "sealed" ones. To make it work with
Sea Trial's tools alone, list its own tools under "disabledTools" in ~/.cline/data/settings/global-settings.json
and start it with --yolo. That narrows what it can reach, but nobody checks it; declare a trial sealed
("--containment", "sealed" in "args") only where the server runs as another user or on another host than the agent.
"""
