"""What every tool works with: the trials behind the connection, who is connected, and answers that clients do not cut."""

import codecs
import json
import posixpath
import re
from typing import Any

from mcp.server.mcpserver import Context

from server.sandboxes.base import PathError
from server.trial import AgentInfo
from server.trials import Trials

TrialContext = Context[Trials, Any]

LIMIT = 6_800
"""The longest answer, in characters of JSON: one client cuts the middle out of anything over 8,000 (with its envelope)."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

_encoded = json.JSONEncoder().encode
"""As `json.dumps`, which asks its options anew at each of the many lines of an answer."""


def trials_of(ctx: TrialContext) -> Trials:
    """Return the trials that this connection works on."""
    return ctx.request_context.lifespan_context


def agent_of(ctx: TrialContext) -> AgentInfo:
    """Return who says to be connected."""
    params = ctx.request_context.session.client_params
    return AgentInfo(params.client_info.name[:100], params.client_info.version[:50]) if params is not None else AgentInfo()


def escaped(text: str) -> int:
    """Return how many characters ``text`` has as JSON, every character beyond ASCII escaped."""
    return len(_encoded(text)) - 2


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


def exact_text(data: bytes, *, whole: bool = True) -> str:
    """Return ``data`` as text of which every piece can be counted in bytes again; `shown_text` makes it fit to be shown.

    Without ``whole`` more is to come: a character that is not complete at the end is left off.
    """
    return codecs.getincrementaldecoder("utf-8")("surrogateescape").decode(data, whole)


def bytes_of(text: str) -> int:
    """Return how many bytes a piece of an `exact_text` had."""
    return len(text.encode("utf-8", "surrogateescape"))


def shown_text(text: str) -> str:
    """Return an `exact_text` with what was not UTF-8 replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def shown_name(name: str) -> str:
    """Return a file's name on one line, whatever characters it holds."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], shown_text(name))


def bounded(text: str, more: str) -> str:
    """Return ``text``, cut at the limit if it must be; then ``more`` says how to see the rest."""
    if escaped(text) <= LIMIT:
        return text
    shown = head_of(text, LIMIT - escaped(more) - 60)
    return f"{shown}\n[... {len(text) - len(shown):,} characters left out. {more}]"


def inside(path: str, workdir: str) -> str:
    """Return ``path`` relative to the workspace, which is at ``workdir``.

    Raises:
        PathError: it names something else.
    """
    plain = path.strip() or "."
    check_path(plain)
    if plain == workdir or plain.startswith(workdir + "/"):
        plain = plain[len(workdir) :].lstrip("/") or "."
    normal = posixpath.normpath(plain)
    if normal.startswith("/") or normal == ".." or normal.startswith("../"):
        raise PathError(
            f"{path[:200]!r} is outside the workspace. Use a path inside {workdir}; for anything else use run_command."
        )
    return normal


def check_path(path: str) -> None:
    """Refuse what no file system takes.

    Raises:
        PathError: it is too long, or holds a NUL or half a character.
    """
    if "\0" in path or len(path) > 4096 or path != path.encode("utf-8", "replace").decode():
        raise PathError("A path has at most 4,096 characters, no NUL and no lone surrogate.")


def lines_cut(text: str, width: int) -> str:
    """Return one line, cut at ``width`` characters with a note of how many are left out."""
    return text if len(text) <= width else f"{text[:width]} [... {len(text) - width:,} more characters in this line]"
