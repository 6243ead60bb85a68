"""The Docker sandbox: a container, and shells kept alive in it (see `lanes`), through which everything is done.

Docker cannot keep standard output and error apart *and* in order, so a command's output is one stream, exactly in order.
A shell tells the death of a program by a signal as 128+n; so does the result: a program that ends by itself with such a
number is taken for killed. Commands have the user of the shells: nothing they print is to be believed (verifiers use `execute`).
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from server.sandboxes import containers
from server.sandboxes.base import (
    CHANNEL,
    STDERR,
    STDOUT,
    Command,
    CommandResult,
    FileData,
    Listing,
    OnOutput,
    SandboxDiedError,
    SandboxError,
)
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.lanes import refusal
from server.sandboxes.pool import Pool
from server.sandboxes.shell import quoted, running
from server.sandboxes.trees import Walk

logger = logging.getLogger(__name__)

_WATCH_S = 10.0
_WATCH_SHARE = 20
_APART = ("sh", "-c", 'exec 3>&1 1>&2; exec "$@"', "sh")


class DockerSandbox:
    """A running container; made by `open_sandbox` only."""

    def __init__(self, daemon: Daemon, container_id: str, spec: ContainerSpec, pool: Pool) -> None:
        self._daemon = daemon
        self._spec = spec
        self._pool = pool
        self._first = 0
        self._kills = pool.kills
        self.container_id = container_id
        self.workdir = pool.workdir
        self.shell = pool.shell
        self.user = spec.user or pool.user
        self.enforced: Mapping[str, str] = _enforced(spec, daemon.limits_storage)

    @property
    def dead(self) -> str:
        """Why the sandbox is over, or nothing while it lives."""
        return self._pool.died

    async def run(self, command: Command, on_output: OnOutput) -> CommandResult:
        """See `Sandbox.run`. ``env`` is laid over the container's own."""
        await self._begin()
        if command.channel:
            return await self._run_apart(command, on_output)
        started = anyio.current_time()
        timed_out, code = False, -9
        async with self._pool.lane() as (lane, request):
            request.on_output = on_output
            stdin = command.stdin[:49_152]
            script = running(request.nonce, self._path(command.cwd), command.env, command.argv, stdin)
            try:
                with anyio.move_on_after(command.timeout_s) as scope:
                    await lane.ask(request, script)
                    await request.done.wait()
                timed_out = scope.cancelled_caught
            finally:
                if not request.done.is_set():
                    await self._pool.stop(lane, request)
        if request.end is None:
            await self._pool.ended()  # returns if the container lives: then the command has killed its own shell
            on_output(STDERR, bytes(lane.last_words))
            return CommandResult(-9, anyio.current_time() - started, timed_out)
        if refused := refusal(request, ""):
            raise refused
        code, _, kills = request.end
        lost, self._kills = kills > self._kills, max(kills, self._kills)
        return CommandResult(_signalled(code), anyio.current_time() - started, timed_out, lost)

    async def _begin(self) -> None:
        """Note, before the first command, how old everything that belongs to the image is."""
        if self._pool.died:
            raise SandboxDiedError(self._pool.died)
        if not self._first:
            ticks = await self._pool.answer(b"read -r up _ </proc/uptime; echo ${up%.*}${up#*.}")
            self._first = self._first or int(ticks or b"1")

    async def _run_apart(self, command: Command, on_output: OnOutput) -> CommandResult:
        streams = {STDOUT: CHANNEL, STDERR: STDOUT}
        try:
            return await containers.execute(
                self._daemon,
                self.container_id,
                [*_APART, *command.argv],
                env=command.env,
                user=self._spec.user,
                cwd=self._path(command.cwd),
                timeout_s=command.timeout_s,
                on_output=lambda stream, data: on_output(streams.get(stream, STDOUT), data),
                stdin=command.stdin,
            )
        except DockerError:
            await self._pool.ended()
            raise

    def _path(self, path: str) -> str:
        return path if path.startswith("/") else f"{self.workdir.rstrip('/')}/{path}" if path not in ("", ".") else self.workdir

    async def read(self, path: str, start: int, size: int) -> FileData:
        """See `Sandbox.read`."""
        at = quoted(self._path(path))
        said = await self._pool.answer(b"_st_read %s %d %d" % (at, start + 1, size), path)
        length, _, data = said.partition(b"\n")
        return FileData(data[:size], int(length))

    async def write(self, path: str, data: bytes) -> None:
        """See `Sandbox.write`."""
        await self._pool.write(self._path(path), path, data)

    async def list(self, path: str, depth: int, limit: int) -> Listing:
        """See `Sandbox.list`."""

        async def look(folder: bytes) -> bytes:
            return await self._pool.answer(b"_st_ls " + quoted(folder), path)

        return await Walk(look, limit).listing(self._path(path), depth)

    async def sweep(self) -> None:
        """See `Sandbox.sweep`. What the image itself started is left alone."""
        if self._pool.died:
            raise SandboxDiedError(self._pool.died)
        if self._first:
            await self._pool.sweep(self._first)


def _signalled(code: int) -> int:
    return 128 - code if 128 < code <= 192 else code


def _enforced(spec: ContainerSpec, sized: bool) -> dict[str, str]:
    return {
        "memory": "cgroup",
        "processes": "cgroup",
        "cpu": "cgroup",
        "disk": "storage option" if sized else "best effort: watched",
        "files": "not limited",
        "network": {"none": "none: empty namespace"}.get(spec.network, spec.network),
        "system calls": "not limited: privileged" if spec.privileged else "seccomp: Docker's profile",
    }


@asynccontextmanager
async def open_sandbox(
    daemon: Daemon, container_id: str, spec: ContainerSpec, background: TaskGroup
) -> AsyncGenerator[DockerSandbox]:
    """Run a container anew: what still ran in it is killed first. At the end all in it is killed; it and its files stay.

    ``background`` outlives the block: it takes the tasks that listen and watch.

    Raises:
        DockerError: the container cannot be started, or has no ``sh``.
    """
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stop, daemon, container_id)
        await containers.kill(daemon, container_id)
        await containers.start(daemon, container_id)
        pool = Pool(daemon, container_id, spec, background)
        stack.callback(pool.close)
        await pool.open()
        watching = anyio.CancelScope()
        background.start_soon(_watch, pool, watching, daemon, container_id, spec.limits.disk_bytes)
        stack.callback(watching.cancel)
        yield DockerSandbox(daemon, container_id, spec, pool)


async def _stop(daemon: Daemon, container_id: str) -> None:
    with anyio.CancelScope(shield=True):
        try:
            await containers.kill(daemon, container_id)
        except SandboxError as error:
            logger.warning("Container %s could not be stopped; the next server will: %s", container_id, error)


async def _watch(pool: Pool, scope: anyio.CancelScope, daemon: Daemon, container_id: str, limit: int) -> None:
    """Kill a container that writes too much. One that is opened again over its limit may not grow, but may tidy up."""
    with scope:
        allowed, pause = 0, 0.0  # the first look is at what was there before
        while not pool.died:
            await anyio.sleep(pause)
            started = anyio.current_time()
            try:
                size = await containers.written_bytes(daemon, container_id)
            except DockerError as error:
                logger.warning("The size of container %s is unknown: %s", container_id, error)
                continue
            allowed = allowed or max(limit, size)
            if size > allowed:
                pool.die(f"it wrote too much (limit {limit >> 20} MiB)")
                await containers.kill(daemon, container_id)
            pause = max(_WATCH_S, _WATCH_SHARE * (anyio.current_time() - started))
