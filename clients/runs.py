"""Many trials of reference agents at once; what they are worth is read from the server's record, never from their text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio

from clients.scripted import Launch, Script, TrialPlan, TrialRun, play_trial
from server.records import TrialRecord, Verdict

OnStage = Callable[[TrialPlan, str], None]
OnEnd = Callable[[TrialPlan, TrialRun], None]


class Records(Protocol):
    """The part of `server.store.Store` that scores are read from."""

    def find_trial(self, trial: str) -> TrialRecord | None: ...
    def verdict(self, trial: str) -> Verdict | None: ...


@dataclass(frozen=True)
class Score:
    """One trial: how it ran, and what the server wrote about it."""

    run: TrialRun
    record: TrialRecord | None
    verdict: Verdict | None

    @property
    def reward(self) -> float | None:
        """1.0, 0.0, or None where there is no verdict: an error is not a score."""
        return None if self.verdict is None else self.verdict.reward

    @property
    def error(self) -> str:
        """What kept the trial from a score, empty if it has one."""
        if self.verdict is not None:
            return ""
        if self.record is not None and self.record.error:
            return self.record.error
        return self.run.error or "The server recorded no verdict."


@dataclass(frozen=True)
class Work:
    """One task for reference agents: its id, and what the oracle does, step by step."""

    task: str
    script: Sequence[Script]


def plans(work: Sequence[Work], agents: Sequence[str], *, repetitions: int, job: str) -> Iterator[TrialPlan]:
    """Yield every trial: task by task, agent by agent, repetitions last."""
    for item in work:
        for agent in agents:
            script = item.script if agent == "oracle" else ()
            for repetition in range(1, repetitions + 1):
                yield TrialPlan(item.task, agent, job, f"{item.task}/{agent}", repetition, script)


async def run_trials(
    planned: Sequence[TrialPlan], launch: Launch, *, concurrency: int, on_stage: OnStage, on_end: OnEnd
) -> tuple[TrialRun, ...]:
    """Run all of ``planned``, at most ``concurrency`` at once, and return them in the same order."""
    runs: dict[int, TrialRun] = {}
    places = anyio.Semaphore(concurrency)

    async def run_one(index: int, plan: TrialPlan) -> None:
        async with places:
            runs[index] = await play_trial(plan, launch, lambda stage: on_stage(plan, stage))
        on_end(plan, runs[index])

    async with anyio.create_task_group() as group:
        for index, plan in enumerate(planned):
            group.start_soon(run_one, index, plan)
    return tuple(runs[index] for index in range(len(planned)))


def scores(records: Records, runs: Sequence[TrialRun]) -> tuple[Score, ...]:
    """Return what the server recorded of ``runs``, in their order."""
    return tuple(
        Score(run, records.find_trial(run.trial) if run.trial else None, records.verdict(run.trial) if run.trial else None)
        for run in runs
    )
