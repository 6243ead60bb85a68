"""The verifier of tier ``basic``: hidden pytest suites over the patch, in fresh sandboxes, judged here by exact ids.

Layers, bottom to top: environment, patch, what a build step made of it, hidden tests and protected files.
"""

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from anyio import to_thread

from server.bench import Bench
from server.builds import AGENT_ENV, OPT_ENV, SHELL, limits_of
from server.local_environments import LocalEnvironment
from server.patches import Patch
from server.records import Outcome, Verdict
from server.sandboxes.base import CHANNEL, WORKDIR, Command, CommandResult, Machine, OnOutput, SandboxDiedError, SandboxError
from server.sandboxes.local import open_sandbox
from server.snapshots import source_digest
from server.state import remove_tree
from server.verifiers.base import VerifierError
from server.verifiers.hidden import covers, hidden_layer, patch_layer
from server.verifiers.outcomes import Records
from tasks.model import PytestTask

ASSURANCE = "basic"
_MISSING: Outcome = "missing"
RUNNER = Path(__file__).with_name("runner.py")
_LOG_BYTES = 256 << 10
_INSIDE = "/opt/verify"


@dataclass
class _Run:
    """One run of the hidden tests."""

    records: Records
    log: bytearray = field(default_factory=bytearray)
    fault: str = ""
    enforced: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.records.ended and not self.records.refused and not self.fault

    def take(self, stream: int, data: bytes) -> None:
        if stream == CHANNEL:
            self.records.take(data)
        elif len(self.log) < _LOG_BYTES:
            self.log += data


async def verify(task: PytestTask, environment: LocalEnvironment, patch: Patch, bench: Bench) -> Verdict:
    """Judge ``patch``; the verdict depends on nothing that the agent's sandbox left but the patch.

    A fault before the submission's code ran is ours. A later one is tried once more; if it comes again while a run
    without the patch completes, it is the submission's: reward 0, flagged.

    Raises:
        VerifierError: the fault is ours.
    """
    started = time.monotonic()
    timings: dict[str, float] = {}
    flags: list[str] = []
    log = bytearray()
    with _bench_folder(bench) as folder:
        with _timed(timings, "layers"):
            hidden = await to_thread.run_sync(hidden_layer, task, bench)
            layers = [await to_thread.run_sync(patch_layer, patch, environment, bench, folder)]
        if task.facts.verifier.build:
            with _timed(timings, "build"):
                built = await _build(task, environment, layers, bench, folder, log)
            layers += [built] if built else []
            flags += [] if built else ["build_failed"]
        with _timed(timings, "tests"):
            run = None if flags else await _judge(task, environment, [*layers, hidden], bench, folder, flags)
    expected = (*task.fail_to_pass, *task.pass_to_pass)
    outcomes: dict[str, Outcome] = run.records.outcomes(expected) if run is not None else dict.fromkeys(expected, _MISSING)
    if run is not None and run.fault == "timed_out":
        outcomes = {test: "timed_out" if outcome == "missing" else outcome for test, outcome in outcomes.items()}
    passed = {test for test, outcome in outcomes.items() if outcome == "passed"}
    resolved = run is not None and run.complete and len(passed) == len(expected)
    return Verdict(
        reward=1.0 if resolved else 0.0,
        assurance=ASSURANCE,
        fail_to_pass=(len(passed & set(task.fail_to_pass)), len(task.fail_to_pass)),
        pass_to_pass=(len(passed & set(task.pass_to_pass)), len(task.pass_to_pass)),
        duration_s=time.monotonic() - started,
        outcomes=outcomes,
        flags=tuple(flags),
        digests=_digests(task, environment, patch),
        enforced=run.enforced if run is not None else {},
        timings=timings,
        log=bench.blobs.put(bytes(log if run is None else run.log)),
    )


async def _judge(
    task: PytestTask, environment: LocalEnvironment, layers: Sequence[Path], bench: Bench, folder: Path, flags: list[str]
) -> _Run:
    """Run the hidden tests, a second time after a fault, and note in ``flags`` what happened."""
    run = await _run(task, environment, layers, bench, folder / "first")
    if not run.complete:
        flags.append("retried")
        run = await _second(task, environment, layers, bench, folder)
        if not run.complete:
            flags.append("broke_verifier")
    return run


async def _second(task: PytestTask, environment: LocalEnvironment, layers: Sequence[Path], bench: Bench, folder: Path) -> _Run:
    """Run again after a fault; if the fault comes again, see whether a run without the patch completes."""
    run = await _run(task, environment, layers, bench, folder / "second")
    if run.complete:
        return run
    control = await _run(task, environment, [layers[-1]], bench, folder / "control")
    if not control.complete:
        raise VerifierError(
            f"Verification of {task.id} broke ({run.fault}), and so did a control run without the patch ({control.fault}). "
            "Nothing was scored. Look at the machine (memory, disk, `seatrial doctor`), then submit again."
        )
    return run


