"""Docker: what our sandboxes cost beside the ``docker`` program doing the same with the same image."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup

from server.sandboxes import containers
from server.sandboxes.base import Command, Sandbox
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError, connect
from server.sandboxes.docker import open_sandbox
from tests.bench.kit import BenchError, Kit
from tests.bench.measure import Row, interleaved, timed

IMAGE = os.environ.get("SEATRIAL_TEST_IMAGE") or "seatrial-test-base:latest"
_TRUE = Command(["true"], {}, cwd="/")
_TOGETHER = 30
_LABELS = {"seatrial.bench": "yes"}


async def measure_docker(kit: Kit) -> Sequence[Row]:
    """Opening, commands, closing, and many at once; nothing where no daemon answers."""
    try:
        daemon = connect()
        await daemon.call(lambda api: api.inspect_image(IMAGE))
    except DockerError as error:
        sys.stderr.write(f"docker is left out: {error}\n")
        return []
    try:
        return [*await _opened_and_closed(kit, daemon), await _commands(kit, daemon), await _many(kit, daemon)]
    finally:
        daemon.close()


async def _opened_and_closed(kit: Kit, daemon: Daemon) -> Sequence[Row]:
    closing: list[float] = []

    async def ours() -> float:
        async with anyio.create_task_group() as background:
            spec = _spec()
            started = time.perf_counter()
            container = await containers.create(daemon, spec)
            async with open_sandbox(daemon, container, spec, background):
                seconds = time.perf_counter() - started
                ending = time.perf_counter()
            await containers.remove(daemon, container)
            closing.append(time.perf_counter() - ending)
            background.cancel_scope.cancel()
        return seconds

    async def floor() -> float:
        started = time.perf_counter()
        container = await _docker("run", "--detach", "--init", IMAGE, "sleep", "infinity")
        seconds = time.perf_counter() - started
        await _docker("rm", "--force", container)
        return seconds

    rounds = kit.scale.starts
    mine, theirs = await interleaved(rounds, ours, floor, warm_up=kit.scale.warm_up)
    run, rm = "`docker run --detach --init` of the same image", "the bar alone"
    return [
        Row("docker-open", "a container made, started, and a shell ready in it", run, 1.2, "ms", mine, theirs),
        Row("docker-close", "everything killed, the container removed", rm, 0.5, "s", closing[-rounds:], theirs, absolute=True),
    ]


async def _commands(kit: Kit, daemon: Daemon) -> Row:
    async with _box(daemon) as (container, sandbox):

        async def ours() -> float:
            return await timed(lambda: _run(sandbox))

        async def floor() -> float:
            return await timed(lambda: _docker("exec", container, "true"))

        mine, theirs = await interleaved(kit.scale.medium, ours, floor, warm_up=kit.scale.warm_up)
    return Row("docker-command", "`true` in an open container", "`docker exec` of `true` in it", 0.15, "ms", mine, theirs)


async def _many(kit: Kit, daemon: Daemon) -> Row:
    together = min(kit.scale.many, _TOGETHER)

    async def one() -> None:
        async with _box(daemon) as (_, sandbox):
            await _run(sandbox)

    async def ours() -> float:
        started = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(together):
                group.start_soon(one)
        return time.perf_counter() - started

    async def floor() -> float:
        made: list[str] = []

        async def run() -> None:
            made.append(await _docker("run", "--detach", "--init", IMAGE, "sleep", "infinity"))

        started = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(together):
                group.start_soon(run)
        for container in made:
            await _docker("exec", container, "true")
        await _docker("rm", "--force", *made)
        return time.perf_counter() - started

    mine, theirs = await interleaved(1, ours, floor, warm_up=0)
    what = f"{together} containers at once: opened, one command each, removed"
    return Row("docker-many", what, "the same by `docker run`, `exec` and `rm`", 1.2, "s", mine, theirs)


def _spec() -> ContainerSpec:
    return ContainerSpec(IMAGE, f"seatrial-bench-{secrets.token_hex(6)}", _LABELS, workdir="/")


@asynccontextmanager
async def _box(daemon: Daemon) -> AsyncGenerator[tuple[str, Sandbox]]:
    spec = _spec()
    container = await containers.create(daemon, spec)
    try:
        background: TaskGroup
        async with anyio.create_task_group() as background:
            async with open_sandbox(daemon, container, spec, background) as sandbox:
                yield container, sandbox
            background.cancel_scope.cancel()
    finally:
        await containers.remove(daemon, container)


async def _run(sandbox: Sandbox) -> None:
    result = await sandbox.run(_TRUE, lambda *_: None)
    if result.exit_code:
        raise BenchError(f"true ended with {result.exit_code}")


async def _docker(*arguments: str) -> str:
    ran = await anyio.run_process(["docker", *arguments], stderr=subprocess.PIPE)
    return ran.stdout.decode().strip()
