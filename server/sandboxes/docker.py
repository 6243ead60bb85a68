"""The Docker sandbox: a container, and lanes in it. stdout and stderr of a command come as one, exactly in order.

Ending a sandbox kills everything in its container and stops it; its files stay, and it can be opened again.
"""

import re
import secrets
import shlex
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from server.sandboxes import containers
from server.sandboxes.base import (
    CHANNEL,
    STDOUT,
    Command,
    CommandResult,
    Entry,
    FileData,
    Limits,
    Listing,
    OnOutput,
    PathError,
    SandboxDiedError,
    SandboxRefusedError,
)
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.lanes import Hello, Lane, LaneEndedError, open_lane

_MAX_LANES = 40
_KILL_ROUNDS = 200
_STOP_S = 15.0
_ANSWER_S = 60.0
_WATCH_S = 10.0
_WATCH_SHARE = 0.05
_PIECE = 60_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CHANNEL = ("sh", "-c", 'exec 3>&1 1>&2; exec "$@"', "sh")
_KINDS = {"f": "file", "d": "dir", "l": "link"}


_Words = list[bytes]
_Lanes = list[Lane]
_Processes = list[tuple[int, int, int]]  # inside the class the method hides the type


class DockerSandbox:
    """See `Sandbox`; made by `open_sandbox`."""

    def __init__(self, daemon: Daemon, container_id: str, spec: ContainerSpec, background: TaskGroup) -> None:
        self.container_id, self._daemon, self._spec, self._background = container_id, daemon, spec, background
        self.user, self.workdir, self.shell = spec.user, spec.workdir, "/bin/sh"
        self._lanes: _Lanes = []
        self._left: _Lanes = []
        """Lanes whose output something still holds: only drained."""
        self._safe: frozenset[int] = frozenset()
        """Sessions that were there first: the image's own services."""
        self._dead = ""
        self._opening = anyio.Lock()
        self.enforced: Mapping[str, str] = {}

    @property
    def dead(self) -> str:
        """See `Sandbox.dead`."""
        return self._dead

    async def start(self) -> None:
        """Open the first lane, and learn what the container is like."""
        lane, hello = await open_lane(self._daemon, self.container_id, self.user, self._spec.workdir)
        self._lanes.append(lane)
        self.shell, self.workdir = hello.shell, hello.workdir
        self._safe = frozenset(session for pid, _, session in hello.processes if pid != hello.pid)
        self.enforced = _enforced(self._spec.limits, self._spec.network, self._daemon.limits_storage)

    async def run(self, command: Command, on_output: OnOutput) -> CommandResult:
        """See `Sandbox.run`. A process killed by signal n and one that exits with 128 + n look the same: both are -n."""
        if command.channel:
            return await self._run_alone(command, on_output)
        lane = await self._lane()
        started, timed_out = time.monotonic(), False
        refused = bytearray()
        take = _Taker(on_output)
        try:
            await lane.begin(_run_text(command, take.word))
            words: _Words = []
            try:
                with anyio.move_on_after(command.timeout_s) as scope:
                    words = await lane.finish(take)
                timed_out = scope.cancelled_caught
            finally:
                if not words:
                    words = await self._stop(lane, take)
            take.end()
        except LaneEndedError:
            raise await self._died() from None
        finally:
            self._give_back(lane, words if "words" in locals() else [])
        refused += take.refused
        if refused:
            raise PathError(refused.decode(errors="replace"))
        code = int(words[0]) if words and words[0].isdigit() else 137
        seconds = time.monotonic() - started
        memory = code != 0 and len(words) > 2 and words[2] == b"1"
        return CommandResult(128 - code if 128 < code <= 192 else code, seconds, timed_out=timed_out, out_of_memory=memory)

    async def _run_alone(self, command: Command, on_output: OnOutput) -> CommandResult:
        def sorted_out(stream: int, data: bytes) -> None:
            on_output(CHANNEL if stream == STDOUT else STDOUT, data)

        try:
            return await containers.execute(
                self._daemon,
                self.container_id,
                [*_CHANNEL, *command.argv],
                env=command.env,
                user=self.user,
                cwd=command.cwd,
                timeout_s=command.timeout_s,
                on_output=sorted_out,
                stdin=command.stdin,
            )
        except DockerError as error:
            raise await self._died(str(error)) from error

    async def read(self, path: str, start: int, size: int) -> FileData:
        """See `Sandbox.read`."""
        head, data = await self._asked(f"rd {_quoted(path)} {start + 1} {size}", path)
        return FileData(data[:size], int(head) if head.isdigit() else len(data))

    async def write(self, path: str, data: bytes) -> None:
        """See `Sandbox.write`."""
        lines = [f"if place {_quoted(path)} $$; then", ': >"$t" && {']
        lines += [f"printf '{_escaped(data[at : at + _PIECE])}'" for at in range(0, len(data), _PIECE)] or [":"]
        lines += ['} >>"$t" && mv -f -- "$t" "$goal" && printf "D 0\\n" || { rm -f -- "$t"; refuse "no space or permission"; }']
        lines += ['else refuse "$why"; fi']
        await self._asked("\n".join(lines), path)

    async def list(self, path: str, depth: int, limit: int) -> Listing:
        """See `Sandbox.list`."""
        text = (
            f'if ! resolve {_quoted(path)}; then refuse "$why"; elif [ ! -d "$p" ]; then refuse \'not a folder\'; else\n'
            f'printf "D 0\\n"; (cd -- "$p" && LC_ALL=C && export LC_ALL && many=0 && walk "" {depth}); fi'
        )
        _, data = await self._asked(text, path)
        pieces = data.decode("utf-8", "surrogateescape").split("\0")
        found = [
            Entry(name, _KINDS.get(head[:1], "other"), int(head[1:]) if head[1:].isdigit() else 0)
            for head, name in zip(pieces[0::2], pieces[1::2], strict=False)
        ]
        found.sort(key=lambda entry: [part.encode("utf-8", "surrogateescape") for part in entry.path.split("/")])
        return Listing(tuple(found[:limit]), len(found))

    async def sweep(self) -> None:
        """See `Sandbox.sweep`."""
        await self._kill(None)

    async def _asked(self, body: str, path: str) -> tuple[str, bytes]:
        """Return the first line and the rest of what a request of ours prints.

        Raises:
            PathError: it was refused.
        """
        lane, said = await self._lane(), bytearray()
        words: _Words = []
        try:
            with anyio.fail_after(_ANSWER_S):
                await lane.begin(f"{{ {body}\n}} </dev/null 2>/dev/null; c=0 dirt=0 oom=0")
                words = await lane.finish(said.extend)
        except LaneEndedError:
            raise await self._died() from None
        except TimeoutError:
            raise await self._died("it did not answer") from None
        finally:
            self._give_back(lane, words)
        head, _, rest = bytes(said).partition(b"\n")
        if not head.startswith(b"D "):
            why = head[2:].decode(errors="replace") if head.startswith(b"R ") else "it could not be read"
            raise PathError(f"{path}: {why}")
        return head[2:].decode(errors="replace"), rest

    async def _lane(self) -> Lane:
        """Return an idle lane, opened if all are busy; whoever gets it gives it back."""
        if self._dead:
            raise SandboxDiedError(self._dead)
        async with self._opening:
            for lane in self._lanes:
                if not lane.busy:
                    lane.busy = True
                    return lane
            if len(self._lanes) + len(self._left) >= _MAX_LANES:
                raise PathError("too many commands run, or left something running; stop_command ends what is left")
            try:
                lane, _ = await open_lane(self._daemon, self.container_id, self.user, self._spec.workdir)
            except DockerError as error:
                raise await self._died(str(error)) from error
            lane.busy = True
            self._lanes.append(lane)
            return lane

    def _give_back(self, lane: Lane, words: Sequence[bytes]) -> None:
        """Take a lane back; one that did not come to an end, or whose output is still held, is used no more."""
        lane.busy = False
        if not words or words[1:2] == [b"1"]:
            with suppress(ValueError):
                self._lanes.remove(lane)
            self._left.append(lane)
            if not self._dead:
                self._background.start_soon(self._drained, lane)

    async def _drained(self, lane: Lane) -> None:
        try:
            await lane.drain()
        finally:
            lane.close()
            with suppress(ValueError):
                self._left.remove(lane)

    async def _stop(self, lane: Lane, take: Callable[[bytes], None]) -> _Words:
        """Kill the command of a busy lane, and return the words of its end."""
        words: _Words = []
        with anyio.CancelScope(shield=True):
            await self._kill(lane)
            with anyio.move_on_after(_STOP_S):
                words = await lane.finish(take)
            if not words:
                raise await self._died("a command could not be stopped")
        return words

    async def _kill(self, target: Lane | None) -> None:
        """Kill what belongs to a lane's command; None: what no running command owns."""
        for _ in range(_KILL_ROUNDS):
            chosen = _victims(await self._processes(), target, self._lanes, self._safe)
            if not chosen:
                return
            await self._ours(f"kill -9 {' '.join(map(str, chosen))}")
            await anyio.sleep(0.005)
        raise await self._died("what a command started could not be outrun")

    async def _processes(self) -> _Processes:
        lines = (await self._ours("table")).decode(errors="replace").splitlines()
        return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in lines if line.count(" ") == 2)]

    async def _ours(self, body: str) -> bytes:
        """Run shell text of ours, that starts nothing, in a lane of its own."""
        lane, said = await self._lane(), bytearray()
        words: _Words = []
        try:
            with anyio.fail_after(_ANSWER_S):
                await lane.begin(f"{{ {body}\n}} 2>/dev/null; c=0 dirt=0 oom=0")
                words = await lane.finish(said.extend)
        except (LaneEndedError, TimeoutError):
            raise await self._died() from None
        finally:
            self._give_back(lane, words)
        return bytes(said)

    async def _died(self, reason: str = "") -> SandboxDiedError:
        """Find out why the sandbox is over, and end it."""
        with anyio.CancelScope(shield=True):
            if not self._dead:
                self._dead = reason or await self._why()
                with suppress(DockerError):
                    await containers.kill(self._daemon, self.container_id)
        return SandboxDiedError(self._dead)

    async def _why(self) -> str:
        try:
            state = (await containers.inspect(self._daemon, self.container_id))["State"]
        except DockerError as error:
            return f"its container cannot be reached: {error}"
        if state.get("OOMKilled"):
            return "its memory was used up"
        return "its shell was ended from inside" if state.get("Running") else "its container was stopped from outside"

    async def watch(self) -> None:
        """Kill the container when it holds more than it may; sizes take long to ask for, so it is asked seldom."""
        took = 0.0
        while not self._dead:
            await anyio.sleep(max(_WATCH_S, took / _WATCH_SHARE))
            began = time.monotonic()
            with suppress(DockerError):
                if await containers.written_bytes(self._daemon, self.container_id) > self._spec.limits.disk_bytes:
                    await self._died("its disk space was used up")
            took = time.monotonic() - began

    def close(self) -> None:
        """End every lane."""
        self._dead = self._dead or "it was closed"
        for lane in (*self._lanes, *self._left):
            lane.close()


