"""The reference agents: real MCP clients that start the real server over stdio and work through its tools alone.

``oracle`` applies a change that it is handed and must be scored 1.0; ``nop`` submits at once and must be scored 0.0.
"""

import base64
import itertools
import re
import shlex
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import IO, Protocol

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import TextContent

from server.records import trial_id_of
from tasks.errors import SeaTrialError

CALL_S = 120
"""Every tool answers within a minute; a server that takes twice as long is stuck."""
_POLL_S = 0.3
_SAVE_CHARACTERS = 200_000
_COMMAND_CHARACTERS = 30_000
_WORKSPACE = re.compile(r"^workspace_id: ([0-9a-f]{32})\s*$", re.MULTILINE)
_NEXT_STEP = re.compile(r"step \d+ of \d+ was judged")
_RUNNING = re.compile(r"^running: (\S+)", re.MULTILINE)


class AgentError(SeaTrialError):
    """A reference agent could not go on; the text says at which tool and what it was answered."""


class Change(Protocol):
    """One path to be made so: ``data`` None and no ``link`` deletes it."""

    @property
    def path(self) -> str: ...
    @property
    def data(self) -> bytes | None: ...
    @property
    def executable(self) -> bool: ...
    @property
    def link(self) -> str | None: ...


@dataclass(frozen=True)
class Launch:
    """How a server is started: the words before its options, and the whole environment it gets."""

    command: Sequence[str]
    environment: Mapping[str, str]


class Script(Protocol):
    """What solves one step: files to be put at paths (absolute ones outside the workspace), then a command to run."""

    @property
    def changes(self) -> Sequence[Change]: ...
    @property
    def command(self) -> str: ...


@dataclass(frozen=True)
class TrialPlan:
    """One trial that is to be run; ``script`` is what the oracle does step by step, ``timeout_s`` bounds the whole of it."""

    task: str
    agent: str
    job: str = ""
    group: str = ""
    repetition: int = 0
    script: Sequence[Script] = ()
    timeout_s: float = 3600

    @property
    def options(self) -> list[str]:
        """The options of `seatrial serve`: a scripted agent has no tools of its own, so what it does is sealed."""
        named = {"task": self.task, "job": self.job, "group": self.group, "repetition": str(self.repetition)}
        named |= {"agent": self.agent, "containment": "sealed"}
        return [f"--{name}={value}" for name, value in named.items()]


@dataclass(frozen=True)
class TrialRun:
    """How a trial went as the agent saw it. ``error`` is empty unless it broke off; the score is the server's to say."""

    task: str
    agent: str
    repetition: int
    trial: str = ""
    answer: str = ""
    error: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds per phase: start, open, work, verify, and total."""


Report = Callable[[str], None]


class Agent:
    """One connection to a server, with the workspace once it is open."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.workspace = ""

    async def call(self, tool: str, **arguments: object) -> str:
        """Return the text that ``tool`` answers.

        Raises:
            AgentError: the answer is an error, or did not come within `CALL_S`.
        """
        try:
            with anyio.fail_after(CALL_S):
                result = await self._client.call_tool(tool, arguments)
        except TimeoutError as error:
            raise AgentError(f"{tool} did not answer within {CALL_S} s.") from error
        text = "\n".join(part.text for part in result.content if isinstance(part, TextContent))
        if result.is_error:
            raise AgentError(f"{tool} answered: {text}")
        return text

    async def open(self, task: str, report: Report) -> None:
        """Open the workspace and wait until its environment is built."""
        text = await self.call("open_workspace", task_id=task)
        found = _WORKSPACE.search(text)
        if found is None:
            raise AgentError(f"open_workspace named no workspace: {text[:500]}")
        self.workspace = found[1]
        while (stage := _stage(text, "building")) is not None:
            report(stage or "building")
            await anyio.sleep(_POLL_S)
            text = await self.call("list_files", workspace_id=self.workspace)

    async def submit(self) -> str:
        """Submit, wait until the verdict is there, and return it."""
        text = await self.call("submit", workspace_id=self.workspace)
        while _stage(text, "verifying") is not None:
            await anyio.sleep(_POLL_S)
            text = await self.call("submit", workspace_id=self.workspace)
        return text

    async def save(self, path: str, text: str) -> None:
        """Create or replace a file."""
        await self.call("save_file", workspace_id=self.workspace, path=path, content=text)

    async def shell(self, command: str) -> None:
        """Run ``command`` to its end.

        Raises:
            AgentError: it failed.
        """
        done = "seatrial-ok-42"
        text = await self.call("run_command", workspace_id=self.workspace, command=f"({command}) && echo seatrial-ok-$((6*7))")
        while done not in text and (found := _RUNNING.search(text)):
            text = await self.call("command_output", workspace_id=self.workspace, command_id=found[1])
        if done not in text:
            raise AgentError(f"A command of the oracle failed: {command[:200]!r} was answered: {text[-1000:]}")


async def do_nothing(agent: Agent, script: Script | None) -> None:
    """Leave the workspace as it is."""


async def apply_script(agent: Agent, script: Script | None) -> None:
    """Make every path so as the script says, run its command, and look at the result."""
    if script is None:
        raise AgentError("The task has no solution for this step, so the oracle cannot do it.")
    await apply_changes(agent, script.changes)
    if script.command:
        await agent.shell(script.command)
    await agent.call("view_diff", workspace_id=agent.workspace)


