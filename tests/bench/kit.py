"""What the rows are measured with: a state folder, generated trees, our server and the bare one, a starter of processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from server.host import prepare_host
from server.local_environments import LocalEnvironment, find_environment
from server.records import trial_id_of
from server.sandboxes import seccomp
from server.sandboxes.base import Limits, Machine
from server.sandboxes.recipe import Host, bwrap_options
from server.settings import Settings
from server.state import State, open_state, remove_tree
from tasks.catalog import load_catalog
from tasks.model import PytestTask, Task
from tests.support.front_door import CALL_S, H11, children

HERE = Path(__file__).parent
OURS = ("-I", "-m", "server", "serve")
BARE = ("-I", str(HERE / "bare_server.py"))


class BenchError(Exception):
    """Something that was to be measured did not do what it must; no figure would mean anything."""


@dataclass(frozen=True)
class Scale:
    """How many rounds are measured: ``long`` ones take seconds each, ``short`` ones milliseconds; and how much at once."""

    short: int = 200
    medium: int = 40
    long: int = 5
    starts: int = 10
    warm_up: int = 1
    trees_mb: tuple[int, int] = (5, 300)
    many: int = 100


FULL = Scale()
QUICK = Scale(short=3, medium=2, long=1, starts=1, warm_up=0, trees_mb=(1, 2), many=3)


@dataclass(frozen=True)
class Kit:
    """The place of one run; ``tasks`` is where generated tasks lie."""

    folder: Path
    settings: Settings
    state: State
    tasks: Path
    scale: Scale

    @property
    def host(self) -> Host:
        return prepare_host(self.settings, self.state)

    def task(self, task_id: str) -> Task:
        folders = (self.tasks,) if self.tasks.exists() else ()
        return load_catalog(folders).find(task_id)

    def environment(self, task_id: str) -> LocalEnvironment:
        task = self.task(task_id)
        assert isinstance(task, PytestTask)
        found = find_environment(task, self.settings, self.state)
        if found is None:
            raise BenchError(f"The environment of {task_id} is not built.")
        return found

    @contextmanager
    def machine(self, task_id: str, name: str) -> Generator[Machine]:
        """Yield a machine over the environment of a task, with new folders to write to."""
        folder = self.state.make("bench", name)
        for part in ("upper", "work"):
            self.state.make("bench", name, part)
        try:
            yield self.environment(task_id).machine(folder / "upper", folder / "work", Limits())
        finally:
            remove_tree(folder)

    def environ(self) -> Mapping[str, str]:
        tasks = {"SEATRIAL_TASKS": str(self.tasks)} if self.tasks.exists() else {}
        return {**os.environ, "SEATRIAL_STATE": str(self.settings.state), **tasks}


@asynccontextmanager
async def joined(kit: Kit, words: Sequence[str]) -> AsyncGenerator["Joined"]:
    """Start a server with this interpreter and connect to it by the `initialize` handshake, as most agents do."""
    before = children()
    parameters = StdioServerParameters(command=sys.executable, args=list(words), env=dict(kit.environ()))
    async with Client(stdio_client(parameters), mode="legacy") as client:
        (pid,) = children() - before
        yield Joined(kit, client, pid)


@dataclass(frozen=True)
class Joined:
    """A connection to a server that this process started."""

    kit: Kit
    client: Client
    pid: int

    async def call(self, tool: str, **arguments: object) -> str:
        with anyio.fail_after(CALL_S):
            result = await self.client.call_tool(tool, arguments)
        text = "\n".join(getattr(block, "text", "") for block in result.content)
        if result.is_error:
            raise BenchError(f"{tool} answered: {text}")
        return text

    async def open(self, task_id: str = H11) -> str:
        """Open a workspace whose environment is built, and return its id."""
        first, second, *_ = (await self.call("open_workspace", task_id=task_id)).split("\n")
        if not second.startswith("ready"):
            raise BenchError(f"The workspace of {task_id} was not ready at once: {second}")
        return first.removeprefix("workspace_id: ")

    async def run(self, workspace_id: str, command: str) -> None:
        text = await self.call("run_command", workspace_id=workspace_id, command=command)
        if not text.startswith("exit code 0"):
            raise BenchError(f"{command!r} was answered: {text}")

    async def close(self, workspace_id: str) -> None:
        """Close a workspace and wait until its folder is gone, so that nothing of it runs into the next measurement."""
        await self.call("close_workspace", workspace_id=workspace_id)
        await gone(folder_of(self.kit, workspace_id))


def folder_of(kit: Kit, workspace_id: str) -> Path:
    return kit.state.shared / "workspaces" / trial_id_of(workspace_id)


async def gone(path: Path) -> None:
    with anyio.fail_after(60):
        while path.exists():
            await anyio.sleep(0.001)


class Starter:
    """A process of the sandboxes' user that starts others; made by `open_starter`."""

    def __init__(self, process: subprocess.Popen[bytes], log: int, syscalls: int) -> None:
        self._process, self._log, self.syscalls = process, log, syscalls

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self, argv: Sequence[str], env: Mapping[str, str], exit_codes: Sequence[int] = (0,)) -> float:
        """Return how many seconds a program took from its start to its end."""
        seconds, code = self._ask(argv=list(argv), env=dict(env), rewind=[self.syscalls])
        if code not in exit_codes:
            said = os.pread(self._log, 2000, 0).decode(errors="replace")
            raise BenchError(f"{argv[0]} ended with {code:.0f}: {said}")
        return seconds

    def hold(self, argv: Sequence[str], env: Mapping[str, str]) -> int:
        """Start a program that goes on until `kill`, and return its pid."""
        return int(self._ask(argv=list(argv), env=dict(env), rewind=[self.syscalls], hold=True)[1])

    def kill(self, pids: Sequence[int]) -> None:
        """Kill processes, and wait for the end of everything that is held."""
        self._ask(kill=list(pids))

    def _ask(self, **asked: object) -> tuple[float, float]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked).encode() + b"\n")
        self._process.stdin.flush()
        seconds, code = json.loads(self._process.stdout.readline())
        return seconds, code


