"""Local sandboxes over small trees, without a server around them."""

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from server.host import prepare_host
from server.interpreters import MOUNTED_AT, choose_interpreter, stage_interpreter
from server.sandboxes.base import Command, CommandResult, Limits, Machine, Sandbox
from server.sandboxes.local import open_sandbox
from server.settings import Settings
from server.state import open_state

ENV = {"PATH": f"{MOUNTED_AT}/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

SEE = """
import hashlib, json, os, stat
seen, left_out = {}, (b'.git', b'__pycache__', b'.pytest_cache')
for folder, folders, files in os.walk(b'.'):
    folders[:] = [one for one in folders if one not in left_out]
    for name in folders + [one for one in files if one not in left_out]:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        key = path[2:].decode('utf-8', 'surrogateescape')
        if stat.S_ISLNK(status.st_mode):
            seen[key] = ['link', os.readlink(path).decode('utf-8', 'surrogateescape')]
        elif stat.S_ISREG(status.st_mode) and not name.endswith(b'.pyc'):
            if not os.access(path, os.R_OK):
                os.chmod(path, status.st_mode | 0o400)
            seen[key] = ['file', hashlib.sha256(open(path, 'rb').read()).hexdigest(), bool(status.st_mode & 0o100)]
print(json.dumps(seen))
"""


@dataclass(frozen=True)
class Ran:
    """How a command in a box ended, what it printed, and from which stream each piece came."""

    result: CommandResult
    pieces: list[tuple[int, bytes]]

    @property
    def text(self) -> str:
        return b"".join(data for _, data in self.pieces).decode("utf-8", "surrogateescape")


class Box:
    """Makes sandboxes over ``lowers``; everything that they write lies below ``folder``."""

    def __init__(self, shared: Path, folder: Path) -> None:
        settings = Settings(shared / "state")
        self.folder = folder
        self.state = open_state(settings)
        self.host = prepare_host(settings, self.state)
        interpreter = choose_interpreter(">=3.11", settings)
        self._python, self._staged = interpreter.inside, stage_interpreter(interpreter, self.state)
        self.state.own(folder)
        self.lowers: list[Path] = []

    def fresh(self, name: str) -> Path:
        """Return a folder of the sandboxes' user."""
        path = self.folder / name
        path.mkdir(0o755, exist_ok=True)
        self.state.own(path)
        return path

    def machine(self, upper: Path, lowers: list[Path], limits: Limits | None = None) -> Machine:
        machine = Machine(lowers, upper, self.fresh(f"{upper.name}-work"), {MOUNTED_AT: self._staged}, self._python)
        return replace(machine, limits=limits or Limits(files=100_000))

    @asynccontextmanager
    async def opened(self, machine: Machine) -> AsyncGenerator[Sandbox]:
        """Open a sandbox; the tasks behind it end with the block, and what fails in the block is raised as it is."""
        failure: Exception | None = None
        async with anyio.create_task_group() as background:
            try:
                async with open_sandbox(machine, self.host, background, f"box-{secrets.token_hex(4)}") as sandbox:
                    yield sandbox
            except Exception as error:
                failure = error
            background.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def run(self, script: str, upper: Path, lowers: list[Path], *, shell: bool = True) -> str:
        """Run a script in a sandbox of its own, and return what it printed."""
        async with self.opened(self.machine(upper, lowers)) as sandbox:
            argv = ["/bin/bash", "-ec", script] if shell else [self._python, "-I", "-c", script]
            ran = await ran_in(sandbox, argv)
        assert ran.result.exit_code == 0, ran.text
        return ran.text

    async def change(self, script: str) -> Path:
        """Return the upper folder in which ``script`` left its change."""
        upper = self.fresh("upper")
        await self.run(script, upper, self.lowers)
        return upper

    async def seen(self, name: str, lowers: list[Path], upper: Path | None = None) -> dict[str, object]:
        """Return every file and symlink of a merged tree, as a process in a sandbox sees them."""
        found = json.loads(await self.run(SEE, upper or self.fresh(name), lowers, shell=False))
        assert isinstance(found, dict)
        return found


async def ran_in(sandbox: Sandbox, argv: list[str], timeout_s: float = 100, **command: object) -> Ran:
    """Run one command in a sandbox to its end."""
    pieces: list[tuple[int, bytes]] = []
    with anyio.fail_after(120):
        given = replace(Command(argv, ENV, timeout_s=timeout_s), **command)  # type: ignore[arg-type]
        result = await sandbox.run(given, lambda stream, data: pieces.append((stream, data)))
    return Ran(result, pieces)
