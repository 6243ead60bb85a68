"""Which verifier judges a task where."""

from server.bench import Bench
from server.local_environments import LocalEnvironment
from server.patches import Patch
from server.places import Environment
from server.records import Verdict
from server.verifiers import pytest
from tasks.model import HarborTask, PytestTask, Task


async def judge(task: Task, environment: Environment, patch: Patch, bench: Bench, step: int = 0) -> Verdict:
    """Judge ``patch``; for a Harbor task of several steps as the submission of that step.

    Raises:
        VerifierError: the fault is ours; nothing is scored.
    """
    if isinstance(task, HarborTask):
        from server.verifiers import harbor  # loads the Docker SDK, which only Docker tasks need

        return await harbor.verify(task, environment, patch, bench, step)
    assert isinstance(task, PytestTask)
    assert isinstance(environment, LocalEnvironment)
    return await pytest.verify(task, environment, patch, bench)
