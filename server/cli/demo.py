"""`seatrial demo`: the bundled tasks, done by an agent that knows the answer and one that does nothing."""

from server.cli.display import write_json, write_line
from server.cli.runs import Finished, Wanted, as_data, play, unbuilt, write_scores
from tasks.catalog import load_catalog

EXPECTED = {"oracle": 1.0, "nop": 0.0}


def run_demo(*, as_json: bool) -> int:
    """Run the demo and print its table; 1 if a reward is not what it must be."""
    bundled = tuple(load_catalog().tasks)
    finished = play(Wanted(tuple(EXPECTED), bundled))
    good = as_expected(finished)
    if as_json:
        write_json(
            {
                "as_expected": good,
                "job": finished.job,
                "trials": [as_data(score) for score in finished.scores],
                **unbuilt(finished),
            }
        )
        return 0 if good else 1
    write_scores(finished)
    write_line(_GOOD if good else _BAD)
    return 0 if good else 1


def as_expected(finished: Finished) -> bool:
    """Whether every trial has the reward that its agent must get, and every task could be built."""
    return (
        bool(finished.scores)
        and not finished.not_built
        and all(score.reward == EXPECTED[score.run.agent] for score in finished.scores)
    )


_GOOD = """
As it must be: the oracle (it knows the answer) is scored 1.0, nop (it does nothing) 0.0.
Each trial went through a real MCP server, a fresh sandbox and a verification of its own.

Next: connect your agent    seatrial connect cline --print
      see the scores        seatrial results"""

_BAD = """
Not as it must be: the oracle should be scored 1.0 and nop 0.0 on every task.
`seatrial doctor` says what this machine cannot do; the lines above say what went wrong."""
