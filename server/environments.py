"""Which backend a task runs on, and its environment there: found if it is built, built if it is not."""

from anyio import to_thread

from server import local_environments
from server.bench import Bench
from server.places import Environment, Report
from server.settings import Settings
from tasks.errors import SeaTrialError
from tasks.model import HarborTask, PytestTask, Task


class WrongBackendError(SeaTrialError):
    """The task cannot run on the backend that the settings ask for; the text says what to do."""


def on_docker(task: Task, settings: Settings) -> bool:
    """Say whether ``task`` runs on docker here, and not in the local sandbox.

    Raises:
        WrongBackendError: the settings ask for what cannot be.
    """
    if isinstance(task, HarborTask):
        if settings.sandbox == "local":
            raise WrongBackendError(
                f"{task.id} is a plain Harbor task: it brings a container image, so the local sandbox cannot run it. "
                "Use --sandbox docker or auto (SEATRIAL_SANDBOX)."
            )
        return True
    return settings.sandbox == "docker" or (settings.sandbox == "auto" and not settings.on_linux)


async def find_environment(task: Task, bench: Bench) -> Environment | None:
    """Return the environment of ``task`` if it is built, without building anything."""
    if on_docker(task, bench.settings):
        from server.docker_environments import find_environment as find  # loads the Docker SDK, which only Docker tasks need

        return await find(task, bench)
    assert isinstance(task, PytestTask)
    return await to_thread.run_sync(local_environments.find_environment, task, bench.settings, bench.state)


async def build_environment(task: Task, bench: Bench, report: Report) -> Environment:
    """Fetch and set up what ``task`` needs, ground truth included, unless it is built; ``report`` hears each stage.

    Raises:
        SeaTrialError: something cannot be fetched or set up; the text says what.
    """
    if on_docker(task, bench.settings):
        from server.docker_environments import build_environment as build

        return await build(task, bench, report)
    assert isinstance(task, PytestTask)
    return await local_environments.build_environment(task, bench.settings, bench.state, report)
