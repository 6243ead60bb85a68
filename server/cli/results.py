"""`seatrial results`: what the store holds, trial by trial or summed up."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from server.cli.display import shown_reward, write_json, write_line, write_table
from server.records import TrialRecord
from server.settings import Settings
from server.state import open_state
from server.store import open_store
from tasks.errors import SeaTrialError


class UnknownJobError(SeaTrialError):
    """No trial belongs to this job."""

    def __init__(self, job: str) -> None:
        super().__init__(f"No trial belongs to job {job!r}. `seatrial results` lists the jobs.")


@dataclass(frozen=True)
class Mean:
    """Trials that may be averaged: same job, task, agent, model, tools and containment. Errors and open trials do not count."""

    like: TrialRecord
    rewards: Sequence[float]
    errors: int
    unfinished: int

    @property
    def reward(self) -> float | None:
        return sum(self.rewards) / len(self.rewards) if self.rewards else None


def show_results(job: str | None, *, as_json: bool) -> int:
    """Print one job trial by trial, or a line for each thing that was compared.

    Raises:
        UnknownJobError: ``job`` is named and has no trial.
    """
    with open_store(open_state(Settings.from_environment()).private / "store.db") as store:
        records = store.trials(job=job)
    if job is not None and not records:
        raise UnknownJobError(job)
    means = summed(records)
    if as_json:
        write_json({"trials": [_trial_data(record) for record in records], "means": [_mean_data(mean) for mean in means]})
    elif not records:
        write_line("No trials yet. `seatrial demo` makes some; `seatrial connect cline --print` connects your agent.")
    elif job is None:
        write_table(_MEAN_COLUMNS, [_mean_row(mean) for mean in means])
    else:
        write_table(_TRIAL_COLUMNS, [_trial_row(record) for record in records])
        for record in records:
            if record.error:
                write_line(f"{record.id}: {record.error_class}: {record.error}")
    return 0


def summed(records: Iterable[TrialRecord]) -> tuple[Mean, ...]:
    """Return a mean for each kind of trial, in the order of their first."""
    kinds: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in records:
        key = (record.job, record.task, record.agent, record.model, record.surface, record.containment)
        kinds.setdefault(key, []).append(record)
    return tuple(_mean(trials) for trials in kinds.values())


def _mean(trials: Sequence[TrialRecord]) -> Mean:
    rewards = [trial.reward for trial in trials if trial.state == "done" and trial.reward is not None]
    errors = sum(trial.state == "error" for trial in trials)
    return Mean(trials[0], rewards, errors, len(trials) - len(rewards) - errors)


_MEAN_COLUMNS = ("job", "task", "agent", "model", "tools", "containment", "scored", "errors", "unfinished", "mean reward")
_TRIAL_COLUMNS = ("trial", "started", "task", "agent", "#", "attempt", "tools", "containment", "state", "by", "reward", "flags")


def _mean_row(mean: Mean) -> tuple[str, ...]:
    like = mean.like
    counts = (str(len(mean.rewards)), str(mean.errors), str(mean.unfinished))
    reward = "-" if mean.reward is None else f"{mean.reward:.2f}"
    return (like.job or "-", like.task, like.agent, like.model or "-", like.surface, like.containment, *counts, reward)


def _trial_row(record: TrialRecord) -> tuple[str, ...]:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created_at))
    reward = shown_reward(record.reward) if record.state in ("done", "error") else "-"
    numbers = (str(record.repetition), str(record.attempt))
    kind = (record.surface, record.containment, record.state, record.submitted_by or "-")
    return (record.id, started, record.task, record.agent, *numbers, *kind, reward, " ".join(record.flags))


def _trial_data(record: TrialRecord) -> dict[str, Any]:
    return asdict(replace(record, timings={name: round(seconds, 3) for name, seconds in record.timings.items()}))


def _mean_data(mean: Mean) -> dict[str, Any]:
    like = mean.like
    return {
        "job": like.job,
        "task": like.task,
        "agent": like.agent,
        "model": like.model,
        "surface": like.surface,
        "containment": like.containment,
        "scored": len(mean.rewards),
        "errors": mean.errors,
        "unfinished": mean.unfinished,
        "mean_reward": mean.reward,
    }
