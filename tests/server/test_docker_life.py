"""Servers that are killed with workspaces open in both backends: the next goes on with them, and nothing is left at the end."""

import os
import signal
from collections.abc import Generator
from pathlib import Path

import anyio
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
