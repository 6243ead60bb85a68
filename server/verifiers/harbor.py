"""The verifier of plain Harbor tasks: ``tests/test.sh`` in a fresh container, its reward file read from outside.

Tier ``compat``: a container of the task's image in which nothing of the agent's ever ran; the submission (workdir,
artifacts, what the task carries) is put over it, ``/tests``, ``/solution`` and ``/logs/verifier`` are made anew, and only then
does the task's own script run. Its PATH and environment are the image's and the task's. What it leaves running is stopped, and
a reward that such a process writes does not count.
"""

import secrets
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version

from server.bench import Bench
from server.docker_environments import HarborEnvironment
from server.patches import Patch
from server.places import Environment
from server.records import Verdict
from server.sandboxes.base import SandboxError
from server.verifiers.base import Submission, VerifierError
from server.verifiers.harbor_runs import Attempt, Course, attempt
from tasks.container import Step
from tasks.model import HarborTask

_EMPTY = Patch(())
_UNSOLVED = (
    " The task has no solution/solve.sh to check its verifier with: if its test.sh leaves no reward when a test fails, let it "
    "write 0, or add a solution."
)


async def verify(task: HarborTask, environment: Environment, submission: Submission, bench: Bench) -> Verdict:
    """Judge a submission.

    A fault before ``test.sh`` started is ours. One after that is tried once more; if it comes again while a control run
    (without the patch, or with the task's solution) completes, it is the submission's: reward 0, flagged.

    Raises:
        VerifierError: the fault is ours.
    """
    assert isinstance(environment, HarborEnvironment)
    started = time.monotonic()
    judging, patch = _Judging(task, environment, bench, submission), submission.patch
    first = await judging.run(patch)
    flags = list(first.flags)
    last = first
    if first.fault:
        flags.append("retried")
        last = await judging.run(patch)
        flags += [flag for flag in last.flags if flag not in flags]
        if last.fault:
            await judging.controlled(last)
            flags.append("broke_verifier")
    reward = 0.0 if last.fault or "reward_rewritten" in flags else last.rewards.reward or 0.0
    return Verdict(
        reward=reward,
        assurance=task.harbor.assurance,
        fail_to_pass=(int(reward == 1.0), 1),
        pass_to_pass=(0, 0),
        duration_s=time.monotonic() - started,
        flags=tuple(flags),
        digests=_digests(task, environment, patch),
        enforced=last.enforced,
        timings={"first": round(first.duration_s, 3)},
        rewards=dict(last.rewards.values),
        log=bench.blobs.put(bytes(last.log)),
    )


@dataclass
class _Judging:
    """One verification: runs in fresh containers, and the control runs that say whose a fault is."""

    task: HarborTask
    environment: HarborEnvironment
    bench: Bench
    submission: Submission

    @property
    def step(self) -> Step:
        return self.task.harbor.steps[self.submission.step]

    async def run(self, patch: Patch, *, solve: bool = False) -> Attempt:
        """Judge once, in a container of its own; a task that is judged in place has the agent's, but for control runs."""
        lock = f"verify-{secrets.token_hex(8)}"
        with self.bench.state.lock(lock):
            try:
                async with AsyncExitStack() as stack:
                    in_place = self.task.harbor.assurance == "in-place" and patch is self.submission.patch
                    trial = self.submission.trial if in_place else ""
                    course = Course(self.task, self.environment, self.bench, self.submission.step, lock, trial)
                    return await attempt(course, patch, stack, solve=solve)
            except SandboxError as error:
                raise VerifierError(f"No container for the verification of {self.task.id}: {error}") from error
            finally:
                (self.bench.state.private / "locks" / lock).unlink(missing_ok=True)

    async def controlled(self, broken: Attempt) -> None:
        """Return if a control run completes, so that the fault is the submission's.

        Raises:
            VerifierError: none completes.
        """
        control = await self.run(_EMPTY)
        if not control.fault:
            return
        if self.step.solution and not (await self.run(_EMPTY, solve=True)).fault:
            return
        hint = "" if self.step.solution else _UNSOLVED
        raise VerifierError(
            f"Verification of {self.task.id} broke ({broken.fault}), and so did the control runs ({control.fault}). Nothing was "
            f"scored.{hint} Look at the machine and its network (`seatrial doctor`), then submit again. Last lines:\n"
            + bytes(control.log[-600:]).decode(errors="replace").strip()
        )


def _digests(task: HarborTask, environment: HarborEnvironment, patch: Patch) -> Mapping[str, str]:
    return {
        "task": task.digest,
        "environment": environment.digest,
        "image": environment.image.id,
        "patch": patch.digest,
        "server": version("seatrial"),
    }
