"""How trials are summed up: errors and unfinished ones are no scores, and what differs is never averaged."""

from dataclasses import replace

from server.cli.results import summed
from server.records import TrialRecord

DONE = TrialRecord("1", "a-task", "0" * 64, "an-agent", 0, state="done", reward=1.0)


def test_errors_and_unfinished_trials_are_counted_but_not_averaged() -> None:
    failed = replace(DONE, id="2", reward=0.0)
    error = replace(DONE, id="3", state="error", reward=None)
    live = replace(DONE, id="4", state="open", reward=None)

    (mean,) = summed([DONE, failed, error, live], {"1": "basic", "2": "basic"})

    assert (mean.reward, mean.errors, mean.unfinished, mean.assurance) == (0.5, 1, 1, ("basic",))


def test_what_differs_is_never_averaged() -> None:
    changes = ({"containment": "sealed"}, {"surface": "native"}, {"model": "m"}, {"agent": "b"}, {"job": "j"}, {"task": "t"})
    others = [replace(DONE, id=str(number), **change) for number, change in enumerate(changes, 2)]  # type: ignore[arg-type]

    assert len(summed([DONE, *others], {})) == 1 + len(changes)


def test_only_errors_have_no_mean() -> None:
    (mean,) = summed([replace(DONE, state="error", reward=None)], {})

    assert mean.reward is None
