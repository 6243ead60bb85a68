"""The host's Python interpreters: finding them, choosing one, and staging a bare copy that sandboxes mount."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from server.elf import ElfError, is_elf, read_dynamic, set_runpath
from server.settings import Settings
from server.state import State
from tasks.errors import SeaTrialError

MOUNTED_AT = "/opt/python"
"""Where sandboxes find a staged interpreter; its bytecode names its sources there."""

ASK_TIMEOUT_S = 10
COMPILE_TIMEOUT_S = 300

OLDEST = (3, 9, 0)

NAME = re.compile(r"python3\.\d+")

QUESTION = """
import json, os, sys
print(json.dumps({
    "name": sys.implementation.name, "version": list(sys.version_info[:3]), "release": sys.version_info[3] == "final",
    "text": sys.version, "prefix": sys.base_prefix,
    "stdlib": os.path.dirname(os.path.realpath(os.__file__)), "abi": getattr(sys, "abiflags", ""),
}))
"""

LEFT_OUT = re.compile(
    r"site-packages|dist-packages|tests?|idlelib|turtledemo|__pycache__|_bundled|config-.*|EXTERNALLY-MANAGED"
    r"|(site|user)customize\.py|.*\.(a|pyc|pyo|exe)"
)
"""Names of the standard library's folder that are not staged: other people's packages, tests, hooks, and dead weight."""

VISIBLE = ("/lib/", "/lib64/", "/usr/lib/", "/usr/lib64/")
"""Where libraries lie that sandboxes see anyway."""


class InterpreterError(SeaTrialError):
    """No interpreter fits, or the one that does cannot be staged."""


@dataclass(frozen=True)
class Interpreter:
    """A CPython of the host, itself and not a virtual environment of it.

    ``digest`` names this installation: it changes when the interpreter is replaced or updated.
    """

    path: Path
    version: tuple[int, int, int]
    prefix: Path
    stdlib: Path
    digest: str

    @property
    def name(self) -> str:
        return f"python{self.version[0]}.{self.version[1]}"

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))

    @property
    def inside(self) -> str:
        """Its path in a sandbox that mounts the staged copy at `MOUNTED_AT`."""
        return f"{MOUNTED_AT}/bin/{self.name}"


def choose_interpreter(specifier: str, settings: Settings) -> Interpreter:
    """Return the first interpreter that fits ``specifier`` (such as ``>=3.11,<3.13``; empty: any from 3.11).

    First come those of ``settings.pythons``, then the one that runs us, then the newest of the others.

    Raises:
        InterpreterError: ``specifier`` cannot be read, or nothing fits; the text says what to install.
    """
    try:
        wanted = SpecifierSet(specifier or ">=3.11")
    except InvalidSpecifier as error:
        raise InterpreterError(f"{specifier!r} is not a Python version specifier; write one such as '>=3.11'.") from error
    for interpreter in _preferred(settings):
        if interpreter.version_text in wanted:
            return interpreter
    for interpreter in find_interpreters(settings):
        if interpreter.version_text in wanted:
            return interpreter
    found = ", ".join(one.version_text for one in find_interpreters(settings)) or "none"
    raise InterpreterError(
        f"No Python {wanted} on this machine (found: {found}). Install one (`uv python install` or the system's packages) "
        "and put its folder on PATH, or name its executable in SEATRIAL_PYTHONS."
    )


@cache
def find_interpreters(settings: Settings) -> tuple[Interpreter, ...]:
    """Return every usable interpreter, in the order of preference. Each candidate is started once, without site."""
    preferred = tuple(_preferred(settings))
    paths = dict.fromkeys(path.resolve() for path in _on_path(settings) if is_elf(path))
    others = {found.path: found for path in paths if (found := ask(path)) is not None}
    rest = sorted(others.values(), key=lambda one: one.version, reverse=True)
    return tuple({one.path: one for one in (*preferred, *rest)}.values())


def _preferred(settings: Settings) -> Iterator[Interpreter]:
    yield from (found for path in settings.pythons if (found := named(path)) is not None)
    own = _base(Path(sys.base_prefix), f"python{sys.version_info[0]}.{sys.version_info[1]}")
    if own is not None and (found := ask(own)) is not None:
        yield found


def named(path: Path) -> Interpreter | None:
    """Return the interpreter that a word of ``SEATRIAL_PYTHONS`` names, by itself or by its folder; None if it is not usable."""
    program = path if is_elf(path) else path / "bin" / "python3"
    return ask(program) if is_elf(program) else None


def _on_path(settings: Settings) -> Iterator[Path]:
    for folder in (*settings.search_path, Path("/usr/bin")):
        places = [folder]
        if folder.name == "shims":  # pyenv's are scripts that ask pyenv; the programs lie beside them
            versions = folder.parent / "versions"
            places += [versions / name / "bin" for name in _names(versions)]
        for place in places:
            yield from (place / name for name in _names(place) if NAME.fullmatch(name))


def _names(folder: Path) -> Sequence[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return ()


def _base(prefix: Path, name: str) -> Path | None:
    program = prefix / "bin" / name
    return program.resolve() if is_elf(program) else None


@cache
def ask(program: Path) -> Interpreter | None:
    """Return what ``program`` says it is, following a virtual environment to its base; None if it is not usable.

    It is started with ``-I -S`` and an empty environment: nothing of any project runs.
    """
    try:
        command = [str(program), "-I", "-S", "-c", QUESTION]
        reply = subprocess.run(
            command, cwd="/", env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_TIMEOUT_S, check=True
        )
        answer = json.loads(reply.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    version, prefix, stdlib = tuple(answer["version"]), Path(answer["prefix"]).resolve(), Path(answer["stdlib"])
    if answer["name"] != "cpython" or answer["abi"] or not answer["release"] or version < OLDEST:
        return None
    path, base = program.resolve(), _base(prefix, f"python{version[0]}.{version[1]}")
    if base is not None and base != path and path.parent != prefix / "bin":
        return ask(base)
    return Interpreter(path, version, prefix, stdlib, _digest(answer["text"], path, stdlib))


def _digest(text: str, path: Path, stdlib: Path) -> str:
    """Name an installation by its version and the stamps of what an update replaces; reading it all would cost 50 ms."""
    marks = [str(path), text, sysconfig.get_platform()]
    for file in (path, stdlib / "os.py", stdlib / "lib-dynload", *sorted(stdlib.parent.glob("libpython3*.so*"))):
        status = file.stat() if file.exists() else None
        marks.append(f"{file.name} {status.st_size} {status.st_mtime_ns}" if status else file.name)
    return sha256("\0".join(marks).encode()).hexdigest()


def stage_interpreter(interpreter: Interpreter, state: State) -> Path:
    """Return a folder of the state that holds a bare copy of ``interpreter``, to be mounted read-only at `MOUNTED_AT`.

    The copy has the standard library with bytecode, headers, and the shared libraries that sandboxes would not see;
    no packages, no tests. It needs no environment variables. Making it takes some seconds, once.

    Raises:
        InterpreterError: it cannot be copied so that it runs elsewhere.
    """
    state.make("interpreters")

    def fill(folder: Path) -> None:
        _copy(interpreter, folder)
        state.own_tree(folder)

    try:
        return state.publish(state.shared / "interpreters" / interpreter.digest, fill)
    except (OSError, shutil.Error, ElfError, subprocess.SubprocessError) as error:
        raise InterpreterError(
            f"Python {interpreter.version_text} at {interpreter.path} cannot be staged for sandboxes: {error} "
            "Name another one in SEATRIAL_PYTHONS."
        ) from error


def _copy(interpreter: Interpreter, folder: Path) -> None:
    try:
        place = interpreter.stdlib.relative_to(interpreter.prefix)
    except ValueError as error:
        raise ElfError(f"its standard library {interpreter.stdlib} lies outside {interpreter.prefix}.") from error
    (folder / "bin").mkdir()
    program = folder / "bin" / interpreter.name
    shutil.copyfile(interpreter.path, program)
    program.chmod(0o755)
    for name in ("python3", "python"):
        (folder / "bin" / name).symlink_to(interpreter.name)
    _copy_tree(interpreter.stdlib, folder / place)
    headers = interpreter.prefix / "include" / interpreter.name
    if headers.is_dir():
        _copy_tree(headers, folder / "include" / interpreter.name)
    modules = sorted((interpreter.stdlib / "lib-dynload").glob("*.so"))
    _copy_libraries([interpreter.path, *modules], folder / "lib", interpreter.prefix / "lib")
    for copy in (program, *sorted((folder / place / "lib-dynload").glob("*.so"))):
        _relocate(copy, folder / "lib")
    _compile(interpreter, folder, folder / place)


def _copy_tree(source: Path, target: Path) -> None:
    def left_out(_: str, names: list[str]) -> set[str]:
        return {name for name in names if LEFT_OUT.fullmatch(name)}

    shutil.copytree(source, target, ignore=left_out, ignore_dangling_symlinks=True)


def _copy_libraries(programs: Sequence[Path], target: Path, library: Path) -> None:
    """Copy into ``target`` what ``programs`` need, directly or not, from places that sandboxes do not see."""
    target.mkdir(exist_ok=True)
    todo, copied = list(programs), set[str]()
    while todo:
        program = todo.pop()
        dynamic = read_dynamic(program)
        for name in set(dynamic.needed) - copied:
            found = _find_library(name, (*_folders(dynamic.runpath, program), library, Path("/usr/local/lib")))
            if found is not None:
                shutil.copyfile(found, target / name)
                (target / name).chmod(0o755)
                copied.add(name)
                todo.append(found)
    for name in copied:
        _relocate(target / name, target)


def _folders(runpath: str, program: Path) -> Iterator[Path]:
    for folder in filter(None, runpath.split(":")):
        yield Path(re.sub(r"\$ORIGIN|\$\{ORIGIN\}", str(program.parent), folder))


def _find_library(name: str, folders: Sequence[Path]) -> Path | None:
    for folder in folders:
        path = folder / name
        if path.exists() and not f"{path.resolve()}".startswith(VISIBLE):
            return path.resolve()
    return None


def _relocate(program: Path, library: Path) -> None:
    """Make a copied program or library look in ``library``, if something there is for it, and nowhere else of its own."""
    dynamic = read_dynamic(program)
    relative = os.path.relpath(library, program.parent)
    if any((library / name).exists() for name in dynamic.needed):
        set_runpath(program, "$ORIGIN" if relative == "." else f"$ORIGIN/{relative}")
    elif dynamic.runpath:
        set_runpath(program, "")


def _compile(interpreter: Interpreter, folder: Path, stdlib: Path) -> None:
    """Add bytecode that is never checked against its source: the copy does not change, and is mounted read-only."""
    command = [str(interpreter.path), "-I", "-S", "-m", "compileall", "-qq", "-j", "0"]
    command += ["--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", MOUNTED_AT, str(stdlib)]
    # Its exit code also counts files that are broken on purpose, such as templates.
    subprocess.run(command, cwd="/", env={}, stdin=subprocess.DEVNULL, timeout=COMPILE_TIMEOUT_S, check=False)
