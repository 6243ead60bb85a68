"""The arena of the local sandbox. Layers, bottom to top: environment, patch, what a build step made of it, hidden tests."""

import secrets
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from anyio import to_thread

from server.bench import Bench
from server.builds import AGENT_ENV, OPT_ENV, SHELL, limits_of
from server.local_environments import LocalEnvironment
from server.patches import Patch
from server.sandboxes.base import Command, CommandResult, Machine, OnOutput, SandboxDiedError, SandboxError
from server.sandboxes.local import open_sandbox
from server.state import remove_tree
from server.verifiers.arenas import INSIDE, Died
from server.verifiers.base import VerifierError
from server.verifiers.hidden import covers, hidden_layer, patch_layer
from tasks.model import PytestTask


class LocalArena:
    """See `Arena`; made by `open_local_arena`."""

    python, env, shell = f"{OPT_ENV}/bin/python", AGENT_ENV, SHELL

    def __init__(self, task: PytestTask, environment: LocalEnvironment, bench: Bench, folder: Path) -> None:
        self._task, self._environment, self._bench, self._folder = task, environment, bench, folder
        self._layers: list[Path] = []
        self._hidden = folder
        self._count = 0
        self.enforced: Mapping[str, str] = {}

    @property
    def digests(self) -> Mapping[str, str]:
        """See `Arena.digests`."""
        environment = self._environment
        return {
            "snapshot": environment.snapshot.digest,
            "environment": environment.digest,
            "toolchain": environment.interpreter.name,
        }

    async def prepare(self, patch: Patch) -> None:
        """See `Arena.prepare`."""
        self._hidden = await to_thread.run_sync(hidden_layer, self._task, self._bench)
        self._layers = [await to_thread.run_sync(patch_layer, patch, self._environment, self._bench, self._folder)]

    async def build(self, command: Command, take: OnOutput, *, patched: bool) -> CommandResult | None:
        """See `Arena.build`."""
        machine = self._machine(self._layers if patched else (), {})
        result = await self._in_sandbox(machine, command, take, lambda _: None)
        if patched and result is not None and result.exit_code == 0:
            self._layers.append(machine.upper)
        return result

    async def run(
        self, command: Command, kit: Mapping[str, bytes], take: OnOutput, died: Died, *, patched: bool
    ) -> CommandResult | None:
        """See `Arena.run`."""
        staged = await to_thread.run_sync(self._staged, kit)
        layers = [*self._layers, self._hidden] if patched else [self._hidden]
        machine = replace(self._machine(layers, {INSIDE: staged}), covered=covers(self._task, self._hidden))
        return await self._in_sandbox(machine, command, take, died)

    def _staged(self, kit: Mapping[str, bytes]) -> Path:
        folder = self._fresh() / "kit"
        folder.mkdir(0o755)
        for name, content in kit.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o444)
        self._bench.state.own_tree(folder)
        return folder

    def _fresh(self) -> Path:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir(0o755)
        self._bench.state.own(folder)
        return folder

    def _machine(self, layers: Sequence[Path], files: Mapping[str, Path]) -> Machine:
        folder = self._fresh()
        for path in (folder / "upper", folder / "work"):
            path.mkdir(0o755)
            self._bench.state.own(path)
        limits = limits_of(self._task)
        return self._environment.machine(folder / "upper", folder / "work", limits, layers=layers, files=files)

    async def _in_sandbox(self, machine: Machine, command: Command, take: OnOutput, died: Died) -> CommandResult | None:
        name = f"verify-{secrets.token_hex(4)}"
        try:
            async with open_sandbox(machine, self._bench.host, self._bench.background, name) as sandbox:
                self.enforced = sandbox.enforced
                try:
                    return await sandbox.run(command, take)
                except SandboxDiedError as error:
                    died(error.reason)
                    return None
        except SandboxError as error:
            raise VerifierError(f"No sandbox for the verification: {error}") from error


@contextmanager
def open_local_arena(task: PytestTask, environment: LocalEnvironment, bench: Bench) -> Generator[LocalArena]:
    """Yield an arena with a folder of its own; it is locked while we live, so that whoever reaps knows."""
    name = f"verify-{secrets.token_hex(8)}"
    bench.state.make("verify")
    with bench.state.lock(name):
        folder = bench.state.make("verify", name)
        try:
            yield LocalArena(task, environment, bench, folder)
        finally:
            remove_tree(folder)
            (bench.state.private / "locks" / name).unlink(missing_ok=True)
