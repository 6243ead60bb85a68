"""Files of the workspace: list_files, view_file, save_file, edit_file, search_files."""

import difflib
import heapq
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import anyio
from anyio import to_thread
from pydantic import Field

from server.sandboxes.base import STDOUT, Command, Entry, PathError, Sandbox
from tasks.errors import SeaTrialError
from tools.context import (
    LIMIT,
    TrialContext,
    bounded,
    bytes_of,
    escaped,
    exact_text,
    head_of,
    inside,
    lines_cut,
    shown_name,
    shown_text,
    trials_of,
)
from tools.workspace import WorkspaceId

FilePath = Annotated[str, Field(description="Inside /workspace.")]

_CHUNK = 256 << 10
_VIEW_BYTES = 32 << 20
_EDIT_BYTES = 8 << 20
_WIDTH = 1_000
_MATCH_WIDTH = 300
_COMPARED = 200
_LISTED = 2_000
_SEARCH_S = 20.0
_SEARCH_BYTES = 256 << 10


class EditError(SeaTrialError):
    """An edit that fits no place, or several."""


async def list_files(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: FilePath = ".",
    depth: Annotated[int, Field(ge=1, le=10, description="Levels of folders.")] = 1,
) -> str:
    """List a folder of the workspace. Folders end in /, files show their size in bytes."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    folder = inside(path, workspace.place.habits.workdir)
    listing = await (await workspace.sandbox()).list(folder, depth, _LISTED)
    if not listing.entries:
        return f"{shown_name(folder)}/ is empty."
    text, shown = "", 0
    for entry in listing.entries:
        line = _listed(entry) + "\n"
        if escaped(text + line) > LIMIT - 300:
            break
        text += line
        shown += 1
    left = listing.seen - shown
    if left and depth == 1:
        command = f"ls -Aq -- {_named(folder)} | tail -n +{shown + 1}"
        text += f"[{left:,} more entries left out: run_command(command={command!r}) shows them]"
    elif left:
        text += f"[at least {left:,} more entries left out: list a sub-folder (path=...) or fewer levels (depth=1)]"
    return text.rstrip("\n")


def _listed(entry: Entry) -> str:
    name = shown_name(entry.path)
    kinds = {"dir": f"{name}/", "link": f"{name} -> (symlink)", "other": f"{name} (special file)"}
    return kinds.get(entry.kind, f"{name}  {entry.size}")


def _named(name: str) -> str:
    """Return a path as it goes into a command that we propose; one that would fill the answer is left to the reader."""
    quoted = shlex.quote(name)
    return quoted if escaped(quoted) <= 300 else "PATH"


async def view_file(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: FilePath,
    start_line: Annotated[int, Field(ge=1)] = 1,
    max_lines: Annotated[int, Field(ge=1, le=2000)] = 200,
) -> str:
    """Show numbered lines of a text file."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    name = inside(path, workspace.place.habits.workdir)
    found = await _read_lines(await workspace.sandbox(), name, start_line, max_lines)
    if found is None:
        return f"{name} is binary. Use run_command, say with xxd or file, to look into it."
    if found.lines:
        return _numbered(name, found, start_line)
    if found.total is None:
        raise PathError(f"Line {start_line:,} of {name} lies too far in to be counted. Use run_command with sed -n.")
    if found.total == 0:
        return f"{name} is empty."
    raise PathError(f"{name} has {found.total:,} lines; there is no line {start_line:,}.")


@dataclass(frozen=True)
class _Lines:
    """Some lines of a file, how many it has (None: its end was not reached) and its size in bytes."""

    lines: list[bytes]
    total: int | None
    size: int


async def _read_lines(sandbox: Sandbox, name: str, start: int, count: int) -> _Lines | None:
    """Read up to ``count`` lines from line ``start`` on, at most `_VIEW_BYTES` in all; None for a binary file."""
    kept, before, at = bytearray(), 0, 0
    while True:
        piece = await sandbox.read(name, at, _CHUNK)
        if at == 0 and b"\0" in piece.data[:8192]:
            return None
        kept += piece.data
        at += len(piece.data)
        ends = kept.count(b"\n")
        while before < start - 1 and ends:
            dropped = min(start - 1 - before, ends)
            kept = bytearray() if dropped == ends and kept.endswith(b"\n") else kept.split(b"\n", dropped)[dropped]
            before, ends = before + dropped, ends - dropped
        whole = not piece.data or at >= piece.size
        if whole or ends >= count or at >= _VIEW_BYTES:
            break
    total = before + ends + (not kept.endswith(b"\n") and bool(kept)) if whole else None
    lines = bytes(kept).split(b"\n", count) if before == start - 1 else []
    if lines and (len(lines) > count or not lines[-1]):
        lines.pop()
    return _Lines(lines, total, max(piece.size, at))


