"""`seatrial results`: what the store holds, trial by trial or summed up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
    assurance: Sequence[str]

    @property
    def reward(self) -> float | None:
        return sum(self.rewards) / len(self.rewards) if self.rewards else None


def show_results(job: str | None, *, as_json: bool) -> int:
    """Print one job trial by trial, or a line for each thing that was compared, job by job.

    Raises:
        UnknownJobError: ``job`` is named and has no trial.
    """
    with open_store(open_state(Settings.from_environment()).private / "store.db") as store:
        records = store.trials(job=job)
        verdicts = ((record.id, store.verdict(record.id)) for record in records if record.reward is not None)
        assurance = {trial: verdict.assurance for trial, verdict in verdicts if verdict is not None}
    if job is not None and not records:
        raise UnknownJobError(job)
    means = summed(records, assurance)
    if as_json:
        write_json(
            {"trials": [_trial_data(record, assurance) for record in records], "means": [_mean_data(mean) for mean in means]}
        )
    elif not records:
        write_line("No trials yet. `seatrial demo` makes some; `seatrial connect cline --print` connects your agent.")
    else:
        for name in dict.fromkeys(mean.like.job for mean in means):
            write_line(f"job {name}" if name else "no job (joined by agents)")
            write_table(_MEAN_COLUMNS, [_mean_row(mean) for mean in means if mean.like.job == name])
            write_line()
        if job is not None:
            _write_trials(records)
    return 0


def _write_trials(records: Sequence[TrialRecord]) -> None:
    write_table(_TRIAL_COLUMNS, [_trial_row(record) for record in records])
    for record in records:
        if record.error:
            write_line(f"{record.id}: {record.error_class}: {record.error}")


def summed(records: Iterable[TrialRecord], assurance: Mapping[str, str]) -> tuple[Mean, ...]:
    """Return a mean for each kind of trial, in the order of their first; ``assurance`` is that of each judged trial."""
    kinds: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in records:
        key = (record.job, record.task, record.agent, record.model, record.surface, record.containment)
        kinds.setdefault(key, []).append(record)
    return tuple(_mean(trials, assurance) for trials in kinds.values())


def _mean(trials: Sequence[TrialRecord], assurance: Mapping[str, str]) -> Mean:
    rewards = [trial.reward for trial in trials if trial.state == "done" and trial.reward is not None]
    errors = sum(trial.state == "error" for trial in trials)
    tiers = sorted({assurance[trial.id] for trial in trials if trial.id in assurance})
    return Mean(trials[0], rewards, errors, len(trials) - len(rewards) - errors, tuple(tiers))


_MEAN_COLUMNS = ("task", "agent", "how", "scored", "errors", "live", "mean")
_TRIAL_COLUMNS = ("task", "agent", "#", "try", "ended by", "reward", "flags", "trial")


def _mean_row(mean: Mean) -> tuple[str, ...]:
    like = mean.like
    counts = (str(len(mean.rewards)), str(mean.errors), str(mean.unfinished))
    reward = "-" if mean.reward is None else f"{mean.reward:.2f}"
    return (like.task, _agent(like), ", ".join((like.surface, like.containment, *mean.assurance)), *counts, reward)


def _trial_row(record: TrialRecord) -> tuple[str, ...]:
    over = record.state in ("done", "error")
    reward = shown_reward(record.reward) if over else "-"
    ended = record.submitted_by or record.state
    numbers = (str(record.repetition), str(record.attempt))
    return (record.task, _agent(record), *numbers, ended, reward, " ".join(record.flags), record.id[:12])


def _agent(record: TrialRecord) -> str:
    return f"{record.agent} ({record.model})" if record.model else record.agent


def _trial_data(record: TrialRecord, assurance: Mapping[str, str]) -> dict[str, Any]:
    return {**asdict(record), "assurance": assurance.get(record.id, "")}


def _mean_data(mean: Mean) -> dict[str, Any]:
    like = mean.like
    return {
        "job": like.job,
        "task": like.task,
        "agent": like.agent,
        "model": like.model,
        "surface": like.surface,
        "containment": like.containment,
        "assurance": list(mean.assurance),
        "scored": len(mean.rewards),
        "errors": mean.errors,
        "unfinished": mean.unfinished,
        "mean_reward": mean.reward,
    }
