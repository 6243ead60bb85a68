"""Containers: make, start, kill, remove, copy in and out, run one program. What a sandbox is made of is in `docker`."""

import io
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import IO, Any

import anyio

from server.sandboxes.base import CommandResult, Limits, OnOutput, PathError
from server.sandboxes.daemon import Daemon, DockerError, archive
from server.sandboxes.streams import Exec, ExecStream, open_exec

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETGID", "SETUID", "NET_BIND_SERVICE", "KILL", "SYS_CHROOT")
"""What an ordinary container in which things are built and tested needs of the root user; all else is dropped."""

FOR_EVER = ("sh", "-c", "while :; do sleep 86400; done")

_MARK = "SEATRIAL_EXEC"
_PERIOD_US = 100_000
_KILL_S = 15.0
_LATE_S = 0.25
"""How long the last output of a program may take to come after its end."""
_FLOOD_BYTES = 32 << 20
_FLOOD_PAUSE_S = 0.002

_KILL_MARKED = r"""
mark=$1 quiet=0 round=0
while [ $quiet -lt 2 ] && [ $round -lt 300 ]; do
  round=$((round + 1)) marked=' ' more=1
  for path in $(grep -ls "$mark" /proc/[0-9]*/environ); do pid=${path#/proc/} marked="$marked${pid%%/*} "; done
  while [ $more = 1 ]; do
    more=0
    for path in /proc/[0-9]*; do
      pid=${path#/proc/} stat=
      { while read -r line; do stat="$stat $line"; done <"$path/stat"; } 2>/dev/null
      set -- ${stat##*) }
      [ "$1" = Z ] && { case $marked in *" $pid "*) marked="${marked%% $pid *} ${marked#* $pid }";; esac; continue; }
      case $marked in *" $pid "*) ;; *" ${2:-none} "*) marked="$marked$pid " more=1;; esac
    done
  done
  quiet=$((quiet + 1))
  for pid in $marked; do quiet=0; kill -9 "$pid" 2>/dev/null; done
done
[ $quiet -ge 2 ]
"""


@dataclass(frozen=True)
class ContainerSpec:
    """What a container is made of.

    Empty ``workdir`` and ``user`` are the image's. ``network`` is ``none``, ``bridge``, ``container:ID`` or the name of a
    network. An empty ``command`` waits for ever; an ``entrypoint`` of None keeps the image's own, which then gets the
    command. ``tmpfs`` are paths, with ``:options`` if need be. ``volumes`` are named, mounted at a path, read-only.
    """

    image: str
    name: str
    labels: Mapping[str, str]
    workdir: str = ""
    user: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    network: str = "none"
    command: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    tmpfs: Sequence[str] = ()
    cap_add: Sequence[str] = ()
    privileged: bool = False
    shm_bytes: int = 0
    extra_hosts: Mapping[str, str] = field(default_factory=dict)
    hostname: str = "box"
    platform: str = ""
    volumes: Mapping[str, str] = field(default_factory=dict)


class ChangeKind(IntEnum):
    """How a path differs from the image, in Docker's own numbers."""

    MODIFIED, ADDED, DELETED = 0, 1, 2


async def create(daemon: Daemon, spec: ContainerSpec) -> str:
    """Make a container, not started, and return its id. It is not cancelled half-way: what is made can be removed.

    Raises:
        DockerError: no such image, the name is taken, or what Docker says.
    """
    with anyio.CancelScope(shield=True):
        size = {"size": str(spec.limits.disk_bytes)} if daemon.limits_storage else None
        try:
            return await daemon.call(lambda client: _create(client, spec, size))
        except DockerError as error:
            if not size or not any(word in str(error).lower() for word in ("storage-opt", "storage opt", "quota")):
                raise
            daemon.limits_storage = False
            made = await daemon.call(lambda client: _create(client, spec, None))
    return made


