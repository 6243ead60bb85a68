"""What every tool works with: the trials behind the connection, who is connected, and answers that clients do not cut."""

import json
import posixpath
from typing import Any

from mcp.server.mcpserver import Context

from server.sandboxes.base import WORKDIR, PathError
from server.trial import AgentInfo
from server.trials import Trials

TrialContext = Context[Trials, Any]

LIMIT = 6_800
"""The longest answer, in characters of JSON: one client cuts the middle out of anything over 8,000 (with its envelope)."""


def trials_of(ctx: TrialContext) -> Trials:
    """Return the trials that this connection works on."""
    return ctx.request_context.lifespan_context


def agent_of(ctx: TrialContext) -> AgentInfo:
    """Return who says to be connected."""
    params = ctx.request_context.session.client_params
    return AgentInfo(params.client_info.name[:100], params.client_info.version[:50]) if params is not None else AgentInfo()


def escaped(text: str) -> int:
    """Return how many characters ``text`` has as JSON, every character beyond ASCII escaped."""
    return len(json.dumps(text)) - 2


def head_of(text: str, limit: int) -> str:
    """Return the longest beginning of ``text`` that has at most ``limit`` characters as JSON."""
    if escaped(text[:limit]) <= limit:
        return text[:limit]
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if escaped(text[:middle]) <= limit else (low, middle - 1)
    return text[:low]


def tail_of(text: str, limit: int) -> str:
    """Return the longest end of ``text`` that has at most ``limit`` characters as JSON."""
    return head_of(text[: -limit - 1 : -1], limit)[::-1]


def bounded(text: str, more: str) -> str:
    """Return ``text``, cut at the limit if it must be; then ``more`` says how to see the rest."""
    if escaped(text) <= LIMIT:
        return text
    shown = head_of(text, LIMIT - escaped(more) - 60)
    return f"{shown}\n[... {len(text) - len(shown):,} characters left out. {more}]"


def inside(path: str) -> str:
    """Return ``path`` relative to the workspace.

    Raises:
        PathError: it names something else.
    """
    plain = path.strip() or "."
    if "\0" in plain or len(plain) > 4096:
        raise PathError("A path has at most 4,096 characters and no NUL.")
    if plain == WORKDIR or plain.startswith(WORKDIR + "/"):
        plain = plain[len(WORKDIR) :].lstrip("/") or "."
    normal = posixpath.normpath(plain)
    if normal.startswith("/") or normal == ".." or normal.startswith("../"):
        raise PathError(
            f"{path[:200]!r} is outside the workspace. Use a path inside {WORKDIR}; for anything else use run_command."
        )
    return normal


def lines_cut(text: str, width: int) -> str:
    """Return one line, cut at ``width`` characters with a note of how many are left out."""
    return text if len(text) <= width else f"{text[:width]} [... {len(text) - width:,} more characters in this line]"
