"""Which verifier judges a task where."""

from server.bench import Bench
from server.local_environments import LocalEnvironment
from server.places import Environment
from server.records import Verdict
from server.verifiers import pytest
from server.verifiers.base import Submission
from server.verifiers.local_arena import open_local_arena
from tasks.model import HarborTask, PytestTask, Task


async def judge(task: Task, environment: Environment, submission: Submission, bench: Bench) -> Verdict:
    """Judge a submission.

    Raises:
        VerifierError: the fault is ours; nothing is scored.
    """
    if isinstance(task, HarborTask):
        from server.verifiers import harbor  # loads the Docker SDK, which only Docker tasks need

        return await harbor.verify(task, environment, submission, bench)
    assert isinstance(task, PytestTask)
    if isinstance(environment, LocalEnvironment):
        with open_local_arena(task, environment, bench) as arena:
            return await pytest.verify(task, arena, submission.patch, bench)
    from server.verifiers.docker_arena import open_docker_arena

    async with open_docker_arena(task, environment, bench) as fresh:
        return await pytest.verify(task, fresh, submission.patch, bench)
