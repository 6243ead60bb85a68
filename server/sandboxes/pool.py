"""The lanes of one container: opened as they are needed, one always spare, so that what runs can be stopped."""

import os
import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup

from server.sandboxes import containers
from server.sandboxes.base import PathError, SandboxDiedError
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.lanes import Lane, Request, open_lane, refusal
from server.sandboxes.shell import asking, printing, quoted

_LANES = 20
_ANSWER_S = 60.0
_STOP_S = 20.0
_RETRY_S = 0.2
_POLL_S = 0.02
_ALIVE_S = 0.3
_PATIENCE_S = 2.0
_SMALL = 64 << 10


class Pool:
    """The shells of one running container, and whether it still runs."""

    def __init__(self, daemon: Daemon, container: str, spec: ContainerSpec, background: TaskGroup) -> None:
        self._daemon, self._container, self._spec, self._background = daemon, container, spec, background
        self._idle: list[Lane] = []
        self._all: list[Lane] = []
        self._busy: set[Lane] = set()
        self._slots = anyio.Semaphore(_LANES)
        self._control: Lane | None = None
        self._controlling = anyio.Lock()
        self.died = ""
        self.workdir, self.shell, self.user, self.kills = "/", "/bin/sh", "", 0

    async def open(self) -> None:
        """Open the first lane, which tells what the container is like, and the spare one behind it."""
        lane, facts = await self._lane()
        self._idle.append(lane)
        self.workdir, self.shell, self.user, self.kills = facts[1], facts[2], facts[3], int(facts[4])
        self._background.start_soon(self._open_control)

    async def _open_control(self) -> None:
        async with self._controlling:
            if not self.died:
                try:
                    await self._ready_control()
                except (DockerError, SandboxDiedError):
                    return  # whoever needs it tries again, and learns why

    async def _ready_control(self) -> Lane:
        if self._control is None or self._control.over:
            self._control, _ = await self._lane()
        return self._control

    async def _lane(self) -> tuple[Lane, list[str]]:
        """Start a shell; return it with what it says of the container."""
        with anyio.CancelScope(shield=True):
            try:
                lane = await open_lane(self._daemon, self._container, self._spec.user)
            except DockerError:
                await self.ended()
                raise
            if self.died:  # meanwhile
                lane.close()
                raise SandboxDiedError(self.died)
            self._all.append(lane)
            self._background.start_soon(lane.listen, self._lane_ended)
            request = Request()
            with anyio.move_on_after(_ANSWER_S):
                await lane.ask(request, b"_st_hello\n_st_end %s\n" % request.nonce)
                await request.done.wait()
        facts = bytes(request.data).decode("utf-8", "surrogateescape").split("\0")
        if request.end is None or len(facts) < 5:
            await self.ended()
            words = (bytes(request.data) + bytes(lane.last_words)).decode(errors="replace").strip()[:300]
            raise DockerError(f"No shell could be started in the container: {words or 'it said nothing'}. The image needs `sh`.")
        lane.pid = int(facts[0])
        return lane, facts

    def _lane_ended(self) -> None:
        if not self.died:
            self._background.start_soon(self._look)

    async def _look(self) -> None:
        with suppress(SandboxDiedError):
            await self.ended()

    async def ended(self) -> None:
        """Return if the container still runs after a lane has ended. Docker may note its end later than we see it.

        Raises:
            SandboxDiedError: it does not run.
        """
        patience = anyio.current_time()
        while not self.died:
            try:
                state = (await containers.inspect(self._daemon, self._container))["State"]
            except DockerError as error:
                self.die("it was removed" if error.status == 404 else "the Docker daemon went away")
                break
            if not state["Running"]:
                self.die(self._reason(state))
            waited = anyio.current_time() - patience
            if waited > _PATIENCE_S or (waited > _ALIVE_S and not all(lane.over for lane in self._all)):
                break
            await anyio.sleep(_POLL_S)
        if self.died:
            raise SandboxDiedError(self.died)

    def _reason(self, state: Mapping[str, Any]) -> str:
        if state.get("OOMKilled"):
            return f"it ran out of its memory (limit {self._spec.limits.memory_bytes >> 20} MiB)"
        return f"its container ended or was killed (exit code {state.get('ExitCode')})"

    def die(self, reason: str) -> None:
        """Note why the sandbox is over (the first reason counts) and end all that is under way."""
        self.died = self.died or reason
        self.close()

    def close(self) -> None:
        self.died = self.died or "it was closed"
        for lane in self._all:
            lane.close()

    @asynccontextmanager
    async def lane(self) -> AsyncGenerator[tuple[Lane, Request]]:
        """Borrow a lane for one request. One that did not end its request, or whose output is still held, is not used again."""
        async with self._slots:
            if self.died:
                raise SandboxDiedError(self.died)
            lane = self._idle.pop() if self._idle else (await self._lane())[0]
            request = Request()
            self._busy.add(lane)
            try:
                yield lane, request
            finally:
                self._busy.discard(lane)
                if request.end is not None and not lane.dirty and not lane.over:
                    self._idle.append(lane)

    async def answer(self, steps: bytes, path: str = "") -> bytes:
        """Take steps in a shell and return what they print.

        Raises:
            PathError: they gave up.
            SandboxDiedError: there is no container any more, or no answer.
        """
        async with self.lane() as (lane, request):
            script = b"_st_q=" + request.nonce + b" _st_w=" + quoted(self.workdir) + b"; " + steps
            with anyio.move_on_after(_ANSWER_S, shield=True):
                await lane.ask(request, asking(request.nonce, script))
                await request.done.wait()
        if refused := refusal(request, path):
            raise refused
        if request.end is None:
            await self.ended()
            raise PathError(f"{path}: the shell that was asked ended or did not answer. Try again.")
        return bytes(request.data)

    async def write(self, path: str, shown: str, data: bytes) -> None:
        """Write a file whole; a large one goes through an exec of its own, as no shell can read it fast."""
        place = b"_st_place " + quoted(path) + b" " + secrets.token_hex(6).encode()
        if len(data) <= _SMALL:
            filling = b"; ( umask 077; " + printing(data) + b' ) 2>/dev/null >"$_st_n"'
            await self.answer(place + filling + b"; _st_commit $?", shown)
            return
        fresh = os.fsdecode(await self.answer(place + b'; printf %s "$_st_n"', shown))
        filled = await containers.execute(
            self._daemon,
            self._container,
            ["sh", "-c", 'umask 077; cat >"$1"', "sh", fresh],
            env={},
            user=self._spec.user,
            cwd="/",
            timeout_s=_ANSWER_S,
            on_output=lambda stream, said: None,
            stdin=data,
        )
        await self.answer(place + b"; _st_commit %d" % abs(filled.exit_code), shown)

    async def stop(self, lane: Lane, request: Request) -> None:
        """Kill what a lane is doing, with all it started, and wait for the end of it; if that fails, kill the container."""
        with anyio.CancelScope(shield=True), suppress(SandboxDiedError):
            with anyio.move_on_after(_STOP_S):
                while not request.done.is_set():
                    others = [one for one in self._all if one is not lane]
                    await self._kill(str(lane.pid), 0, others)
                    with anyio.move_on_after(_RETRY_S):  # it may not have begun
                        await request.done.wait()
            if not request.done.is_set():
                await self._give_up()

    async def sweep(self, since: int) -> None:
        """Kill all orphans that are no older than ``since`` (in ticks) and belong to no running command."""
        await self._kill("none", since, list(self._busy))

    async def _kill(self, root: str, since: int, owners: Sequence[Lane]) -> None:
        async with self._controlling:
            for _ in range(2):
                control, request = await self._ready_control(), Request()
                lanes = b" ".join(b"%d" % lane.pid for lane in self._all)
                sessions = b" ".join(b"%d" % lane.pid for lane in owners)
                script = b"_st_kill %s %d ' %s ' ' %s '\n_st_end %s $?\n" % (
                    root.encode(),
                    since,
                    lanes,
                    sessions,
                    request.nonce,
                )
                with anyio.move_on_after(_STOP_S, shield=True):
                    await control.ask(request, script)
                    await request.done.wait()
                if request.end is not None and request.end[0] == 0:
                    return
                if not control.over:
                    break
                await self.ended()
            await self._give_up()

    async def _give_up(self) -> None:
        self.die("what ran in it could not be stopped")
        await containers.kill(self._daemon, self._container)
        raise SandboxDiedError(self.died)
