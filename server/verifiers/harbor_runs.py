"""One run of a Harbor verifier: a fresh container, the submission put over it, ``test.sh``, and what it left."""

import tarfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import anyio

from server.bench import Bench
from server.container_life import LOGS, Role, healthy, labels_of, networked, spec_of
from server.docker_environments import HarborEnvironment
from server.patches import Patch
from server.sandboxes import containers
from server.sandboxes.base import CommandResult, PathError, SandboxDiedError
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError
from server.tars import packed, packed_folder, unpacked
from server.verifiers.base import VerifierError
from server.verifiers.patching import as_root, put_patch
from server.verifiers.rewards import Rewards, read_rewards
from tasks.container import Network, Step
from tasks.model import HarborTask
from tasks.templates import resolved

_LOG_BYTES = 256 << 10
_REWARD_FILES_BYTES = 8 << 20
_GRACE_S = 1.0
"""How long processes that outlive ``test.sh`` are watched for writing a reward of their own."""
_SETUP_S = 300.0
_LOG, _MAX_LOG_BYTES = "/logs/verifier/test-stdout.txt", 64 << 20


@dataclass
class Course:
    """What a run works with. ``lock`` is held by whoever runs it, and named in the container's labels.

    ``trial`` names the trial whose own container is judged in place; empty for a fresh one.
    """

    task: HarborTask
    environment: HarborEnvironment
    bench: Bench
    number: int
    lock: str
    trial: str = ""

    @property
    def step(self) -> Step:
        return self.task.harbor.steps[self.number]

    @property
    def roots(self) -> tuple[str, ...]:
        """What the container gets of a submission: of a separate one the workdir is no part."""
        roots, separate = self.environment.roots(self.step), self.step.verifier.separate
        return roots if separate is None else tuple(root for root in roots if root != self.environment.workdir)

    @property
    def network(self) -> Network:
        verifier = self.step.verifier
        return verifier.network or (verifier.separate or self.task.harbor.container).network


@dataclass
class Attempt:
    """How a run went. ``fault`` says why it has no reward; it came after ``test.sh`` had started."""

    rewards: Rewards = field(default_factory=lambda: Rewards({}))
    fault: str = ""
    flags: tuple[str, ...] = ()
    log: bytearray = field(default_factory=bytearray)
    duration_s: float = 0
    enforced: Mapping[str, str] = field(default_factory=dict)

    def take(self, _: int, data: bytes) -> None:
        """Keep the beginning of what is printed."""
        if len(self.log) < _LOG_BYTES:
            self.log += data


async def attempt(course: Course, patch: Patch, stack: AsyncExitStack, *, solve: bool) -> Attempt:
    """Judge ``patch`` once; with ``solve`` the task's own solution is run over it first.

    Raises:
        DockerError, SandboxError: it could not be begun.
        VerifierError: the container could not be made ready.
    """
    started, run = time.monotonic(), Attempt()
    daemon = await course.bench.docker.daemon()
    spec = _spec(course)
    if course.trial:
        container = f"seatrial-{course.trial}"
    else:
        container = await containers.create(daemon, spec)
        stack.push_async_callback(containers.remove, daemon, container)
    await containers.start(daemon, container)
    egress = await stack.enter_async_context(networked(course.network, container, spec, course.bench))
    check = course.task.harbor.container.healthcheck
    if course.step.verifier.separate is not None:
        check = course.step.verifier.separate.healthcheck
    if check is not None:
        await healthy(daemon, container, check, spec.workdir)
    if not course.trial:
        ids = await _ids(daemon, container, course.step.user or spec.user)
        await put_patch(daemon, container, patch, course.bench.blobs, course.roots, ids)
    if solve:
        await _solve(daemon, container, spec, course, run)
    await _lay_out(daemon, container, course)
    before = await _processes(daemon, container)
    run.enforced = {"network": course.network.mode, "memory": "cgroup", "processes": "cgroup", "cpu": "cgroup"}
    try:
        await _judge(daemon, container, spec, course, run, egress)
        if not run.fault or run.rewards.fault:
            await _outlived(daemon, container, run, before)
    except (DockerError, SandboxDiedError, PathError, VerifierError, tarfile.TarError) as error:
        run.fault = f"the container broke: {error}"
    run.duration_s = time.monotonic() - started
    return run


def _spec(course: Course) -> ContainerSpec:
    environment, separate = course.environment, course.step.verifier.separate
    role = Role(
        f"seatrial-{course.lock}", labels_of(course.bench, "verify", course.lock), course.network, str(course.task.folder)
    )
    if separate is None:
        return spec_of(course.task.harbor.container, environment.image, role, course.bench)
    image = environment.verifiers[course.number]
    assert image is not None, "an environment has the image of every separate verifier"
    return spec_of(separate, image, role, course.bench)


