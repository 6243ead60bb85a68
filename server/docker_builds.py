"""Our own tasks on docker: an image of a base that the user names, the snapshot at ``/workspace`` and ``/opt/env`` set up.

Everything is fetched on the host, as for the local sandbox; the setup runs in a container without network, which is then
committed as the image. The tree belongs to the agent's uid, ``/opt/env`` to root.
"""

import hashlib
import io
import secrets
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread
from packaging.specifiers import SpecifierSet

from server.bench import Bench
from server.builds import AGENT_ENV, OPT_ENV, SETUP_TIMEOUT_S, BuildError, Log, kit_files, limits_of
from server.container_life import labels_of
from server.docker_places import DockerPlace, Plan
from server.downloads import fetch_wheels
from server.places import Place, Report
from server.sandboxes import containers
from server.sandboxes.base import WORKDIR, Limits
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon
from server.snapshots import Snapshot, build_snapshot, build_truth, find_snapshot, find_truth
from tasks.container import Network
from tasks.model import PytestTask

FORMAT = "1"
UID = 1000
USER = f"{UID}:{UID}"
PATH = f"{OPT_ENV}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
ENV: Mapping[str, str] = {**AGENT_ENV, "PATH": PATH, "SHELL": "/bin/bash"}
_PYTHON = "import sys; print('.'.join(map(str, sys.version_info[:3])))"


@dataclass(frozen=True)
class ReleaseEnvironment:
    """The image of a task of ours."""

    task: PytestTask
    digest: str
    image: str
    base: str
    snapshot: Snapshot
    present: bool = True

    def spec(self, name: str, labels: Mapping[str, str], user: str = USER) -> ContainerSpec:
        """Return a container of this environment: no network, the task's limits."""
        limits = limits_of(self.task)
        return ContainerSpec(self.image, name, labels, WORKDIR, user, ENV, limits, "none", entrypoint=())

    def place(self, name: str, limits: Limits, bench: Bench) -> Place:
        """See `Environment.place`."""
        spec = self.spec(f"seatrial-{name}", labels_of(bench, "workspace", f"trial-{name}"))
        return DockerPlace(Plan(spec, Network(mode="no-network"), (WORKDIR,), base=WORKDIR), bench)


async def find_release(task: PytestTask, bench: Bench) -> ReleaseEnvironment | None:
    """Return the environment of ``task`` if it is built on the base that the settings name."""
    base = await _base(bench)
    facts = task.facts
    snapshot = await to_thread.run_sync(find_snapshot, facts.snapshot, task.folder, bench.state)
    truth = await to_thread.run_sync(find_truth, facts.solution, task.folder, bench.state)
    if snapshot is None or truth is None:
        return None
    digest = _digest(task, snapshot, base)
    daemon = await bench.docker.daemon()
    image = await _image_id(daemon, _tag(task, digest))
    return ReleaseEnvironment(task, digest, image, base, snapshot) if image else None


async def build_release(task: PytestTask, bench: Bench, report: Report) -> ReleaseEnvironment:
    """Fetch and set up what ``task`` needs, and make its image.

    Raises:
        SeaTrialError: something cannot be had; the text says what.
    """
    if found := await find_release(task, bench):
        return found
    base, daemon, state = await _base(bench), await bench.docker.daemon(), bench.state
    report("fetching the repository")
    snapshot = await to_thread.run_sync(build_snapshot, task.facts.snapshot, task.folder, state, abandon_on_cancel=True)
    await to_thread.run_sync(build_truth, task.facts.solution, task.folder, state, abandon_on_cancel=True)
    digest, lock = _digest(task, snapshot, base), f"build-docker-{secrets.token_hex(8)}"
    spec = ContainerSpec(
        base, f"seatrial-{lock}", labels_of(bench, "build", lock), "/", "0:0", ENV, limits_of(task), entrypoint=()
    )
    held = state.try_lock(lock)
    assert held is not None, "the name is new"
    try:
        container = await containers.create(daemon, spec)
        try:
            await containers.start(daemon, container)
            await _set_up(_Setup(daemon, container, task, snapshot, bench, report))
            report("making the image")
            await containers.kill(daemon, container)
            repository, _, tag = _tag(task, digest).partition(":")
            await daemon.call(lambda api: api.commit(container, repository, tag, conf={"Labels": {"seatrial.task": task.id}}))
        finally:
            await containers.remove(daemon, container)
    finally:
        state.unlock(lock, held)
    image = await _image_id(daemon, _tag(task, digest))
    if not image:
        raise BuildError(f"Task {task.id}: the image that was just made is not there. Was it removed meanwhile?")
    report("ready")
    return ReleaseEnvironment(task, digest, image, base, snapshot)