async def apply_changes(agent: Agent, changes: Sequence[Change]) -> None:
    """Make every path so as ``changes`` says."""
    for command in _batches("rm -rf --", [change.path for change in changes if change.data is None or change.link is not None]):
        await agent.shell(command)
    for change in changes:
        if change.link is not None:
            await agent.shell(f"{_in_its_folder(change.path)} && ln -s -- {shlex.quote(change.link)} {shlex.quote(change.path)}")
        elif change.data is not None:
            await _write(agent, change.path, change.data)
    files = [change for change in changes if change.data is not None and change.link is None]
    for mode, executable in (("755", True), ("644", False)):
        for command in _batches(f"chmod {mode} --", [change.path for change in files if change.executable is executable]):
            await agent.shell(command)


SCRIPTS: Mapping[str, Callable[[Agent, Script | None], Awaitable[None]]] = {"oracle": apply_script, "nop": do_nothing}


async def play_trial(plan: TrialPlan, launch: Launch, report: Report) -> TrialRun:
    """Run one trial to its end; whatever goes wrong on the way is told in ``error``, and all that was started has ended."""
    timings: dict[str, float] = {}
    agents: list[Agent] = []
    answer = error = ""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            with phase(timings, "total"), anyio.fail_after(plan.timeout_s):
                answer = await _play(plan, _connection(plan, launch, log), _Course(timings, report, agents))
        except TimeoutError:
            error = f"The trial did not end within {plan.timeout_s:.0f} s."
        except Exception as failure:  # a boundary: one trial that breaks must not take the others with it
            error = _told(failure, log)
    trial = trial_id_of(agents[0].workspace) if agents and agents[0].workspace else ""
    return TrialRun(plan.task, plan.agent, plan.repetition, trial, answer, error, timings)


@dataclass(frozen=True)
class _Course:
    """What is left behind of a trial on its way, also when it breaks off."""

    timings: dict[str, float]
    report: Report
    agents: list[Agent]


async def _play(plan: TrialPlan, client: Client, course: _Course) -> str:
    timings, report = course.timings, course.report
    began = time.perf_counter()
    report("starting")
    async with client:
        timings["start"] = time.perf_counter() - began
        agent = Agent(client)
        course.agents.append(agent)
        with phase(timings, "open"):
            await agent.open(plan.task, report)
        for number in itertools.count():
            report("working")
            with phase(timings, "work"):
                await SCRIPTS[plan.agent](agent, plan.script[number] if number < len(plan.script) else None)
            report("verifying")
            with phase(timings, "verify"):
                answer = await agent.submit()
            if not _NEXT_STEP.match(answer):
                return answer
        raise AssertionError("a trial has an end")


def _connection(plan: TrialPlan, launch: Launch, log: IO[str]) -> Client:
    command, *arguments = launch.command
    server = StdioServerParameters(command=command, args=[*arguments, *plan.options], env=dict(launch.environment))
    return Client(stdio_client(server, errlog=log))  # type: ignore[arg-type]  # any file with a descriptor will do


@contextmanager
def phase(timings: dict[str, float], name: str) -> Generator[None]:
    """Add the seconds that the block takes to ``timings``, however it ends."""
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = timings.get(name, 0) + time.perf_counter() - began


async def _write(agent: Agent, path: str, data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if (text or not data) and len(text) <= _SAVE_CHARACTERS and "\0" not in text and not path.startswith("/"):
        await agent.save(path, text)
        return
    target = shlex.quote(path)
    await agent.shell(f"{_in_its_folder(path)} && rm -rf -- {target} && : > {target}")
    step = _COMMAND_CHARACTERS // 4 * 3
    for start in range(0, len(data), step):
        piece = base64.b64encode(data[start : start + step]).decode()
        await agent.shell(f"printf %s {piece} | base64 -d >> {target}")


def _batches(command: str, paths: Sequence[str]) -> Iterator[str]:
    """Yield ``command`` with the quoted paths behind it, as often as the length of a command asks for."""
    batch, size = [command], len(command)
    for path in map(shlex.quote, paths):
        if size + len(path) > _COMMAND_CHARACTERS:
            yield " ".join(batch)
            batch, size = [command], len(command)
        batch.append(path)
        size += len(path) + 1
    if len(batch) > 1:
        yield " ".join(batch)


def _in_its_folder(path: str) -> str:
    return f"mkdir -p -- {shlex.quote(str(PurePosixPath(path).parent))}"


def _stage(text: str, word: str) -> str | None:
    """Return what stands behind ``word`` in one of the first lines, or None if it does not stand there."""
    for line in text.splitlines()[:2]:
        if line == word or line.startswith((f"{word}:", f"{word} ")):
            return line[len(word) :].strip(" :")
    return None


def _told(failure: BaseException, log: IO[str]) -> str:
    """Return what went wrong; for what nobody foresaw, with the server's last words."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if isinstance(failure, SeaTrialError):
        return str(failure)
    log.seek(0)
    said = log.read()[-2000:].strip()
    return f"{type(failure).__name__}: {failure}" + (f"\nThe server said: {said}" if said else "")