async def _ids(daemon: Daemon, container: str, user: str) -> tuple[int, int]:
    said = bytearray()
    await containers.execute(
        daemon,
        container,
        ["sh", "-c", "id -u; id -g"],
        env={},
        user=user,
        cwd="/",
        timeout_s=_SETUP_S,
        on_output=lambda _, data: said.extend(data),
    )
    numbers = [int(word) for word in said.split() if word.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


async def _lay_out(daemon: Daemon, container: str, course: Course) -> None:
    """Make /tests, /solution and the log folders anew, then put the tests in."""
    in_image = course.step.verifier.tests_in_image
    wiped = ["/logs/verifier", "/solution", *([] if in_image else ["/tests"])]
    await as_root(daemon, container, ["rm", "-rf", "--", *wiped])
    made = packed((), folders=["tests", "logs"]) if not in_image else packed((), folders=["logs"])
    await containers.put(daemon, container, "/", made)
    await containers.put(daemon, container, "/", packed((), folders=[path.strip("/") for path in LOGS], folder_mode=0o777))
    if not in_image:
        for folder in course.step.tests:
            await containers.put(daemon, container, "/tests", packed_folder(course.task.folder / folder))
        await as_root(daemon, container, ["chmod", "+x", f"/tests/{course.step.script}"])


async def _solve(daemon: Daemon, container: str, spec: ContainerSpec, course: Course, run: Attempt) -> None:
    """Run the task's own solution as its author does."""
    tar = packed_folder(course.task.folder / course.step.solution, "solution")
    await containers.put(daemon, container, "/", tar)
    await as_root(daemon, container, ["chmod", "-R", "a+rX", "/solution"])
    env = resolved(course.task.harbor.solution_env, course.bench.settings.variables, "solution.env")
    await containers.execute(
        daemon,
        container,
        ["sh", "-c", '[ -x "$0" ] || exec bash "$0"; exec "$0"', "/solution/solve.sh"],
        env=env,
        user=course.step.user,
        cwd=spec.workdir,
        timeout_s=course.step.agent_timeout_s,
        on_output=run.take,
    )


async def _judge(
    daemon: Daemon, container: str, spec: ContainerSpec, course: Course, run: Attempt, egress: Mapping[str, str]
) -> None:
    """Run ``test.sh`` and take its reward; note in ``run`` what went wrong."""
    verifier = course.step.verifier
    env = resolved(verifier.env, course.bench.settings.variables, "verifier.env")
    result = await containers.execute(
        daemon,
        container,
        ["sh", "-c", f'"$0" >{_LOG} 2>&1', f"/tests/{course.step.script}"],
        env={**env, **egress},
        user=verifier.user,
        cwd=spec.workdir,
        timeout_s=verifier.timeout_s,
        on_output=run.take,
    )
    run.fault = _ended(result)
    await _take_log(daemon, container, run)
    if run.fault:
        return
    run.rewards = read_rewards(await _reward_files(daemon, container))
    run.fault = run.rewards.fault


async def _outlived(daemon: Daemon, container: str, run: Attempt, before: frozenset[str]) -> None:
    """Look at what ``test.sh`` left running: it may be a service, but must not write rewards."""
    if await _processes(daemon, container) <= before:
        return
    run.flags = ("processes_left",)
    if await _rewritten(daemon, container):
        run.flags, run.fault = ("processes_left", "reward_rewritten"), ""


async def _processes(daemon: Daemon, container: str) -> frozenset[str]:
    """Return the processes of a container, by the numbers that the daemon's machine gives them."""
    found = await daemon.call(lambda api: api.top(container))
    column = found["Titles"].index("PID")
    return frozenset(process[column] for process in found["Processes"])


async def _take_log(daemon: Daemon, container: str, run: Attempt) -> None:
    """Keep what ``test.sh`` printed. It went to a file, as with Harbor: a pipe would stay open with what it left running."""
    try:
        data = await containers.get(daemon, container, _LOG, _MAX_LOG_BYTES)
    except DockerError as error:
        run.take(0, f"(what test.sh printed cannot be read: {error})\n".encode())
        return
    for _, member in unpacked(data or packed(())):
        run.take(0, member.data[:_LOG_BYTES] if member is not None and not member.link else b"(no regular file)\n")


def _ended(result: CommandResult) -> str:
    if result.timed_out:
        return f"test.sh was not over after {result.duration_s:.0f} s"
    return f"test.sh was killed by signal {-result.exit_code}" if result.exit_code < 0 else ""


async def _reward_files(daemon: Daemon, container: str) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    for name in ("reward.json", "reward.txt"):
        data = await containers.get(daemon, container, f"/logs/verifier/{name}", _REWARD_FILES_BYTES)
        if data is None:
            continue
        members = [member for _, member in unpacked(data)]
        found[name] = members[0].data if len(members) == 1 and members[0] is not None and not members[0].link else None
    return found


async def _rewritten(daemon: Daemon, container: str) -> bool:
    """Say whether something that outlived ``test.sh`` writes rewards: they are taken away, and must stay away."""
    names = [f"/logs/verifier/{name}" for name in ("reward.json", "reward.txt")]
    await as_root(daemon, container, ["rm", "-rf", "--", *names])
    await anyio.sleep(_GRACE_S)
    return bool(await _reward_files(daemon, container))
