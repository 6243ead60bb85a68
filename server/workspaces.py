"""One workspace: its sandbox, opened when it is needed and again after it died, and the commands that run in it."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from server.outputs import Output
from server.places import Place
from server.sandboxes.base import Command, CommandResult, PathError, Sandbox, SandboxDiedError, SandboxError
from tasks.errors import SeaTrialError

logger = logging.getLogger(__name__)

MAX_RUNNING = 16

REMEMBERED = 8
"""Commands that are over and whose output stays in memory; that of older ones is read back from the record."""


class CommandError(SeaTrialError):
    """A command cannot be started or is not known; the text says what to do."""


class FrozenError(SeaTrialError):
    """The workspace has been submitted or closed."""

    def __init__(self) -> None:
        super().__init__("This workspace has been submitted or closed: nothing can be done in it any more. Call submit.")


@dataclass
class RunningCommand:
    """A command of the agent, under way or over.

    ``fault`` says why it ended if not by itself, ``refused`` why it was not even started.
    """

    id: str
    text: str
    shell: str = "bash"
    output: Output = field(default_factory=Output)
    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    started_at: float = field(default_factory=time.time)
    result: CommandResult | None = None
    fault: str = ""
    refused: str = ""


class Workspace:
    """The sandbox of one trial and what runs in it. ``ended`` is told of every command that is over."""

    def __init__(self, place: Place, background: TaskGroup, ended: Callable[[RunningCommand], None]) -> None:
        self.place, self._background, self._ended = place, background, ended
        self._opening = anyio.Lock()
        self.editing = anyio.Lock()
        """Held from reading a file to writing it back."""
        self._stack: AsyncExitStack | None = None
        self._sandbox: Sandbox | None = None
        self._frozen = False
        self.commands: dict[str, RunningCommand] = {}
        self.next_command = 1

    async def sandbox(self) -> Sandbox:
        """Return the sandbox, alive; opened again on the same files if it was suspended or died.

        Raises:
            SandboxRefusedError: this machine does not let us isolate.
        """
        if self._sandbox is not None and not self._sandbox.dead and not self._frozen:
            return self._sandbox
        async with self._opening:
            if self._frozen:
                raise FrozenError
            if self._sandbox is not None and not self._sandbox.dead:
                return self._sandbox
            await self._close()
            async with AsyncExitStack() as stack:
                sandbox = await stack.enter_async_context(self.place.open())
                self._stack = stack.pop_all()
            self._sandbox = sandbox
            return sandbox

    async def freeze(self) -> None:
        """End every process and start none any more: from when this returns the files stay as they are."""
        self._frozen = True
        await self.suspend()

    def thaw(self) -> None:
        """Let the sandbox be opened again."""
        self._frozen = False

    async def suspend(self) -> None:
        """End every process; the files stay. When this returns nothing writes to them any more."""
        for command in self.commands.values():
            if not command.done.is_set() and not command.fault:
                command.fault = "the workspace was stopped"
        async with self._opening:
            await self._close()

    async def _close(self) -> None:
        stack, self._stack, self._sandbox = self._stack, None, None
        if stack is not None:
            with anyio.CancelScope(shield=True):
                await stack.aclose()

    @property
    def enforced(self) -> Mapping[str, str]:
        """What holds in the sandbox as it is now; empty while it is suspended."""
        return self._sandbox.enforced if self._sandbox is not None else {}

    async def start(self, text: str, cwd: str, timeout_s: float) -> RunningCommand:
        """Start a shell command; it goes on after this returns.

        Raises:
            CommandError: too many run already.
        """
        running = sum(not command.done.is_set() for command in self.commands.values())
        if running >= MAX_RUNNING:
            raise CommandError(f"{running} commands run already. Stop one with stop_command, or wait with command_output.")
        sandbox = await self.sandbox()
        command = RunningCommand(f"c{self.next_command}", text, self.place.habits.shell)
        self.next_command += 1
        self.commands[command.id] = command
        self._forget()
        self._background.start_soon(self._run, sandbox, command, cwd, timeout_s)
        return command

    def _forget(self) -> None:
        over = [command.id for command in self.commands.values() if command.done.is_set()]
        for command_id in over[:-REMEMBERED]:
            del self.commands[command_id]

    async def _run(self, sandbox: Sandbox, command: RunningCommand, cwd: str, timeout_s: float) -> None:
        habits = self.place.habits
        shell = Command([habits.shell, "-c", command.text], habits.env, cwd=cwd or habits.workdir, timeout_s=timeout_s)
        try:
            with command.scope:
                command.result = await sandbox.run(shell, command.output.add)
        except SandboxDiedError as error:
            command.fault = command.fault or error.reason
        except SandboxError as error:
            command.fault = command.fault or str(error)
        except PathError as error:
            command.fault = command.refused = str(error)
        except Exception:
            logger.exception("Running a command failed")
            command.fault = "a fault of the server's; run it again"
        finally:
            if command.result is None and not command.fault:
                command.fault = "its server was stopped"
            try:
                self._ended(command)
            except Exception:
                logger.exception("The end of a command could not be recorded")
            command.done.set()

    async def stop(self, command: RunningCommand) -> None:
        """End a command with its descendants; of one that is over, whatever ended commands left running."""
        if not command.done.is_set():
            command.fault = "stopped by stop_command"
            command.scope.cancel()
            await command.done.wait()
        elif self._sandbox is not None and not self._sandbox.dead:
            await self._sandbox.sweep()