async def _run(task: PytestTask, environment: LocalEnvironment, layers: Sequence[Path], bench: Bench, folder: Path) -> _Run:
    """Run the hidden tests once in a fresh sandbox over ``layers``, using ``folder`` (new) for what it writes."""
    facts = task.facts.verifier
    kit = await to_thread.run_sync(_kit, task, bench, folder)
    nonce = secrets.token_hex(16)
    run = _Run(Records(nonce))
    python = f"{OPT_ENV}/bin/python"
    env = {**AGENT_ENV, **facts.env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = Command(
        [python, "-I", "-S", "-B", f"{_INSIDE}/runner.py", f"{_INSIDE}/config.json"],
        env,
        cwd="/",
        timeout_s=facts.timeout_s,
        stdin=nonce.encode() + b"\n",
        channel=True,
    )
    machine = _machine(task, environment, layers, bench, folder, {_INSIDE: kit})
    machine = replace(machine, covered=covers(task, layers[-1]))
    result = await _in_sandbox(machine, command, bench, run.take, run)
    if result is not None and result.timed_out:
        run.fault = "timed_out"
    elif not run.fault and not run.complete:
        run.fault = f"no end record, exit code {result.exit_code if result else 'unknown'}"
    if run.fault and not run.records.started:
        raise VerifierError(f"The verifier of {task.id} did not start ({run.fault}): {_last(run.log)}")
    return run


async def _in_sandbox(
    machine: Machine, command: Command, bench: Bench, take: OnOutput, run: _Run | None = None
) -> CommandResult | None:
    """Run one command in a sandbox of its own; None if the sandbox died under it."""
    try:
        async with open_sandbox(machine, bench.host, bench.background, f"verify-{secrets.token_hex(4)}") as sandbox:
            if run is not None:
                run.enforced = sandbox.enforced
            try:
                return await sandbox.run(command, take)
            except SandboxDiedError as error:
                if run is not None:
                    run.fault = error.reason
                return None
    except SandboxError as error:
        raise VerifierError(f"No sandbox for the verification: {error}") from error


async def _build(
    task: PytestTask, environment: LocalEnvironment, layers: Sequence[Path], bench: Bench, folder: Path, log: bytearray
) -> Path | None:
    """Run the task's build step over the patch; return the layer it wrote, or None if the submission breaks it."""
    for name in ("built", "rebuilt"):
        result = await _built(task, environment, layers, bench, folder / name, log)
        if result is not None and result.exit_code == 0:
            return folder / name / "upper"
        if result is not None and not result.timed_out:
            break
    control_log = bytearray()
    control = await _built(task, environment, (), bench, folder / "control", control_log)
    if control is None or control.exit_code != 0:
        raise VerifierError(
            f"The build step of {task.id} fails also without the patch. Nothing was scored. Last lines:\n{_last(control_log)}"
        )
    return None


async def _built(
    task: PytestTask, environment: LocalEnvironment, layers: Sequence[Path], bench: Bench, folder: Path, log: bytearray
) -> CommandResult | None:
    """Run the build step once, in a sandbox of its own that writes to ``folder``."""

    def take(_: int, data: bytes) -> None:
        if len(log) < _LOG_BYTES:
            log.extend(data)

    machine = _machine(task, environment, layers, bench, folder, {})
    command = Command([SHELL, "-ec", task.facts.verifier.build], AGENT_ENV, timeout_s=task.facts.verifier.timeout_s)
    return await _in_sandbox(machine, command, bench, take)


def _machine(
    task: PytestTask, environment: LocalEnvironment, layers: Sequence[Path], bench: Bench, folder: Path, files: Mapping[str, Path]
) -> Machine:
    for path in (folder, folder / "upper", folder / "work"):
        path.mkdir(0o755, exist_ok=True)
        bench.state.own(path)
    return environment.machine(folder / "upper", folder / "work", limits_of(task), layers=layers, files=files)


def _kit(task: PytestTask, bench: Bench, folder: Path) -> Path:
    """Write what the runner reads: itself, an empty trusted ini, and which tests to run how."""
    kit = folder / "kit"
    kit.mkdir(0o755, parents=True)
    facts = task.facts.verifier
    expected = (*task.fail_to_pass, *task.pass_to_pass)
    config = {
        "pythonpath": [str(PurePosixPath(WORKDIR, path)) for path in facts.pythonpath],
        "options": ["-c", f"{_INSIDE}/pytest.ini", f"--rootdir={WORKDIR}", "-p", "no:cacheprovider", "-q"],
        "args": ["--continue-on-collection-errors", *facts.args],
        "files": sorted({f"{WORKDIR}/{test.partition('::')[0]}" for test in expected}),
        "expected": expected,
    }
    (kit / "config.json").write_text(json.dumps(config))
    (kit / "pytest.ini").write_text("[pytest]\n")
    shutil.copyfile(RUNNER, kit / "runner.py")
    for path in kit.iterdir():
        path.chmod(0o444)
    bench.state.own(folder)
    bench.state.own_tree(kit)
    return kit


@contextmanager
def _bench_folder(bench: Bench) -> Generator[Path]:
    """Yield a folder for one verification; it is locked while we live, so that whoever reaps knows."""
    name = f"verify-{secrets.token_hex(8)}"
    bench.state.make("verify")
    with bench.state.lock(name):
        folder = bench.state.make("verify", name)
        try:
            yield folder
        finally:
            remove_tree(folder)
            (bench.state.private / "locks" / name).unlink(missing_ok=True)


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Generator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        timings[phase] = round(time.monotonic() - started, 4)


def _digests(task: PytestTask, environment: LocalEnvironment, patch: Patch) -> dict[str, str]:
    return {
        "task": task.digest,
        "snapshot": environment.snapshot.digest,
        "environment": environment.digest,
        "toolchain": environment.interpreter.name,
        "truth": source_digest(task.facts.solution, task.folder),
        "verifier": hashlib.sha256(b"".join(path.read_bytes() for path in sorted(RUNNER.parent.glob("*.py")))).hexdigest(),
        "patch": patch.digest,
        "server": version("seatrial"),
    }


def _last(log: bytearray) -> str:
    return bytes(log[-600:]).decode(errors="replace").strip() or "it printed nothing"