def _numbered(name: str, found: _Lines, start: int) -> str:
    text, at, room = "", start, LIMIT - 200
    for line in found.lines:
        piece = f"{at}\t{_line(name, at, line)}\n"
        room -= escaped(piece)
        if room < 0:
            break
        text += piece
        at += 1
    if found.total is None or at <= found.total:
        total = f"{found.total:,}" if found.total is not None else f"more in {found.size:,} bytes"
        text += f"[lines {start:,}-{at - 1:,} of {total}: view_file(start_line={at}) shows more]"
    return text.rstrip("\n")


def _line(name: str, number: int, line: bytes) -> str:
    """Return one line; of a long one the beginning, and the command that shows the rest."""
    if len(line) <= _WIDTH // 2 and line.isascii():  # most are, and need no second look
        return line.decode("ascii").removesuffix("\r")
    text = exact_text(line)
    part = head_of(text[:_WIDTH], _WIDTH * 3)
    if len(part) == len(text):
        return shown_text(text.removesuffix("\r"))
    went = bytes_of(part)
    command = f"sed -n {number}p -- {_named(name)} | tail -c +{went + 1}"
    return f"{shown_text(part)} [... {len(line) - went:,} more bytes in this line: run_command(command={command!r})]"


async def save_file(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: FilePath,
    content: Annotated[str, Field(max_length=_EDIT_BYTES, description="The whole new content.")],
) -> str:
    """Create a file or replace it whole; missing parent folders are made."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    name = inside(path, workspace.place.habits.workdir)
    if name == ".":
        raise PathError("The path of a file is needed.")
    data = content.encode("utf-8", "surrogatepass")
    async with workspace.editing:
        await (await workspace.sandbox()).write(name, data)
    return f"Saved {name} ({len(data):,} bytes)."


async def edit_file(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: FilePath,
    old_text: Annotated[str, Field(description="Exactly as in the file, without line numbers; enough lines to be unique.")],
    new_text: str,
    replace_all: Annotated[bool, Field(description="Replace every occurrence.")] = False,
) -> str:
    """Replace text in a file; old_text must occur exactly once unless replace_all."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    name = inside(path, workspace.place.habits.workdir)
    if not old_text:
        raise EditError("old_text is empty. To create or replace a whole file use save_file.")
    async with workspace.editing:
        sandbox = await workspace.sandbox()
        file = await sandbox.read(name, 0, _EDIT_BYTES)
        if file.size > _EDIT_BYTES:
            raise EditError(f"{name} has {file.size:,} bytes; edit_file takes at most {_EDIT_BYTES:,}. Use run_command with sed.")
        old, new = _as_in(file.data, old_text, new_text)
        count = file.data.count(old)
        if count == 0:
            near = await to_thread.run_sync(_nearest, file.data, old_text)
            raise EditError(f"old_text does not occur in {name}. {near}")
        if count > 1 and not replace_all:
            raise EditError(
                f"old_text occurs {count:,} times in {name}, at lines {_places(file.data, old)}. "
                "Add lines around it until it is unique, or set replace_all."
            )
        size = len(file.data) + count * (len(new) - len(old))
        if size > _EDIT_BYTES:
            raise EditError(f"{name} would have {size:,} bytes; edit_file makes at most {_EDIT_BYTES:,}. Use run_command.")
        await sandbox.write(name, file.data.replace(old, new))
    return f"Edited {name}: {count:,} {'place' if count == 1 else 'places'}."


def _as_in(data: bytes, old_text: str, new_text: str) -> tuple[bytes, bytes]:
    """Return both texts as bytes, with the file's line ends if only those differ."""
    old, new = (text.encode("utf-8", "surrogatepass") for text in (old_text, new_text))
    if old not in data and b"\r\n" in data and b"\r" not in old:
        return old.replace(b"\n", b"\r\n"), new.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return old, new


def _places(data: bytes, old: bytes) -> str:
    lines: list[str] = []
    at = data.find(old)
    while at >= 0 and len(lines) < 10:
        lines.append(str(data.count(b"\n", 0, at) + 1))
        at = data.find(old, at + len(old))
    return ", ".join(lines) + (" ..." if at >= 0 else "")


