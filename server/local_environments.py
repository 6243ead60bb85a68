"""Snapshot + what its setup installed = the layers that every workspace and verifier of a task is made of.

Fetching runs on the host and executes nothing of upstream's; setting up runs in a sandbox without network (`server.builds`).
The result is cached by the digest of everything that went into it.
"""

import hashlib
import json
import stat
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from anyio import to_thread

from server.bench import Bench
from server.blobs import Blobs
from server.builds import AGENT_ENV, OPT_ENV, SHELL, Tools, set_up
from server.interpreters import MOUNTED_AT, Interpreter, choose_interpreter, stage_interpreter
from server.patches import Found, Patch, find_changes, read_patch
from server.places import NO_NETWORK, Habits, Place, Report
from server.sandboxes.base import WORKDIR, Limits, Machine, Sandbox
from server.sandboxes.local import open_sandbox
from server.settings import Settings
from server.snapshots import Snapshot, build_snapshot, build_truth, find_snapshot, find_truth
from server.state import State, remove_tree
from tasks.model import PypiSource, PytestTask

FORMAT = "1"

HABITS = Habits(WORKDIR, SHELL, AGENT_ENV, "/usr/bin/grep", NO_NETWORK)


@dataclass(frozen=True)
class LocalEnvironment:
    """A built environment. ``lowers`` are the workspace's layers, bottom first; the rest is mounted read-only."""

    digest: str
    snapshot: Snapshot
    lowers: tuple[Path, ...]
    env: Path
    interpreter: Path
    python: str
    masked: tuple[str, ...]

    @property
    def present(self) -> bool:
        """Whether it is still there; folders of the state folder may be removed by hand."""
        return all(path.exists() for path in (*self.lowers, self.env, self.interpreter))

    def place(self, name: str, limits: Limits, bench: Bench) -> Place:
        """See `Environment.place`."""
        return LocalPlace(self, name, limits, bench)

    def machine(
        self, upper: Path, work: Path, limits: Limits, *, layers: Sequence[Path] = (), files: Mapping[str, Path] | None = None
    ) -> Machine:
        """Return a machine over this environment, with further ``layers`` on top and ``files`` mounted read-only."""
        return Machine(
            lowers=(*self.lowers, *layers),
            upper=upper,
            work=work,
            read_only={MOUNTED_AT: self.interpreter, OPT_ENV: self.env, **(files or {})},
            python=self.python,
            masked=self.masked,
            limits=limits,
        )


class LocalPlace:
    """An upper folder over an environment's layers."""

    def __init__(self, environment: LocalEnvironment, name: str, limits: Limits, bench: Bench) -> None:
        self._environment, self._name, self._limits, self._bench = environment, name, limits, bench
        self.habits = HABITS
        self._folder = bench.state.make("workspaces", name)
        self.upper = bench.state.make("workspaces", name, "upper")
        self._work = bench.state.make("workspaces", name, "work")

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sandbox]:
        """See `Place.open`."""
        machine = self._environment.machine(self.upper, self._work, self._limits)
        async with open_sandbox(machine, self._bench.host, self._bench.background, self._name) as sandbox:
            yield sandbox
        self._unlock()

    def _unlock(self) -> None:
        """Give ourselves the right to enter the upper folder, if a command took it away: nothing could be mounted on it."""
        mode = stat.S_IMODE(self.upper.stat().st_mode)
        if mode & 0o700 != 0o700:
            self.upper.chmod(mode | 0o700)

    async def patch(self, blobs: Blobs) -> Patch:
        """See `Place.patch`."""
        return await to_thread.run_sync(read_patch, self.upper, self._environment.lowers, blobs)

    def differences(self) -> Iterator[Found]:
        """See `Place.differences`."""
        self._unlock()
        return find_changes(self.upper, self._environment.lowers)

    async def begin_step(self, number: int) -> None:
        """See `Place.begin_step`: tasks of ours have one step."""

    async def remove(self) -> None:
        """See `Place.remove`."""
        await to_thread.run_sync(remove_tree, self._folder, abandon_on_cancel=True)  # the next server would go on


def find_environment(task: PytestTask, settings: Settings, state: State) -> LocalEnvironment | None:
    """Return the environment of ``task`` if it is built, without building anything."""
    interpreter = choose_interpreter(task.facts.environment.python, settings)
    snapshot = find_snapshot(task.facts.snapshot, task.folder, state)
    if snapshot is None or find_truth(task.facts.solution, task.folder, state) is None:
        return None
    folder = state.shared / "environments" / _digest(task, snapshot, interpreter)
    staged = state.shared / "interpreters" / interpreter.digest
    return _load(folder, snapshot, staged, interpreter) if folder.exists() and staged.exists() else None


async def build_environment(task: PytestTask, settings: Settings, state: State, report: Report) -> LocalEnvironment:
    """Fetch and set up what ``task`` needs, ground truth included, unless it is built; ``report`` hears each stage.

    Raises:
        SeaTrialError: something cannot be fetched or set up; the text says what.
    """
    if found := await to_thread.run_sync(find_environment, task, settings, state):
        report("ready")
        return found
    facts = task.facts  # threads are abandoned when the server stops: what they make appears whole or not at all
    interpreter = await to_thread.run_sync(choose_interpreter, facts.environment.python, settings)
    report(f"fetching {_named(task)}")
    snapshot = await to_thread.run_sync(build_snapshot, facts.snapshot, task.folder, state, abandon_on_cancel=True)
    await to_thread.run_sync(build_truth, facts.solution, task.folder, state, abandon_on_cancel=True)
    report(f"staging Python {interpreter.version_text}")
    staged = await to_thread.run_sync(stage_interpreter, interpreter, state, abandon_on_cancel=True)
    state.make("environments")
    target = state.shared / "environments" / _digest(task, snapshot, interpreter)
    if not target.exists():
        async with _entered(state.building(target)) as fresh:
            if fresh is not None:
                await set_up(fresh, task, snapshot, Tools(interpreter, staged, settings, state), report)
    report("ready")
    return _load(target, snapshot, staged, interpreter)


def _named(task: PytestTask) -> str:
    source = task.facts.snapshot
    return f"{source.name} {source.version}" if isinstance(source, PypiSource) else f"the repository of {task.id}"


def _digest(task: PytestTask, snapshot: Snapshot, interpreter: Interpreter) -> str:
    facts = task.facts.environment
    parts = [FORMAT, snapshot.digest, interpreter.digest, version("pip"), repr(facts.pythonpath)]
    parts += [
        hashlib.sha256((task.folder / name).read_bytes()).hexdigest() if name else "-"
        for name in (facts.requirements, facts.setup)
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _load(folder: Path, snapshot: Snapshot, staged: Path, interpreter: Interpreter) -> LocalEnvironment:
    facts = json.loads((folder / "environment.json").read_text())
    return LocalEnvironment(
        digest=folder.name,
        snapshot=snapshot,
        lowers=(snapshot.tree, folder / "tree"),
        env=folder / "env",
        interpreter=staged,
        python=interpreter.inside,
        masked=tuple(facts["masked"]),
    )


@asynccontextmanager
async def _entered(manager: AbstractContextManager[Path | None]) -> AsyncGenerator[Path | None]:
    """Enter a context that may have to wait for a lock, without stopping the event loop."""
    with ExitStack() as stack:
        yield await to_thread.run_sync(stack.enter_context, manager, abandon_on_cancel=True)
