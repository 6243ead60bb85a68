"""The verifier of tier ``basic``: hidden pytest suites over the patch, in fresh sandboxes, judged here by exact ids."""

import hashlib
import json
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath

from server.bench import Bench
from server.patches import Patch
from server.records import Outcome, Verdict
from server.sandboxes.base import CHANNEL, WORKDIR, Command
from server.snapshots import source_digest
from server.verifiers.arenas import INSIDE, Arena, runner_source
from server.verifiers.base import VerifierError
from server.verifiers.outcomes import Records
from tasks.model import PytestTask

ASSURANCE = "basic"
_MISSING: Outcome = "missing"
_HERE = Path(__file__).parent
_LOG_BYTES = 256 << 10


@dataclass
class _Run:
    """One run of the hidden tests."""

    records: Records
    log: bytearray = field(default_factory=bytearray)
    fault: str = ""

    @property
    def complete(self) -> bool:
        return self.records.ended and not self.records.refused and not self.fault

    def died(self, reason: str) -> None:
        self.fault = reason

    def take(self, stream: int, data: bytes) -> None:
        if stream == CHANNEL:
            self.records.take(data)
        elif len(self.log) < _LOG_BYTES:
            self.log += data


async def verify(task: PytestTask, arena: Arena, patch: Patch, bench: Bench) -> Verdict:
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
    with _timed(timings, "layers"):
        await arena.prepare(patch)
    if task.facts.verifier.build:
        with _timed(timings, "build"):
            flags += [] if await _build(task, arena, log) else ["build_failed"]
    with _timed(timings, "tests"):
        run = None if flags else await _judge(task, arena, flags)
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
        digests=_digests(task, arena, patch),
        enforced=arena.enforced,
        timings=timings,
        log=bench.blobs.put(bytes(log if run is None else run.log)),
    )


async def _judge(task: PytestTask, arena: Arena, flags: list[str]) -> _Run:
    """Run the hidden tests, a second time after a fault, and note in ``flags`` what happened."""
    run = await _run(task, arena)
    if not run.complete:
        flags.append("retried")
        run = await _second(task, arena)
        if not run.complete:
            flags.append("broke_verifier")
    return run


async def _second(task: PytestTask, arena: Arena) -> _Run:
    """Run again after a fault; if the fault comes again, see whether a run without the patch completes."""
    run = await _run(task, arena)
    if run.complete:
        return run
    control = await _run(task, arena, patched=False)
    if not control.complete:
        raise VerifierError(
            f"Verification of {task.id} broke ({run.fault}), and so did a control run without the patch ({control.fault}). "
            "Nothing was scored. Look at the machine (memory, disk, `seatrial doctor`), then submit again."
        )
    return run


async def _run(task: PytestTask, arena: Arena, *, patched: bool = True) -> _Run:
    """Run the hidden tests once in a fresh sandbox."""
    facts = task.facts.verifier
    nonce = secrets.token_hex(16)
    run = _Run(Records(nonce))
    env = {**arena.env, **facts.env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = Command(
        [arena.python, "-I", "-S", "-B", f"{INSIDE}/runner.py", f"{INSIDE}/config.json"],
        env,
        cwd="/",
        timeout_s=facts.timeout_s,
        stdin=nonce.encode() + b"\n",
        channel=True,
    )
    result = await arena.run(command, _kit(task), run.take, run.died, patched=patched)
    if result is not None and result.timed_out:
        run.fault = "timed_out"
    elif not run.fault and not run.complete:
        run.fault = f"no end record, exit code {result.exit_code if result else 'unknown'}"
    if run.fault and not run.records.started:
        raise VerifierError(f"The verifier of {task.id} did not start ({run.fault}): {_last(run.log)}")
    return run


async def _build(task: PytestTask, arena: Arena, log: bytearray) -> bool:
    """Run the task's build step over the patch; False if the submission breaks it.

    Raises:
        VerifierError: it fails without the submission too.
    """

    def take(_: int, data: bytes) -> None:
        if len(log) < _LOG_BYTES:
            log.extend(data)

    facts = task.facts.verifier
    command = Command([arena.shell, "-ec", facts.build], arena.env, timeout_s=facts.timeout_s)
    for _ in range(2):
        result = await arena.build(command, take, patched=True)
        if result is not None and result.exit_code == 0:
            return True
        if result is not None and not result.timed_out:
            break
    log.clear()
    control = await arena.build(command, take, patched=False)
    if control is None or control.exit_code != 0:
        raise VerifierError(
            f"The build step of {task.id} fails also without the patch. Nothing was scored. Last lines:\n{_last(log)}"
        )
    return False


def _kit(task: PytestTask) -> dict[str, bytes]:
    """Return what the runner reads: itself, an empty trusted ini, and which tests to run how."""
    facts = task.facts.verifier
    expected = (*task.fail_to_pass, *task.pass_to_pass)
    config = {
        "pythonpath": [str(PurePosixPath(WORKDIR, path)) for path in facts.pythonpath],
        "options": ["-c", f"{INSIDE}/pytest.ini", f"--rootdir={WORKDIR}", "-p", "no:cacheprovider", "-q"],
        "args": ["--continue-on-collection-errors", *facts.args],
        "files": sorted({f"{WORKDIR}/{test.partition('::')[0]}" for test in expected}),
        "expected": expected,
    }
    return {"config.json": json.dumps(config).encode(), "pytest.ini": b"[pytest]\n", "runner.py": runner_source()}


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Generator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        timings[phase] = round(time.monotonic() - started, 4)


def _digests(task: PytestTask, arena: Arena, patch: Patch) -> dict[str, str]:
    return {
        "task": task.digest,
        **arena.digests,
        "truth": source_digest(task.facts.solution, task.folder),
        "verifier": hashlib.sha256(b"".join(path.read_bytes() for path in sorted(_HERE.glob("*.py")))).hexdigest(),
        "patch": patch.digest,
        "server": version("seatrial"),
    }


def _last(log: bytearray) -> str:
    return bytes(log[-600:]).decode(errors="replace").strip() or "it printed nothing"
