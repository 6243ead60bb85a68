"""Environments on docker: the image of a task, and the containers that workspaces and verifiers are made as."""

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from server.bench import Bench
from server.container_life import LOGS, ComposeError, Role, labels_of, spec_of
from server.docker_builds import build_release, find_release
from server.docker_places import DockerPlace, Plan
from server.images import Image, build_image, find_image
from server.places import Environment, Place, Report
from server.sandboxes.base import Limits
from server.tars import packed_folder
from tasks.container import ContainerFacts, Step
from tasks.errors import SeaTrialError
from tasks.model import HarborTask, PytestTask, Task

FORMAT = "1"

_UNCARRIED = ("/", "/proc", "/sys", "/dev", "/tests", "/solution", "/logs/verifier")


class WorkdirError(SeaTrialError):
    """A task's workdir cannot be told from what the verifier rests on."""


@dataclass(frozen=True)
class HarborEnvironment:
    """The images of a plain Harbor task; ``verifier`` by step, None where the agent's own image judges."""

    task: HarborTask
    image: Image
    verifiers: tuple[Image | None, ...]
    present: bool = True

    @property
    def digest(self) -> str:
        parts = (FORMAT, self.image.id, self.task.harbor.container.model_dump_json())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def workdir(self) -> str:
        return self.task.harbor.container.workdir or self.image.workdir

    def roots(self, step: Step) -> tuple[str, ...]:
        """Return the absolute paths that a submission of ``step`` consists of."""
        facts = self.task.harbor
        if facts.assurance == "in-place" and self.workdir == "/":
            return ()  # the machine itself: what differs says little, and is not carried anywhere
        artifacts = (one.source if one.source.startswith("/") else f"{self.workdir}/{one.source}" for one in step.artifacts)
        return tuple(dict.fromkeys([self.workdir, *artifacts, *map(str, facts.carry)]))

    def place(self, name: str, limits: Limits, bench: Bench) -> Place:
        """See `Environment.place`."""
        facts, first = self.task.harbor, self.task.harbor.steps[0]
        labels = labels_of(bench, "workspace", f"trial-{name}")
        network = first.network or facts.container.network
        spec = spec_of(facts.container, self.image, Role(f"seatrial-{name}", labels, network, str(self.task.folder)), bench)
        uploads = {
            number: packed_folder(self.task.folder / step.workdir_upload)
            for number, step in enumerate(facts.steps)
            if step.workdir_upload
        }
        roots = tuple(dict.fromkeys(root for step in facts.steps for root in self.roots(step)))
        folders = (*LOGS, *facts.container.service.folders)
        collect = tuple(one for step in facts.steps for one in step.verifier.collect)
        check = facts.container.healthcheck
        plan = Plan(spec, network, roots, folders, uploads, check, user=first.user, collect=collect)
        return DockerPlace(plan, bench)


async def find_environment(task: Task, bench: Bench) -> Environment | None:
    """Return the environment of ``task`` if the daemon has its images."""
    if isinstance(task, PytestTask):
        return await find_release(task, bench)
    assert isinstance(task, HarborTask)
    facts = task.harbor
    image = await find_image(task, facts.container.image, bench)
    verifiers: list[Image | None] = []
    for number, separate in enumerate(_separate(task)):
        found = await find_image(task, separate.image, bench, _role(number)) if separate is not None else None
        if separate is not None and found is None:
            return None
        verifiers.append(found)
    return _checked(HarborEnvironment(task, image, tuple(verifiers))) if image is not None else None


async def build_environment(task: Task, bench: Bench, report: Report) -> Environment:
    """Build or pull the images of ``task``.

    Raises:
        BuildError, DockerError: an image cannot be had.
        ComposeError, WorkdirError: the task cannot run here.
    """
    if isinstance(task, PytestTask):
        return await build_release(task, bench, report)
    assert isinstance(task, HarborTask)
    if task.harbor.container.compose:
        raise ComposeError(f"{task.id}: {task.harbor.container.compose} has more services than main; only main can be run here.")
    image = await build_image(task, task.harbor.container.image, bench, report)
    verifiers = [
        None if separate is None else await build_image(task, separate.image, bench, report, _role(number))
        for number, separate in enumerate(_separate(task))
    ]
    report("ready")
    return _checked(HarborEnvironment(task, image, tuple(verifiers)))


def _separate(task: HarborTask) -> tuple[ContainerFacts | None, ...]:
    return tuple(step.verifier.separate for step in task.harbor.steps)


def _role(number: int) -> str:
    return f"verifier{number}"


def _checked(environment: HarborEnvironment) -> HarborEnvironment:
    """Refuse what would be carried over what the verifier rests on."""
    task = environment.task
    if task.harbor.assurance == "in-place":
        return environment
    for step in task.harbor.steps:
        for root in environment.roots(step):
            for unseen in (*environment.image.volumes, *(one.partition(":")[0] for one in task.harbor.container.service.tmpfs)):
                if PurePosixPath(root).is_relative_to(unseen) or PurePosixPath(unseen).is_relative_to(root):
                    raise WorkdirError(
                        f"{task.folder}: {unseen} is a volume or tmpfs, so what changes there cannot be told from outside, and "
                        f"a submission would consist of {root}. Take VOLUME {unseen} out of the Dockerfile."
                    )
            if root.rstrip("/") in [path.rstrip("/") for path in _UNCARRIED]:
                raise WorkdirError(
                    f"{task.folder}: a submission would consist of {root}, so work and tampering could not be told apart. "
                    "Set environment.workdir (or WORKDIR in the Dockerfile) to the project's folder; or, for a task that is the "
                    'machine itself, set [metadata.seatrial.verifier] kind = "harbor", assurance = "in-place".'
                )
    return environment