class _Taker:
    """Passes a command's output on, and keeps what says that it was not started; only we know the word for that."""

    def __init__(self, on_output: OnOutput) -> None:
        self.word = secrets.token_hex(16)
        self.refused = b""
        self._first = b""
        self._open = False
        self._on_output = on_output

    def __call__(self, data: bytes) -> None:
        if not self._open:
            self._first += data
            if self.word.encode().startswith(self._first[:32]) and len(self._first) < 1000:
                return
            self.end()
            return
        self._on_output(STDOUT, data)

    def end(self) -> None:
        """Let go of what was held back."""
        first, self._first, self._open = self._first, b"", True
        if first.startswith(self.word.encode()):
            self.refused = first[32:]
        elif first:
            self._on_output(STDOUT, first)


def _run_text(command: Command, word: str) -> str:
    """Return the shell text that runs a command; what it prints of a refusal begins with ``word``."""
    exports = "; ".join(f"export {name}={_quoted(value)}" for name, value in command.env.items() if _NAME.fullmatch(name))
    program, cwd = _quoted(command.argv[0]), _quoted(command.cwd)
    given = f"printf '{_escaped(command.stdin[:49_152])}' | " if command.stdin else ""
    source = "" if command.stdin else " </dev/null"
    return (
        f"o=$(kills)\n{given}( cd -- {cwd} 2>/dev/null || {{ printf '%s' {word};"
        f" printf 'cwd %s: No such file or directory' {cwd}; exit 125; }}; {exports or ':'}\n"
        f"command -v {program} >/dev/null 2>&1 || {{ printf '%s' {word}; printf '%s: No such file or directory' {program};"
        f" exit 127; }}\n"
        f"exec {' '.join(map(_quoted, command.argv))} ){source} 2>&1\n"
        'c=$?; if dirty; then dirt=1; else dirt=0; fi; if [ "$o" = "$(kills)" ]; then oom=0; else oom=1; fi'
    )