@contextmanager
def open_starter(kit: Kit) -> Generator[Starter]:
    """Start the starter, with the staged interpreter: the sandboxes' user may not reach the one that runs us."""
    program = kit.environment(H11).interpreter / "bin" / "python3"
    log, syscalls = os.memfd_create("log", 0), os.memfd_create("syscalls", 0)
    os.write(syscalls, seccomp.filter_program(os.uname().machine))
    drop: dict[str, Any] = {"user": kit.state.uid, "group": kit.state.gid, "extra_groups": []} if kit.state.drops_user else {}
    command: list[str] = [str(program), "-I", "-S", "-c", (HERE / "starter.py").read_text(), str(log)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    try:
        with subprocess.Popen(command, **pipes, env={}, cwd="/", pass_fds=(log, syscalls), **drop) as process:
            yield Starter(process, log, syscalls)
    finally:
        os.close(log)
        os.close(syscalls)


def bare_bwrap(starter: Starter, host: Host, machine: Machine, argv: Sequence[str]) -> list[str]:
    """Return the command line of bubblewrap with the options of a sandbox of ours, and nothing else of ours."""
    return [str(host.bwrap), *bwrap_options(machine, host), "--seccomp", str(starter.syscalls), "--", *argv]


def spawned(argv: Sequence[str], env: Mapping[str, str]) -> float:
    """Return how many seconds a program took, started by this process in the fastest way."""
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], list(argv), env)
    _, status = os.waitpid(pid, 0)
    if status:
        raise BenchError(f"{argv[0]} ended with {status}")
    return time.perf_counter() - started


def kit_in(folder: Path, state_folder: Path, scale: Scale) -> Kit:
    """Open the state folder; generated tasks will lie in ``folder``."""
    environment = {**os.environ, "SEATRIAL_STATE": str(state_folder)}
    settings = Settings.from_environment(environment)
    return Kit(folder, settings, open_state(settings), folder / "tasks", scale)