def _create(client: Any, spec: ContainerSpec, storage: dict[str, str] | None) -> str:
    shared = spec.network.startswith("container:")
    made = client.create_container(
        spec.image,
        list(spec.command or FOR_EVER),
        entrypoint=None if spec.entrypoint is None else list(spec.entrypoint),
        name=spec.name,
        labels=dict(spec.labels),
        working_dir=spec.workdir or None,
        user=spec.user or None,
        environment=dict(spec.env),
        hostname=None if shared else spec.hostname,
        platform=spec.platform or None,
        volumes=list(spec.volumes.values()),
        host_config=client.create_host_config(
            init=True,
            network_mode=spec.network,
            storage_opt=storage,
            cpu_period=_PERIOD_US,
            cpu_quota=max(1000, int(spec.limits.cpus * _PERIOD_US)),
            mem_limit=spec.limits.memory_bytes,
            memswap_limit=spec.limits.memory_bytes,
            pids_limit=spec.limits.processes,
            shm_size=spec.shm_bytes or None,
            tmpfs=dict(one.partition(":")[::2] for one in spec.tmpfs),
            extra_hosts=None if shared else dict(spec.extra_hosts),
            binds=[f"{volume}:{path}:ro" for volume, path in spec.volumes.items()],
            privileged=spec.privileged,
            cap_drop=None if spec.privileged else ["ALL"],
            cap_add=None if spec.privileged else [*CAPABILITIES, *spec.cap_add],
            security_opt=None if spec.privileged else ["no-new-privileges"],
            log_config={"Type": "none", "Config": {}},
        ),
    )
    return str(made["Id"])


async def start(daemon: Daemon, container: str) -> None:
    """Start a container; one that runs already is left as it is."""
    await daemon.call(lambda client: client.start(container))


async def kill(daemon: Daemon, container: str) -> None:
    """Kill everything in a container and wait until it has stopped. One that is not running, or is gone, is fine."""

    def work(client: Any) -> None:
        client.kill(container)
        client.wait(container, timeout=_KILL_S)

    await _unless(daemon, work, 404, 409)


async def remove(daemon: Daemon, container: str) -> None:
    """Remove a container with its own volumes, running or not. One that is gone, or is just being removed, is fine."""
    with anyio.CancelScope(shield=True):
        await _unless(daemon, lambda client: client.remove_container(container, v=True, force=True), 404, 409)


async def _unless(daemon: Daemon, work: Callable[[Any], object], *fine: int) -> None:
    try:
        await daemon.call(work)
    except DockerError as error:
        if error.status not in fine:
            raise


async def inspect(daemon: Daemon, container: str) -> Mapping[str, Any]:
    """Return what Docker knows of a container."""
    found: Mapping[str, Any] = await daemon.call(lambda client: client.inspect_container(container))
    return found


async def written_bytes(daemon: Daemon, container: str) -> int:
    """Return how much a container holds over its image."""
    found = await daemon.call(lambda client: client.containers(all=True, size=True, filters={"id": container}))
    return int(found[0].get("SizeRw", 0)) if found else 0


async def put(daemon: Daemon, container: str, folder: str, tar: bytes | IO[bytes]) -> None:
    """Unpack a tar over an existing folder of a container, running or not."""
    await daemon.call(lambda client: client.put_archive(container, folder, tar))


async def get(daemon: Daemon, container: str, path: str, limit_bytes: int) -> bytes | None:
    """Return a path of a container as a tar, or None if there is no such path.

    Raises:
        DockerError: the tar is larger than ``limit_bytes``.
    """

    def work(client: Any) -> bytes:
        collected = io.BytesIO()
        with archive(client, container, path) as pieces:
            for piece in pieces:
                collected.write(piece)
                if collected.tell() > limit_bytes:
                    raise DockerError(f"{path} of the container is larger than {limit_bytes} bytes. Ask for less of it.")
        return collected.getvalue()

    try:
        return await daemon.call(work)
    except DockerError as error:
        if error.status == 404 and "No such container" not in str(error):
            return None
        raise


async def changes(daemon: Daemon, container: str) -> list[tuple[str, ChangeKind]]:
    """Return every path that differs from the image, and how."""
    found = await daemon.call(lambda client: client.diff(container))
    return [(str(one["Path"]), ChangeKind(one["Kind"])) for one in found or ()]