def _victims(
    processes: Sequence[tuple[int, int, int]], target: Lane | None, lanes: Sequence[Lane], safe: frozenset[int]
) -> list[int]:
    """Return what of ``processes`` is to be killed: see `DockerSandbox._kill`."""
    ours = {lane.pid for lane in lanes}
    busy = {lane.pid for lane in lanes if lane.busy and lane is not target}
    parents = {pid: parent for pid, parent, _ in processes}
    chosen = set()
    for pid, parent, session in processes:
        if pid in ours or pid == 1 or session in safe or session in busy:
            continue
        of_target = target is not None and target.pid in (session, parent)
        if of_target or parent in (0, 1) or parent not in parents or session not in ours:
            chosen.add(pid)
    for pid, _, session in processes:
        above = parents.get(pid, 0)
        while above and above not in chosen and above not in ours:
            above = parents.get(above, 0)
        if above in chosen and pid not in ours and session not in safe:
            chosen.add(pid)
        elif pid in chosen and above in busy:
            chosen.discard(pid)
    return sorted(chosen)


def _enforced(limits: Limits, network: str, storage: bool) -> dict[str, str]:
    return {
        "memory": "cgroup",
        "processes": "cgroup",
        "cpu": "cgroup",
        "disk": "storage option" if storage else "best effort: watched",
        "files": "not limited",
        "network": f"docker: {network}",
        "system calls": "docker's seccomp profile",
    }


