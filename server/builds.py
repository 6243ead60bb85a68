"""Setting up an environment: the commands that run in a sandbox, their log, and the scan of what agents would see."""

import hashlib
import importlib.util
import json
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from server.downloads import fetch_wheels
from server.host import prepare_host
from server.interpreters import MOUNTED_AT, Interpreter
from server.sandboxes.base import STDOUT, WORKDIR, Command, CommandResult, Limits, Machine, Sandbox
from server.sandboxes.local import open_sandbox
from server.settings import Settings
from server.snapshots import Snapshot
from server.state import State, remove_tree
from tasks.errors import SeaTrialError
from tasks.model import PypiSource, PytestTask, Task

OPT_ENV = "/opt/env"
SETUP_TIMEOUT_S = 900.0
_LOG_BYTES = 4 << 20
_SCAN = Path(__file__).with_name("viewscan.py")

SHELL = "/bin/bash" if Path("/bin/bash").exists() else "/bin/sh"
"""The shell that commands run in; sandboxes see the host's programs."""

AGENT_ENV: Mapping[str, str] = {
    "PATH": f"{OPT_ENV}/bin:{MOUNTED_AT}/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/home/agent",
    "USER": "agent",
    "LOGNAME": "agent",
    "SHELL": SHELL,
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "PAGER": "cat",
    "GIT_AUTHOR_NAME": "agent",
    "GIT_AUTHOR_EMAIL": "agent@localhost",
    "GIT_COMMITTER_NAME": "agent",
    "GIT_COMMITTER_EMAIL": "agent@localhost",
    "GIT_PAGER": "cat",
    "VIRTUAL_ENV": OPT_ENV,
}
"""The whole environment of every command; nothing of the host's."""


class BuildError(SeaTrialError):
    """An environment could not be built; the text shows the last lines and where the whole log lies."""


def limits_of(task: Task) -> Limits:
    """Return what a sandbox of ``task`` may use."""
    asked = task.limits
    return Limits(
        cpus=asked.cpus,
        memory_bytes=asked.memory_mb << 20,
        processes=asked.processes,
        disk_bytes=asked.storage_mb << 20,
        tmp_bytes=min(512, asked.storage_mb) << 20,
    )


@dataclass(frozen=True)
class Tools:
    """What a setup is done with."""

    interpreter: Interpreter
    staged: Path
    settings: Settings
    state: State


async def set_up(fresh: Path, task: PytestTask, snapshot: Snapshot, tools: Tools, report: Callable[[str], None]) -> None:
    """Set up the environment of ``task`` in the empty folder ``fresh``.

    Raises:
        BuildError: a step failed.
    """
    facts, state = task.facts.environment, tools.state
    wheels: list[Path] = []
    if facts.requirements:
        report("fetching requirements")
        pins = task.folder / facts.requirements
        wheels = await to_thread.run_sync(fetch_wheels, pins, tools.interpreter.version[:2], state, abandon_on_cancel=True)
    host = prepare_host(tools.settings, state)
    for name in ("env", "tree", "work", "kit", "scan", "scanwork"):
        (fresh / name).mkdir(0o755)
    await to_thread.run_sync(_lay_out_kit, fresh / "kit", task, wheels)
    state.own_tree(fresh)
    machine = Machine(
        lowers=(snapshot.tree,),
        upper=fresh / "tree",
        work=fresh / "work",
        read_only={MOUNTED_AT: tools.staged, "/opt/kit": fresh / "kit"},
        writable={OPT_ENV: fresh / "env"},
        python=tools.interpreter.inside,
        limits=limits_of(task),
    )
    log = Log(state.private / "logs" / f"build-{task.id}.log")
    async with _background() as background:
        async with open_sandbox(machine, host, background, f"build-{fresh.name[-8:]}") as sandbox:
            report(f"installing {len(wheels)} packages" if wheels else "setting up")
            for step in _steps(task, bool(wheels)):
                await _step(sandbox, step, log, task)
        report("checking what agents would see")
        looking = Machine(
            lowers=(snapshot.tree,),
            upper=fresh / "scan",
            work=fresh / "scanwork",
            read_only={MOUNTED_AT: tools.staged, OPT_ENV: fresh / "env", "/opt/viewscan.py": _staged_scan(state)},
            python=tools.interpreter.inside,
        )
        async with open_sandbox(looking, host, background, f"scan-{fresh.name[-8:]}") as sandbox:
            masked = await _scan(sandbox, tools.interpreter.inside, _names_under_test(task, snapshot))
    for name in ("work", "kit", "scan", "scanwork"):
        remove_tree(fresh / name)
    log.path.unlink(missing_ok=True)
    facts_of = {"masked": masked, "task": task.id, "python": tools.interpreter.version_text}
    (fresh / "environment.json").write_text(json.dumps(facts_of))


@asynccontextmanager
async def _background() -> AsyncGenerator[TaskGroup]:
    """Yield a group for the tasks of sandboxes; what fails in the block is raised as it is, not as a group."""
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        try:
            yield group
        except Exception as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