def _nearest(data: bytes, old_text: str) -> str:
    """Show the lines of the file that are most like the first line of what was looked for."""
    if all(re.match(r"\s*\d+\t", line) for line in old_text.splitlines() if line.strip()):
        return "It seems to have the line numbers that view_file shows: leave them out."
    wanted = next((line.strip() for line in old_text.splitlines() if line.strip()), "")[:_COMPARED]
    lines = data[: 1 << 20].decode(errors="replace").splitlines()[:20_000]
    words = set(re.findall(r"\w+", wanted))
    alike = {line.strip()[:_COMPARED] for line in lines}  # comparing is slow: first those with the most words in common
    alike = set(heapq.nlargest(100, alike, key=lambda line: len(words.intersection(re.findall(r"\w+", line)))))
    close = difflib.get_close_matches(wanted, sorted(alike), n=3, cutoff=0.5) if wanted else []
    near = [f"{n}\t{lines_cut(line, 200)}" for n, line in enumerate(lines, 1) if line.strip()[:_COMPARED] in close][:5]
    if not near:
        return "Nothing in it looks like it. View the file and copy the text exactly."
    return "The nearest lines are:\n" + head_of("\n".join(near), 3_000) + "\nCopy the text exactly, with its indentation."


async def search_files(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    pattern: Annotated[str, Field(description="A Perl-compatible regular expression.", max_length=2000)],
    path: FilePath = ".",
    glob: Annotated[str, Field(description="Only files with such names, say *.py.", max_length=200)] = "",
) -> str:
    """Search text files for a regular expression: file:line:text."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    where = inside(path, workspace.place.habits.workdir)
    if "\0" in pattern or "\0" in glob or not pattern:
        raise SeaTrialError("A pattern is not empty and has no NUL.")
    habits = workspace.place.habits
    argv = [habits.grep, "-rnHIPZ", "--devices=skip", "--exclude-dir=.git"]
    argv += [f"--include={PurePosixPath(glob).name}"] if glob else []
    found, errors, complete = await _grep(
        await workspace.sandbox(), Command([*argv, "-e", pattern, "--", where], habits.env, timeout_s=_SEARCH_S)
    )
    if errors and not found:
        raise SeaTrialError(f"The search failed: {head_of(errors, 500)}. Mend the pattern (Perl syntax) or the path.")
    matches = sorted(match for match in _parsed(found) if not glob or _fits(match[0], glob))
    if not matches:
        return f"No match for {pattern[:200]!r} in {where}." + ("" if complete else " The search was cut short: narrow it.")
    return _matches(matches, complete)


async def _grep(sandbox: Sandbox, command: Command) -> tuple[bytes, str, bool]:
    """Return what grep found and complained of, and whether it came to its end within the bounds."""
    found, errors = bytearray(), bytearray()
    with anyio.CancelScope() as scope:

        def take(stream: int, data: bytes) -> None:
            (found if stream == STDOUT else errors).extend(data[: _SEARCH_BYTES + 1])
            if len(found) > _SEARCH_BYTES or len(errors) > _SEARCH_BYTES:
                scope.cancel()

        result = await sandbox.run(command, take)
        return bytes(found), errors.decode(errors="replace").strip(), not result.timed_out
    return bytes(found), "", False


def _parsed(found: bytes) -> Iterator[tuple[str, int, str]]:
    """Yield (file, line number, line) of what grep printed; a name may hold anything but NUL, a line anything but its end."""
    name, *rest = found.split(b"\0")
    for piece in rest:  # number:line, then the next name, which may hold line ends itself
        number, _, tail = piece.partition(b":")
        line, _, following = tail.partition(b"\n")
        if name and number.isdigit() and len(number) < 18:
            yield os.fsdecode(name).removeprefix("./"), int(number), line.decode(errors="replace")
        name = following


def _fits(name: str, glob: str) -> bool:
    return "/" not in glob or PurePosixPath(name).match(glob) or PurePosixPath(name).match(glob.replace("**/", ""))


def _matches(matches: list[tuple[str, int, str]], complete: bool) -> str:
    text, shown, cut = "", 0, False
    for name, number, line in matches:
        piece = f"{shown_name(name)}:{number}:{lines_cut(line, _MATCH_WIDTH)}\n"
        if escaped(text + piece) > LIMIT - 300:
            break
        text += piece
        shown += 1
        cut = cut or len(line) > _MATCH_WIDTH
    rest = len(matches) - shown
    if cut:
        text += "[view_file(path=<file>, start_line=<line>) shows more of a long line]\n"
    if rest or not complete:
        at_least = "" if complete else "at least "
        text += f"[{at_least}{rest:,} more matches left out: narrow it with path, glob or a longer pattern]"
    return bounded(text.rstrip("\n"), "Narrow the search.")