def _quoted(text: str) -> str:
    return shlex.quote(text)


_OCTAL = [chr(byte) if 32 <= byte < 127 and chr(byte) not in "'\\%" else f"\\{byte:03o}" for byte in range(256)]
_OCTAL[10] = "\n"


def _escaped(data: bytes) -> str:
    """Return ``data`` as the format of a printf, inside single quotes."""
    return "".join([_OCTAL[byte] for byte in data])


@asynccontextmanager
async def open_sandbox(
    daemon: Daemon, container_id: str, spec: ContainerSpec, background: TaskGroup
) -> AsyncGenerator[DockerSandbox]:
    """Start a container, anew if it runs, and open a sandbox in it; at the end all of it is killed and the files stay.

    ``spec.user`` is whom commands run as.

    Raises:
        SandboxRefusedError: it cannot be started, or has no shell.
    """
    sandbox = DockerSandbox(daemon, container_id, replace(spec), background)
    watching = anyio.CancelScope()
    try:
        try:
            if (await containers.inspect(daemon, container_id))["State"]["Running"]:
                await containers.kill(daemon, container_id)  # a dead server left it: nothing of then may live on
            await containers.start(daemon, container_id)
            await sandbox.start()
        except DockerError as error:
            raise SandboxRefusedError(str(error)) from error

        async def watch() -> None:
            with watching:
                await sandbox.watch()

        background.start_soon(watch)
        yield sandbox
    finally:
        watching.cancel()
        sandbox.close()
        with anyio.CancelScope(shield=True), suppress(DockerError):
            await containers.kill(daemon, container_id)


__all__ = ["DockerSandbox", "Hello", "open_sandbox"]