async def reap(daemon: Daemon, labels: Mapping[str, str], keep: Callable[[Mapping[str, str]], bool]) -> None:
    """Remove every container that has all of ``labels``, unless ``keep`` says of its labels that it stays."""
    wanted = {"label": [f"{name}={value}" for name, value in labels.items()]}
    for found in await daemon.call(lambda client: client.containers(all=True, filters=wanted)):
        if not keep(found.get("Labels") or {}):
            await remove(daemon, str(found["Id"]))


async def execute(  # noqa: PLR0913
    daemon: Daemon,
    container: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    user: str,
    cwd: str,
    timeout_s: float,
    on_output: OnOutput,
    stdin: bytes = b"",
) -> CommandResult:
    """Run one program in a running container to its end, by an exec of its own. What it leaves running goes on, unheard.

    Out of time, or cancelled, it is killed with all that carries its environment or descends from what does.

    Raises:
        PathError: the program or ``cwd`` does not exist.
        DockerError: the container is not running, or Docker failed.
    """
    mark = secrets.token_hex(16)
    if stdin:  # not by closing our half of the stream: over TLS there is no such thing
        argv = ["sh", "-c", 'size=$1; shift; head -c "$size" | "$@"', "sh", str(len(stdin)), *argv]
    started = time.monotonic()
    ended = timed_out = False
    given = Exec(argv, {**env, _MARK: mark}, user, cwd, stdin=bool(stdin))
    with anyio.CancelScope(shield=True):
        stream = await open_exec(daemon, container, given)
    said = bytearray()
    try:
        with anyio.move_on_after(timeout_s) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(stream.send, stdin)
                group.start_soon(_left, daemon, stream.id, group.cancel_scope)
                await _pump(stream, on_output, said)
                group.cancel_scope.cancel()
            ended = True
        timed_out = scope.cancelled_caught
    finally:
        if not ended:
            await _kill_marked(daemon, container, user, mark)
        stream.close()
    code = await _exit_code(daemon, stream.id) if ended else -9
    if code in (126, 127) and said.startswith(b"OCI runtime exec failed"):
        raise PathError(f"{argv[0]} cannot be started in {cwd or 'the working folder'}: {said.decode(errors='replace')[:300]}")
    return CommandResult(_signalled(code), time.monotonic() - started, timed_out=timed_out)


def _signalled(code: int) -> int:
    """Turn 128+n into -n: Docker does not tell a killed program from one that ends with that number."""
    return 128 - code if 128 < code <= 192 else code


async def _pump(stream: ExecStream, on_output: OnOutput, said: bytearray) -> None:
    received = flood = 0
    while (pieces := await stream.receive()) is not None:
        for number, data in pieces:
            received += len(data)
            if len(said) < 400:
                said += data[:400]
            on_output(number, data)
        flood = received if received > _FLOOD_BYTES else 0
        await anyio.sleep(_FLOOD_PAUSE_S if flood else 0)


async def _left(daemon: Daemon, id: str, scope: anyio.CancelScope) -> None:
    """End ``scope`` soon after an exec has ended whose output something else still holds."""
    pause = 0.25
    while (await daemon.call(lambda client: client.exec_inspect(id)))["Running"]:
        await anyio.sleep(pause)
        pause = min(2.0, pause * 1.5)
    await anyio.sleep(_LATE_S)
    scope.cancel()


async def _exit_code(daemon: Daemon, id: str) -> int:
    """Return how an exec ended. Its output may end before Docker has noted that."""
    while True:
        found = await daemon.call(lambda client: client.exec_inspect(id))
        if not found["Running"] and found["ExitCode"] is not None:
            return int(found["ExitCode"])
        await anyio.sleep(0.01)


async def _kill_marked(daemon: Daemon, container: str, user: str, mark: str) -> None:
    """Kill what carries a mark, as its user (whose environment even root may not see); if that fails, the whole container."""
    with anyio.CancelScope(shield=True):
        try:
            with anyio.fail_after(_KILL_S):
                killer = Exec(["sh", "-c", _KILL_MARKED, "sh", mark], user=user, cwd="/")
                stream = await open_exec(daemon, container, killer)
                try:
                    while await stream.receive() is not None:
                        pass
                finally:
                    stream.close()
                if await _exit_code(daemon, stream.id) == 0:
                    return
        except (DockerError, TimeoutError):
            pass
        await kill(daemon, container)
