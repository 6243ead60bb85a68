"""Files of the workspace: list_files, view_file, save_file, edit_file, search_files."""

import difflib
from pathlib import PurePosixPath
from typing import Annotated

import anyio
from pydantic import Field

from server.builds import AGENT_ENV
from server.sandboxes.base import STDOUT, Command, PathError, Sandbox
from tasks.errors import SeaTrialError
from tools.context import LIMIT, TrialContext, bounded, escaped, head_of, inside, lines_cut, trials_of
from tools.workspace import WorkspaceId

FilePath = Annotated[str, Field(description="Inside /workspace.")]

_CHUNK = 256 << 10
_VIEW_BYTES = 32 << 20
_EDIT_BYTES = 8 << 20
_WIDTH = 1_000
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
    folder = inside(path)
    entries = await (await workspace.sandbox()).list(folder, depth, _LISTED)
    if not entries:
        return f"{folder}/ is empty."
    lines = [_listed(entry.path, entry.kind, entry.size) for entry in entries]
    text, shown = "", 0
    for line in lines:
        if escaped(text + line) > LIMIT - 200:
            break
        text += line + "\n"
        shown += 1
    if shown < len(lines) or len(entries) == _LISTED:
        more = f"{len(lines) - shown:,}" if len(entries) < _LISTED else f"at least {len(lines) - shown:,}"
        text += f"[{more} more entries left out: list a sub-folder (path=...), depth=1, or use search_files]"
    return text.rstrip("\n")


def _listed(path: str, kind: str, size: int) -> str:
    name = path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return {"dir": f"{name}/", "link": f"{name} -> (symlink)", "other": f"{name} (special file)"}.get(kind, f"{name}  {size}")


