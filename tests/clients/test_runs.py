"""Many trials at once: bounded, in order, and scored by the record alone."""

import sys

import anyio
import pytest

from clients.runs import Score, Work, plans, run_trials, scores
from clients.scripted import Launch, TrialPlan, TrialRun
from server.records import TrialRecord, Verdict


class Records:
    """What a store would answer."""

    def __init__(self, records: dict[str, TrialRecord], verdicts: dict[str, Verdict]) -> None:
        self._records, self._verdicts = records, verdicts

    def find_trial(self, trial: str) -> TrialRecord | None:
        return self._records.get(trial)

    def verdict(self, trial: str) -> Verdict | None:
        return self._verdicts.get(trial)


def score_of(run: TrialRun, record: TrialRecord | None = None, verdict: Verdict | None = None) -> Score:
    records = Records({run.trial: record} if record else {}, {run.trial: verdict} if verdict else {})
    return scores(records, [run])[0]


def test_trials_are_planned_task_by_task_and_only_the_oracle_is_told_the_change() -> None:
    change = object()

    planned = list(plans([Work("a", [change]), Work("b", [])], ["oracle", "nop"], repetitions=2, job="j"))  # type: ignore[list-item]

    assert [(plan.task, plan.agent, plan.repetition) for plan in planned] == [
        (task, agent, repetition) for task in "ab" for agent in ("oracle", "nop") for repetition in (1, 2)
    ]
    assert {plan.agent for plan in planned if plan.script} == {"oracle"}


@pytest.mark.anyio
async def test_trials_that_cannot_start_do_not_stop_the_others_and_the_order_stays() -> None:
    planned = [TrialPlan("a-task", "nop", repetition=number) for number in range(1, 6)]
    ended: list[int] = []

    with anyio.fail_after(60):
        runs = await run_trials(
            planned,
            Launch((sys.executable, "-c", "raise SystemExit('no server here')"), {}),
            concurrency=2,
            on_stage=lambda plan, stage: None,
            on_end=lambda plan, run: ended.append(plan.repetition),
        )

    assert [run.repetition for run in runs] == [1, 2, 3, 4, 5]
    assert sorted(ended) == [1, 2, 3, 4, 5]
    assert all("no server here" in run.error for run in runs)


def test_what_an_agent_was_answered_is_no_score() -> None:
    score = score_of(TrialRun("a-task", "nop", 1, trial="t", answer="resolved\nwell done"))

    assert score.reward is None
    assert score.error == "The server recorded no verdict."


def test_an_error_of_the_server_is_told_before_that_of_the_agent() -> None:
    record = TrialRecord("t", "a-task", "0" * 64, "nop", 0, state="error", error_class="SandboxDiedError", error="it died")

    score = score_of(TrialRun("a-task", "nop", 1, trial="t", error="submit answered: error"), record)

    assert (score.reward, score.error) == (None, "it died")


def test_the_reward_is_the_verdicts() -> None:
    score = score_of(TrialRun("a-task", "nop", 1, trial="t", answer="resolved"), None, Verdict(0.0, "basic", (0, 1), (1, 1), 1.0))

    assert (score.reward, score.error) == (0.0, "")
