"""The arena of docker: containers of the environment's image, the patch and hidden tests put over it from outside.

The tests, and the folders they lie in, belong to root and the sticky bit keeps them in place: code under test runs as the
agent's uid and can neither change nor move what judges it.
"""

import io
import secrets
import tarfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from anyio import to_thread

from server.bench import Bench
from server.builds import OPT_ENV
from server.container_life import labels_of
from server.docker_builds import ENV, UID, USER, ReleaseEnvironment
from server.patches import Patch
from server.places import Environment
from server.sandboxes import containers
from server.sandboxes.base import CHANNEL, STDOUT, WORKDIR, Command, CommandResult, OnOutput, SandboxError
from server.sandboxes.daemon import Daemon, DockerError
from server.snapshots import find_truth
from server.tars import Member, packed
from server.verifiers.arenas import INSIDE, Died
from server.verifiers.base import VerifierError
from server.verifiers.patching import as_root, put_patch
from tasks.model import PytestTask

_CHANNEL = ["sh", "-c", 'exec 3>&1 1>&2; exec "$@"', "sh"]
_LOCKED = r"""
cd /workspace || exit 1
for path in "$@"; do
  while [ "$path" != . ]; do
    path=$(dirname "$path")
    [ -d "$path" ] && chown 0:0 "$path" && chmod 1777 "$path"
  done
done
"""


class DockerArena:
    """See `Arena`; made by `open_docker_arena`."""

    python, env, shell = f"{OPT_ENV}/bin/python", ENV, "/bin/bash"

    def __init__(self, task: PytestTask, environment: ReleaseEnvironment, bench: Bench, daemon: Daemon, lock: str) -> None:
        self._task, self._environment, self._bench, self._daemon, self._lock = task, environment, bench, daemon, lock
        self._patch, self._hidden = Patch(()), b""
        self.enforced: Mapping[str, str] = {}

    @property
    def digests(self) -> Mapping[str, str]:
        """See `Arena.digests`."""
        environment = self._environment
        return {"snapshot": environment.snapshot.digest, "environment": environment.digest, "toolchain": environment.base}

    async def prepare(self, patch: Patch) -> None:
        """See `Arena.prepare`."""
        self._patch = Patch(tuple(replace(one, path=f"{WORKDIR.strip('/')}/{one.path}") for one in patch.changes))
        truth = await to_thread.run_sync(find_truth, self._task.facts.solution, self._task.folder, self._bench.state)
        if truth is None:
            raise VerifierError(f"The ground truth of {self._task.id} is missing. Run `seatrial tasks build {self._task.id}`.")
        self._hidden = await to_thread.run_sync(_packed_truth, truth, self._owned())

    def _owned(self) -> list[PurePosixPath]:
        """Return what the ground truth owns: test folders whole, single files, conftest files above them."""
        facts = self._task.facts.verifier
        return [*facts.test_paths, *facts.protected, *(p / "conftest.py" for t in facts.test_paths for p in t.parents)]

    async def build(self, command: Command, take: OnOutput, *, patched: bool) -> CommandResult | None:
        """See `Arena.build`: what it made is made again before each run."""
        async with self._container(patched=patched) as container:
            return await self._execute(container, command, take, lambda _: None)

    async def run(
        self, command: Command, kit: Mapping[str, bytes], take: OnOutput, died: Died, *, patched: bool
    ) -> CommandResult | None:
        """See `Arena.run`."""
        async with self._container(patched=patched) as container:
            if patched and self._task.facts.verifier.build:
                build = replace(command, argv=[self.shell, "-ec", self._task.facts.verifier.build], env=ENV, cwd=WORKDIR)
                await self._execute(container, replace(build, channel=False, stdin=b""), take, died)
                await containers.kill(self._daemon, container)
                await containers.start(self._daemon, container)
            owned = [str(path) for path in self._owned()]
            await as_root(self._daemon, container, ["rm", "-rf", "--", *(f"{WORKDIR}/{path}" for path in owned)])
            await containers.put(self._daemon, container, WORKDIR, self._hidden)
            await as_root(self._daemon, container, ["sh", "-c", _LOCKED, "sh", *owned])
            inside = INSIDE.strip("/")
            members = [Member(f"{inside}/{name}", data) for name, data in kit.items()]
            await containers.put(self._daemon, container, "/", packed(members, folders=["opt", inside]))
            return await self._execute(container, command, take, died)

    @asynccontextmanager
    async def _container(self, *, patched: bool) -> AsyncGenerator[str]:
        name = f"seatrial-{self._lock}-{secrets.token_hex(4)}"
        spec = self._environment.spec(name, labels_of(self._bench, "verify", self._lock), user="0:0")
        try:
            container = await containers.create(self._daemon, spec)
            try:
                await containers.start(self._daemon, container)
                if patched:
                    await put_patch(self._daemon, container, self._patch, self._bench.blobs, (WORKDIR,), (UID, UID))
                self.enforced = {"network": "none", "memory": "cgroup", "processes": "cgroup", "cpu": "cgroup"}
                yield container
            finally:
                await containers.remove(self._daemon, container)
        except SandboxError as error:
            raise VerifierError(f"No container for the verification: {error}") from error

    async def _execute(self, container: str, command: Command, take: OnOutput, died: Died) -> CommandResult | None:
        def sorted_out(stream: int, data: bytes) -> None:
            take(CHANNEL if stream == STDOUT else STDOUT, data)

        try:
            return await containers.execute(
                self._daemon,
                container,
                [*_CHANNEL, *command.argv] if command.channel else command.argv,
                env=command.env,
                user=USER,
                cwd=command.cwd,
                timeout_s=command.timeout_s,
                on_output=sorted_out if command.channel else take,
                stdin=command.stdin,
            )
        except DockerError as error:
            died(str(error))
            return None


def _packed_truth(truth: Path, owned: list[PurePosixPath]) -> bytes:
    """Return a tar of what the ground truth has of ``owned``, root's and not writable by others."""
    stream = io.BytesIO()

    def roots(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in info.name or info.name.endswith(".pyc"):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode &= 0o755
        return info

    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in dict.fromkeys(owned):
            if (truth / path).exists() or (truth / path).is_symlink():
                tar.add(truth / path, str(path), filter=roots)
    return stream.getvalue()


@asynccontextmanager
async def open_docker_arena(task: PytestTask, environment: Environment, bench: Bench) -> AsyncGenerator[DockerArena]:
    """Yield an arena; its containers name a lock that is held while we live, so that whoever reaps knows."""
    assert isinstance(environment, ReleaseEnvironment)
    lock = f"verify-{secrets.token_hex(8)}"
    async with AsyncExitStack() as stack:
        held = bench.state.try_lock(lock)
        assert held is not None, "the name is new"
        stack.callback(bench.state.unlock, lock, held)
        yield DockerArena(task, environment, bench, await bench.docker.daemon(), lock)