@dataclass(frozen=True)
class _Setup:
    daemon: Daemon
    container: str
    task: PytestTask
    snapshot: Snapshot
    bench: Bench
    report: Report

    async def step(self, what: str, argv: Sequence[str], log: Log, env: Mapping[str, str] = ENV, cwd: str = "/") -> None:
        """Run one command of the setup, as root.

        Raises:
            BuildError: it failed.
        """
        result = await containers.execute(
            self.daemon, self.container, argv, env=env, user="0:0", cwd=cwd, timeout_s=SETUP_TIMEOUT_S, on_output=log.take
        )
        if result.exit_code != 0 or result.timed_out:
            raise BuildError(f"Task {self.task.id}: could not {what}. Last lines:\n{log.tail()}\nThe whole log: {log.path}")


async def _set_up(setup: _Setup) -> None:
    daemon, container, task, state = setup.daemon, setup.container, setup.task, setup.bench.state
    log = Log(state.private / "logs" / f"docker-{task.id}.log")
    await setup.step("find Python in the base image (SEATRIAL_DOCKER_BASE)", ["python3", "-I", "-c", _PYTHON], log)
    version = log.tail().strip().splitlines()[-1]
    if version not in SpecifierSet(task.facts.environment.python):
        raise BuildError(
            f"Task {task.id} needs Python {task.facts.environment.python}; the base image has {version}. "
            "Name another in SEATRIAL_DOCKER_BASE."
        )
    wheels: list[Path] = []
    if requirements := task.facts.environment.requirements:
        setup.report("fetching requirements")
        major, minor = (int(part) for part in version.split(".")[:2])
        wheels = await to_thread.run_sync(fetch_wheels, task.folder / requirements, (major, minor), state, abandon_on_cancel=True)
    setup.report(f"installing {len(wheels)} packages")
    await containers.put(daemon, container, "/", await to_thread.run_sync(_tree, setup.snapshot.tree, kit_files(task, wheels)))
    for what, argv in _steps(task, bool(wheels)):
        env = {**ENV, "PYTHONPATH": "/opt/kit/pip"} if "pip" in argv else ENV
        await setup.step(what, argv, log, env, WORKDIR if "/opt/kit/setup.sh" in argv else "/")
    await setup.step("make the agent's home", ["sh", "-c", f"mkdir -p /home/agent && chown {USER} /home/agent"], log)
    await setup.step("tidy up", ["rm", "-rf", "/opt/kit"], log)
    log.path.unlink(missing_ok=True)


def _steps(task: PytestTask, wheels: bool) -> list[tuple[str, list[str]]]:
    python, facts = f"{OPT_ENV}/bin/python", task.facts.environment
    steps = [("make a virtual environment", ["python3", "-I", "-m", "venv", "--without-pip", OPT_ENV])]
    if wheels:
        install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", "/opt/kit/wheels"]
        steps.append(("install the requirements", [*install, "--require-hashes", "-r", "/opt/kit/requirements.txt"]))
    if facts.pythonpath:
        lines = "\n".join(f"{WORKDIR}/{path}".rstrip("/.") for path in facts.pythonpath) + "\n"
        write = "import site, sys; open(site.getsitepackages()[0] + '/workspace.pth', 'w').write(sys.argv[1])"
        steps.append(("put the workspace on the path", [python, "-I", "-c", write, lines]))
    if facts.setup:
        steps.append(("run the task's setup", ["bash", "-e", "/opt/kit/setup.sh"]))
    return steps


def _tree(tree: Path, kit: Mapping[str, Path]) -> bytes:
    """Return a tar of the snapshot at /workspace, the agent's, and of the kit at /opt/kit, root's."""
    stream = io.BytesIO()

    def agents(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = UID
        info.uname = info.gname = ""
        return info

    def roots(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tree, WORKDIR.strip("/"), filter=agents)
        for name, source in kit.items():
            tar.add(source, f"opt/kit/{name}", filter=roots)
    return stream.getvalue()


async def _base(bench: Bench) -> str:
    """Return the id of the base image.

    Raises:
        BuildError: none is named, or the daemon does not have it.
    """
    name = bench.settings.docker_base
    if not name:
        raise BuildError(
            "On docker our own tasks are made from a base image with Python 3.11 or newer, git and bash. Name one: "
            "SEATRIAL_DOCKER_BASE=python:3.12 (docker pull python:3.12), or use --sandbox local."
        )
    daemon = await bench.docker.daemon()
    found = await _image_id(daemon, name)
    if not found:
        raise BuildError(f"The base image {name} (SEATRIAL_DOCKER_BASE) is not there. Run: docker pull {name}")
    return found


async def _image_id(daemon: Daemon, name: str) -> str:
    found = await daemon.find(lambda api: api.inspect_image(name))
    return str(found["Id"]) if found is not None else ""


def _tag(task: PytestTask, digest: str) -> str:
    return f"seatrial/{task.id.lower()}-env:{digest[:24]}"


def _digest(task: PytestTask, snapshot: Snapshot, base: str) -> str:
    facts = task.facts.environment
    files = [
        hashlib.sha256((task.folder / name).read_bytes()).hexdigest() if name else "-"
        for name in (facts.requirements, facts.setup)
    ]
    return hashlib.sha256("\n".join([FORMAT, snapshot.digest, base, repr(facts.pythonpath), *files]).encode()).hexdigest()
