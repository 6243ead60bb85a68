"""Servers that are killed with workspaces open in both backends: the next goes on with them, and nothing is left at the end."""

import os
import signal
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from docker_tasks import IMAGE, containers_of, docker_reason, harbor_task
from front_door import CACHETOOLS, H11, connected, reachable_folder, results_of, seatrial

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(docker_reason()), reason=docker_reason())]

EACH = 10


@pytest.fixture
def tasks() -> Generator[Path]:
    with reachable_folder() as folder:
        harbor_task(folder, "answer")
        yield folder


async def test_ten_workspaces_of_each_backend_outlive_a_killed_server(built_state: Path, tasks: Path) -> None:
    opened: list[str] = []
    try:
        async with connected(built_state, SEATRIAL_TASKS=str(tasks)) as agent:
            for task in ["answer"] * EACH + [H11] * EACH:
                workspace = await agent.open(task)
                opened.append(workspace)
                await agent.run(workspace, f"echo {workspace} > mine; sleep 1000 & echo")
            os.kill(agent.pid, signal.SIGKILL)
            with anyio.fail_after(20):
                await agent.call("list_tasks")
    except Exception:  # the client notices in one of several ways
        assert len(opened) == 2 * EACH

    async with connected(built_state, SEATRIAL_TASKS=str(tasks)) as agent:
        for workspace in opened:
            answer = await agent.run(workspace, "cat mine; cat /proc/[0-9]*/comm | grep -c '^sleep$'")
            assert workspace in answer.text, answer.text
        for workspace in opened:
            assert (await agent.call("close_workspace", workspace_id=workspace)).text.startswith("closed")
        with anyio.fail_after(60):
            while containers_of(built_state):
                await anyio.sleep(0.2)

    assert containers_of(built_state) == []


async def test_a_container_of_a_trial_that_is_over_is_reaped(built_state: Path, tasks: Path) -> None:
    async with connected(built_state, SEATRIAL_TASKS=str(tasks)) as agent:
        workspace = await agent.open("answer")
        (name,) = containers_of(built_state)
        await agent.call("close_workspace", workspace_id=workspace)
    identity = (built_state / "private" / "identity").read_text()
    label = {"seatrial.state": identity, "seatrial.role": "verify", "seatrial.lock": "verify-of-a-dead-server"}
    labels = [part for key, value in label.items() for part in ("--label", f"{key}={value}")]
    await anyio.run_process(["docker", "run", "--detach", "--name", f"{name}-left", *labels, IMAGE, "sleep", "1000"])

    async with connected(built_state, SEATRIAL_TASKS=str(tasks)) as agent:
        await agent.open(H11)
        with anyio.fail_after(30):
            while f"{name}-left" in containers_of(built_state):
                await anyio.sleep(0.2)


def test_our_own_tasks_get_the_same_verdicts_on_docker(built_state: Path) -> None:
    for agent, reward in (("oracle", 1.0), ("nop", 0.0)):
        ran = seatrial(
            built_state,
            *("run", "--agent", agent, "--task", H11, "--task", CACHETOOLS, "--sandbox", "docker"),
            SEATRIAL_DOCKER_BASE=IMAGE,
        )

        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert [one["reward"] for one in results_of(built_state)[-2:]] == [reward, reward]
    assert containers_of(built_state) == []


async def test_hidden_tests_cannot_be_changed_by_code_under_test(built_state: Path) -> None:
    """On docker they are root's, and in folders whose sticky bit keeps them."""
    evil = (
        "import os, shutil, pathlib\n"
        "for path in pathlib.Path('/workspace/h11/tests').rglob('*.py'):\n"
        "    try:\n        path.write_text('def test_x(): pass')\n    except OSError:\n        pass\n"
        "try:\n    os.rename('/workspace/h11/tests', '/workspace/h11/old')\nexcept OSError:\n    pass\n"
    )
    async with connected(built_state, SEATRIAL_SANDBOX="docker", SEATRIAL_DOCKER_BASE=IMAGE) as agent:
        workspace = await agent.open(H11)
        saved = await agent.call("save_file", workspace_id=workspace, path="h11/_evil.py", content=evil)
        assert not saved.is_error
        await agent.run(workspace, "sed -i '1i from h11 import _evil' h11/__init__.py")

        answer = await agent.submit(workspace)

    assert answer.text.startswith("not resolved")
    assert "71 of 71" in answer.text, answer.text


async def test_a_daemon_that_goes_away_is_told_and_the_work_goes_on_when_it_is_back(built_state: Path, tasks: Path) -> None:
    """The way to the daemon is cut while a command runs; files and trial are kept, and nothing is scored meanwhile."""
    with reachable_folder() as folder:
        async with (
            _relay(folder / "docker.sock") as cut,
            connected(built_state, SEATRIAL_TASKS=str(tasks), DOCKER_HOST=f"unix://{folder}/docker.sock") as agent,
        ):
            workspace = await agent.open("answer")
            await agent.run(workspace, "echo kept > file")
            running = (await agent.run(workspace, "sleep 600", wait_s=0)).text.split()[1]
            cut()
            ended = await agent.call("command_output", workspace_id=workspace, command_id=running)
            refused = await agent.call("submit", workspace_id=workspace)

            async with _relay(folder / "docker.sock"):
                answer = await agent.run(workspace, "cat file")
                await agent.call("close_workspace", workspace_id=workspace)
                with anyio.fail_after(60):
                    while containers_of(built_state):
                        await anyio.sleep(0.1)

    assert "was killed" in ended.text, ended.text
    assert refused.is_error
    assert "Start Docker" in refused.text
    assert answer.text.endswith("kept\n"), answer.text


@asynccontextmanager
async def _relay(path: Path) -> AsyncGenerator[Callable[[], None]]:
    """Pass connections on to the daemon; what is yielded ends all of them and lets no more in."""
    address = (os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock").removeprefix("unix://")

    async def passed(client: anyio.abc.SocketStream) -> None:
        async with client, await anyio.connect_unix(address) as daemon, anyio.create_task_group() as both:
            both.start_soon(_copied, client, daemon)
            both.start_soon(_copied, daemon, client)

    scope = anyio.CancelScope()

    async def serve() -> None:
        with scope:
            async with await anyio.create_unix_listener(path) as listener:
                await listener.serve(passed)

    def cut() -> None:
        scope.cancel()
        path.unlink(missing_ok=True)

    async with anyio.create_task_group() as group:
        group.start_soon(serve)
        while not path.exists():
            await anyio.lowlevel.checkpoint()
        yield cut
        cut()


async def _copied(source: anyio.abc.SocketStream, target: anyio.abc.SocketStream) -> None:
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async for data in source:
            await target.send(data)
        await target.send_eof()
