"""What a plain Harbor task says: its container, its phases, its verifier. Frozen facts with every default filled in.

The format is Harbor's (https://github.com/laude-institute/harbor, schema 1.0 to 1.4); `tasks.harbor` reads it. Times are
seconds, sizes MiB. Values of ``env`` may hold ``${VAR}`` and ``${VAR:-default}``, resolved when a container starts.
"""

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field

from tasks.facts import Facts, ResourceLimits

NetworkMode = Literal["public", "no-network", "allowlist"]


class Network(Facts):
    """What a container may reach. ``allowed_hosts`` (names, ``*.suffix``, addresses, CIDR ranges) only for ``allowlist``."""

    mode: NetworkMode = "public"
    allowed_hosts: tuple[str, ...] = ()


class Healthcheck(Facts):
    """A shell command that exits with 0 once the container is ready (Docker's HEALTHCHECK semantics)."""

    command: str
    interval_s: float = 5
    timeout_s: float = 30
    start_period_s: float = 0
    start_interval_s: float = 5
    retries: int = 3


class Artifact(Facts):
    """A file or folder of the container that is kept, and carried to a fresh verifier."""

    source: str
    destination: str = ""
    exclude: tuple[str, ...] = ()


class Collect(Facts):
    """A command run in the agent's container when the agent is done, before artifacts are taken."""

    command: str
    timeout_s: float = 60
    user: str = ""


class ImageFacts(Facts):
    """Where an image comes from: ``docker_image``, else the Dockerfile in ``context`` (relative to the task folder)."""

    docker_image: str = ""
    context: str = "environment"
    dockerfile: str = "Dockerfile"
    """Relative to ``context``."""
    target: str = ""
    args: dict[str, str] = Field(default_factory=dict)
    platform: str = ""
    build_timeout_s: float = 600


class Service(Facts):
    """What a docker-compose.yaml says of ``main``, as far as it is more than the image."""

    command: tuple[str, ...] = ()
    """Empty: sleep for ever, as Harbor does."""
    entrypoint: tuple[str, ...] | None = None
    user: str = ""
    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    """Targets of volumes of Harbor's log paths: made as plain folders of the container."""
    shm_bytes: int = 0
    extra_hosts: dict[str, str] = Field(default_factory=dict)
    hostname: str = ""


class ContainerFacts(Facts):
    """One container: image, limits, network. ``compose`` names a file with more services, for the ``docker compose`` CLI."""

    image: ImageFacts = ImageFacts()
    service: Service = Service()
    env: dict[str, str] = Field(default_factory=dict)
    workdir: str = ""
    """Empty: the image's own."""
    network: Network = Network()
    limits: ResourceLimits = ResourceLimits()
    healthcheck: Healthcheck | None = None
    compose: str = ""


class VerifierSpec(Facts):
    """How a submission is judged by ``tests/test.sh``.

    ``separate`` is None for the agent's own image (tier ``compat``), else the container that the verifier has for
    itself, which only gets the artifacts. ``tests_in_image`` says that this container's image brings ``/tests`` with it.
    """

    timeout_s: float = 600
    env: dict[str, str] = Field(default_factory=dict)
    user: str = ""
    network: Network | None = None
    """None: that of the container."""
    separate: ContainerFacts | None = None
    tests_in_image: bool = False
    collect: tuple[Collect, ...] = ()


class Step(Facts):
    """One step of a task, the only one (``name`` empty) where the task has no ``steps``.

    ``tests`` are folders of the task folder laid over each other at ``/tests``, the last on top; ``script`` is the path of the
    test script below ``/tests``. ``solution`` is the folder with ``solve.sh``, empty if there is none.
    """

    name: str = ""
    instruction: str
    agent_timeout_s: float
    user: str = ""
    network: Network | None = None
    verifier: VerifierSpec = VerifierSpec()
    tests: tuple[str, ...] = ("tests",)
    script: str = "test.sh"
    solution: str = ""
    workdir_upload: str = ""
    """A folder of the task folder whose content is put into the workdir when the step begins."""
    min_reward: dict[str, float] = Field(default_factory=dict)
    """By reward name: below it the later steps are not reached."""
    healthcheck: Healthcheck | None = None
    artifacts: tuple[Artifact, ...] = ()
    """The task's own included."""


class HarborFacts(Facts):
    """Everything a plain Harbor task says that we act on. There is at least one step."""

    schema_version: str
    container: ContainerFacts
    steps: tuple[Step, ...] = Field(min_length=1)
    solution_env: dict[str, str] = Field(default_factory=dict)
    reward_strategy: Literal["mean", "final"] = "mean"
    carry: tuple[PurePosixPath, ...] = ()
    """Absolute paths beside the workdir and the artifacts that a submission consists of (``[metadata.seatrial.verifier]``)."""
    assurance: Literal["compat", "in-place"] = "compat"
