"""Fixtures of every test: reachable folders, a state folder with the bundled tasks built, servers to connect to."""

import os
import signal
from collections.abc import AsyncGenerator, Generator
from functools import partial
from pathlib import Path

import pytest
from docker_world import docker_image, no_docker_leaks
from front_door import Agent, Serve, connected, reachable_folder, seatrial

__all__ = ["docker_image", "no_docker_leaks"]


def pytest_configure() -> None:
    """Let Ctrl-C mean itself in what tests start, also where whoever started the tests has it ignored, as ``nohup`` does."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def state_folder() -> Generator[Path]:
    """An empty folder for a state folder, removed afterwards."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_state_folder() -> Generator[Path]:
    """A folder for what is slow to stage and harmless to share between tests."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def built_state() -> Generator[Path]:
    """A state folder in which the bundled tasks were built, by the command that users type. Trials of many tests share it."""
    with reachable_folder() as folder:
        built = seatrial(folder, "tasks", "build")
        offline = built.returncode and "could not be fetched" in built.stdout + built.stderr and "CI" not in os.environ
        if offline:
            pytest.skip(f"the tasks cannot be fetched here: {built.stderr.strip()[-300:]}")
        assert built.returncode == 0, built.stdout + built.stderr
        yield folder


@pytest.fixture
def serve(built_state: Path) -> Serve:
    """Start servers: ``async with serve("--task", ID, SEATRIAL_REVEAL="none") as agent``."""
    return partial(connected, built_state)


@pytest.fixture
async def agent(serve: Serve) -> AsyncGenerator[Agent]:
    """A client of a server of its own, joined as any agent would."""
    async with serve() as joined:
        yield joined