async def view_file(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: FilePath,
    start_line: Annotated[int, Field(ge=1)] = 1,
    max_lines: Annotated[int, Field(ge=1, le=2000)] = 200,
) -> str:
    """Show numbered lines of a text file."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    name = inside(path)
    data, size = await _read_lines(await workspace.sandbox(), name, start_line + max_lines)
    if b"\0" in data[:8192]:
        return f"{name} is binary ({size:,} bytes). Use run_command, say with xxd or file, to look into it."
    lines = data.decode(errors="replace").split("\n")
    if lines[-1] == "" and len(data) == size:
        lines.pop()
    if not lines:
        return f"{name} is empty."
    whole = len(data) == size
    if start_line > len(lines):
        if whole:
            raise PathError(f"{name} has {len(lines):,} lines; there is no line {start_line:,}.")
        raise PathError(f"{name} has {size:,} bytes, too many to count lines in. Use run_command with sed -n.")
    return _numbered(name, lines, start_line, max_lines, f"{len(lines):,}" if whole else "many more")


def _numbered(name: str, lines: list[str], start: int, count: int, total: str) -> str:
    text, at = "", start
    for line in lines[start - 1 : start - 1 + count]:
        piece = f"{at}\t{lines_cut(line.removesuffix(chr(13)), _WIDTH)}\n"
        if escaped(text + piece) > LIMIT - 200:
            if at == start:
                text, at = (
                    head_of(piece, LIMIT - 300) + " [... the rest of this line is left out: run_command with cut -c]\n",
                    at + 1,
                )
            break
        text += piece
        at += 1
    if at - 1 < len(lines):
        text += f"[lines {start:,}-{at - 1:,} of {total}: view_file(start_line={at}) shows more]"
    return text.rstrip("\n")


async def _read_lines(sandbox: Sandbox, name: str, lines: int) -> tuple[bytes, int]:
    """Read from the beginning until there are ``lines`` lines or `_VIEW_BYTES`."""
    data = bytearray()
    counted = 0
    while True:
        piece = await sandbox.read(name, len(data), _CHUNK)
        data += piece.data
        counted += piece.data.count(b"\n")
        if len(data) >= piece.size or not piece.data or counted >= lines or len(data) >= _VIEW_BYTES:
            return bytes(data), max(piece.size, len(data))


async def save_file(
    ctx: TrialContext,
    workspace_id: WorkspaceId,
    path: FilePath,
    content: Annotated[str, Field(max_length=_EDIT_BYTES, description="The whole new content.")],
) -> str:
    """Create a file or replace it whole; missing parent folders are made."""
    _, workspace = await trials_of(ctx).workspace(workspace_id)
    name = inside(path)
    if name == ".":
        raise PathError("The path of a file is needed.")
    data = content.encode("utf-8", "surrogatepass")
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
    sandbox, name = await workspace.sandbox(), inside(path)
    if not old_text:
        raise EditError("old_text is empty. To create or replace a whole file use save_file.")
    file = await sandbox.read(name, 0, _EDIT_BYTES)
    if file.size > _EDIT_BYTES:
        raise EditError(f"{name} has {file.size:,} bytes; edit_file takes at most {_EDIT_BYTES:,}. Use run_command with sed.")
    old, new = _as_in(file.data, old_text, new_text)
    count = file.data.count(old)
    if count == 0:
        raise EditError(f"old_text does not occur in {name}. {_nearest(file.data, old_text)}")
    if count > 1 and not replace_all:
        raise EditError(
            f"old_text occurs {count:,} times in {name}, at lines {_places(file.data, old)}. "
            "Add lines around it until it is unique, or set replace_all."
        )
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
        at = data.find(old, at + 1)
    return ", ".join(lines) + (" ..." if at >= 0 else "")


def _nearest(data: bytes, old_text: str) -> str:
    """Show the lines of the file that are most like the first line of what was looked for."""
    wanted = next((line.strip() for line in old_text.splitlines() if line.strip()), "")[:200]
    lines = data[: 1 << 20].decode(errors="replace").splitlines()
    close = difflib.get_close_matches(wanted, {line.strip()[:200] for line in lines[:20_000]}, n=3, cutoff=0.5) if wanted else []
    near = [f"{n}\t{lines_cut(line, 200)}" for n, line in enumerate(lines, 1) if line.strip()[:200] in close][:5]
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
    where = inside(path)
    if "\0" in pattern or "\0" in glob or not pattern:
        raise SeaTrialError("A pattern is not empty and has no NUL.")
    argv = ["/usr/bin/grep", "-rnHIPZ", "--exclude-dir=.git"]
    argv += [f"--include={PurePosixPath(glob).name}"] if glob else []
    found, errors, complete = await _grep(await workspace.sandbox(), [*argv, "-e", pattern, "--", where])
    if errors and not found:
        raise SeaTrialError(f"The search failed: {head_of(errors, 500)}. Mend the pattern (Perl syntax) or the path.")
    matches = sorted(match for match in map(_match, found.split(b"\n")) if match and (not glob or _fits(match[0], glob)))
    if not matches:
        return f"No match for {pattern[:200]!r} in {where}." + ("" if complete else " The search was cut short: narrow it.")
    return _matches(matches, complete)


async def _grep(sandbox: Sandbox, argv: list[str]) -> tuple[bytes, str, bool]:
    """Return what grep found and complained of, and whether it came to its end within the bounds."""
    found, errors = bytearray(), bytearray()
    with anyio.CancelScope() as scope:

        def take(stream: int, data: bytes) -> None:
            (found if stream == STDOUT else errors).extend(data[: _SEARCH_BYTES + 1])
            if len(found) > _SEARCH_BYTES or len(errors) > _SEARCH_BYTES:
                scope.cancel()

        result = await sandbox.run(Command(argv, AGENT_ENV, timeout_s=_SEARCH_S), take)
        return bytes(found), errors.decode(errors="replace").strip(), not result.timed_out
    return bytes(found), "", False


def _match(line: bytes) -> tuple[str, int, str] | None:
    name, separator, rest = line.partition(b"\0")
    number, _, text = rest.partition(b":")
    if not separator or not number.isdigit():
        return None
    return name.decode(errors="replace").removeprefix("./"), int(number), text.decode(errors="replace")


def _fits(name: str, glob: str) -> bool:
    return "/" not in glob or PurePosixPath(name).match(glob) or PurePosixPath(name).match(glob.replace("**/", ""))


def _matches(matches: list[tuple[str, int, str]], complete: bool) -> str:
    text, shown = "", 0
    for name, number, line in matches:
        piece = f"{name}:{number}:{lines_cut(line, 300)}\n"
        if escaped(text + piece) > LIMIT - 200:
            break
        text += piece
        shown += 1
    rest = len(matches) - shown
    if rest or not complete:
        at_least = "" if complete else "at least "
        text += f"[{at_least}{rest:,} more matches left out: narrow it with path, glob or a longer pattern]"
    return bounded(text.rstrip("\n"), "Narrow the search.")
