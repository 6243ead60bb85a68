"""Docker sandboxes for tests: a daemon that answers and an image that is there, or a reason to skip."""

import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from server.sandboxes import containers
from server.sandboxes.base import Limits
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError, connect
from server.sandboxes.docker import DockerSandbox, open_sandbox

IMAGE = os.environ.get("SEATRIAL_TEST_IMAGE", "seatrial-test-base:latest")
LABELS = {"seatrial-test": str(os.getpid())}


def daemon_or_skip() -> Daemon:
    """Connect, or skip with the reason; where ``.ci/run`` made sure of a daemon nothing is skipped."""
    try:
        daemon = connect()
    except DockerError as error:
        if os.environ.get("SEATRIAL_DOCKER_REQUIRED") == "1":
            raise
        pytest.skip(str(error))
    return daemon


async def image_or_skip(daemon: Daemon) -> None:
    try:
        await daemon.call(lambda client: client.inspect_image(IMAGE))
    except DockerError as error:
        if os.environ.get("SEATRIAL_DOCKER_REQUIRED") == "1":
            raise
        pytest.skip(str(error))


def spec(limits: Limits | None = None, **given: object) -> ContainerSpec:
    made = {"workdir": "/workspace", "limits": limits or Limits(), **given}
    return ContainerSpec(IMAGE, f"seatrial-test-{secrets.token_hex(6)}", LABELS, **made)  # type: ignore[arg-type]


@asynccontextmanager
async def container(daemon: Daemon, made: ContainerSpec) -> AsyncGenerator[str]:
    """A container that is removed at the end."""
    id = await containers.create(daemon, made)
    try:
        yield id
    finally:
        with anyio.CancelScope(shield=True):
            await containers.remove(daemon, id)


@asynccontextmanager
async def opened(daemon: Daemon, id: str, made: ContainerSpec) -> AsyncGenerator[DockerSandbox]:
    """Open a sandbox; the tasks behind it end with the block, and what fails in the block is raised as it is."""
    failure: Exception | None = None
    async with anyio.create_task_group() as background:
        try:
            async with open_sandbox(daemon, id, made, background) as sandbox:
                yield sandbox
        except Exception as error:
            failure = error
        background.cancel_scope.cancel()
    if failure is not None:
        raise failure