def kit_files(task: PytestTask, wheels: Sequence[Path]) -> dict[str, Path]:
    """Return what a setup reads, by its path in the kit: wheels, pip, the requirements and the task's own setup."""
    spec = importlib.util.find_spec("pip")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError("The package pip is missing beside seatrial. Install seatrial again: it depends on pip.")
    kit = {"pip/pip": Path(spec.submodule_search_locations[0]), **{f"wheels/{wheel.name}": wheel for wheel in wheels}}
    if task.facts.environment.requirements:
        kit["requirements.txt"] = task.folder / task.facts.environment.requirements
    if task.facts.environment.setup:
        kit["setup.sh"] = task.folder / task.facts.environment.setup
    return kit


def _lay_out_kit(kit: Path, task: PytestTask, wheels: Sequence[Path]) -> None:
    """Collect what the setup sandbox reads, readable by its user."""
    (kit / "wheels").mkdir()
    for name, source in kit_files(task, wheels).items():
        target = kit / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    for path in (kit, *kit.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _steps(task: PytestTask, wheels: bool) -> list[tuple[str, list[str]]]:
    """Return the setup's commands: (what it does, argv)."""
    python = f"{OPT_ENV}/bin/python"
    steps = [("make a virtual environment", [f"{MOUNTED_AT}/bin/python", "-I", "-m", "venv", "--without-pip", OPT_ENV])]
    if wheels:
        install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", "/opt/kit/wheels"]
        steps.append(("install the requirements", [*install, "--require-hashes", "-r", "/opt/kit/requirements.txt"]))
    if paths := task.facts.environment.pythonpath:
        lines = "\n".join(f"/workspace/{path}".rstrip("/.") for path in paths)
        write = "import site, sys; open(site.getsitepackages()[0] + '/workspace.pth', 'w').write(sys.argv[1])"
        steps.append(("put the workspace on the path", [python, "-I", "-c", write, lines + "\n"]))
    if task.facts.environment.setup:
        steps.append(("run the task's setup", [SHELL, "-e", "/opt/kit/setup.sh"]))
    return steps


async def _step(sandbox: Sandbox, step: tuple[str, list[str]], log: "Log", task: PytestTask) -> None:
    what, argv = step
    env = {**AGENT_ENV, "PYTHONPATH": "/opt/kit/pip"} if "pip" in argv else AGENT_ENV
    cwd = WORKDIR if "/opt/kit/setup.sh" in argv else "/"  # our own steps must import nothing of the repository
    result = await sandbox.run(Command(argv, env, cwd=cwd, timeout_s=SETUP_TIMEOUT_S), log.take)
    if result.exit_code != 0:
        raise BuildError(
            f"Task {task.id}: could not {what} ({_ended(result)}). Last lines:\n{log.tail()}\nThe whole log: {log.path}"
        )


def _ended(result: CommandResult) -> str:
    return f"no end after {SETUP_TIMEOUT_S:.0f} s" if result.timed_out else f"exit code {result.exit_code}"


class Log:
    """What a setup printed, bounded, in a file for whoever has to mend it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(0o700, exist_ok=True)
        path.write_bytes(b"")
        self.path, self._size, self._tail = path, 0, b""

    def take(self, _: int, data: bytes) -> None:
        if self._size < _LOG_BYTES:
            with self.path.open("ab") as file:
                file.write(data)
        self._size += len(data)
        self._tail = (self._tail + data)[-4096:]

    def tail(self) -> str:
        return "\n".join(self._tail.decode(errors="replace").splitlines()[-20:])


async def _scan(sandbox: Sandbox, python: str, names: Sequence[str]) -> list[str]:
    """Return what an agent would see of the package under test outside the workspace and its environment."""
    found = bytearray()

    def take(stream: int, data: bytes) -> None:
        if stream == STDOUT and len(found) < 1 << 20:
            found.extend(data)

    result = await sandbox.run(Command([python, "-I", "-S", "/opt/viewscan.py", *names], AGENT_ENV, timeout_s=300), take)
    if result.exit_code != 0:
        raise BuildError(f"The scan of what agents would see failed ({_ended(result)}); nothing was published.")
    paths = [path.decode("utf-8", "surrogateescape") for path in bytes(found).split(b"\0") if path]
    if any(not path.startswith(("/usr/", "/opt/", "/etc/")) or "/../" in path for path in paths) or len(paths) > 1000:
        raise BuildError("The scan of what agents would see gave no usable answer; nothing was published.")
    return paths


def _staged_scan(state: State) -> Path:
    source = _SCAN.read_bytes()
    digest = hashlib.sha256(source).hexdigest()

    def fill(folder: Path) -> None:
        (folder / "viewscan.py").write_bytes(source)
        (folder / "viewscan.py").chmod(0o444)
        state.own_tree(folder)

    return state.publish(state.make("host") / f"scan-{digest}", fill) / "viewscan.py"


def _names_under_test(task: PytestTask, snapshot: Snapshot) -> list[str]:
    """Return the distribution's name and what it is imported as."""
    names = set()
    if isinstance(task.facts.snapshot, PypiSource):
        names.add(task.facts.snapshot.name)
    for path in task.facts.environment.pythonpath or (".",):
        for child in (snapshot.tree / path).iterdir():
            if (child / "__init__.py").is_file() and child.name not in ("tests", "test", "docs", "examples"):
                names.add(child.name)
    return sorted(names)
