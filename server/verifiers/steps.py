"""Tasks of several steps: whether the next is reached, and what all of them are worth together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from server.records import Verdict
from tasks.model import HarborTask, Task


def next_step(task: Task, step: int, verdict: Verdict) -> int | None:
    """Return the number of the step that follows ``step``; None if it was the last, or its reward was too low."""
    if not isinstance(task, HarborTask) or step + 1 >= len(task.harbor.steps):
        return None
    least = task.harbor.steps[step].min_reward
    reached = all(verdict.rewards.get(name, float("-inf")) >= value for name, value in least.items())
    return step + 1 if reached else None


def combined(task: Task, earlier: Sequence[Mapping[str, float]], last: Verdict) -> Verdict:
    """Return the verdict of a trial whose last step got ``last``; ``earlier`` are the rewards of the others.

    As in Harbor, ``mean`` is taken for each name over the steps that were judged, a missing name counting as 0.
    """
    if not earlier or not isinstance(task, HarborTask) or task.harbor.reward_strategy == "final":
        return last
    every = [*earlier, last.rewards]
    names = {name for rewards in every for name in rewards}
    means = {name: sum(rewards.get(name, 0.0) for rewards in every) / len(every) for name in sorted(names)}
    reward = means.get("reward", min(means.values(), default=0.0))
    return replace(last, reward=reward, rewards=means, fail_to_pass=(int(reward == 1.0), 1))


def is_last_in_fresh(task: Task, step: int) -> bool:
    """Say whether nothing of the workspace is needed any more once its patch is taken."""
    if not isinstance(task, HarborTask):
        return True
    return step + 1 == len(task.harbor.steps) and task.harbor.assurance != "in-place"


def step_news(task: HarborTask, number: int) -> str:
    """Return what an agent is told when it goes on with a step."""
    step = task.harbor.steps[number]
    return (
        f"step {number} of {len(task.harbor.steps)} was judged; go on with the next in the same workspace, then submit again."
        f"\n\n{step.instruction.strip()}\n\nYou have {step.agent_timeout_s / 60:.0f} minutes from now."
    )
