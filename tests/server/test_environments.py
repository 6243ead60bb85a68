"""Building environments: failures that say what to do, builders that race, the network off, and what must not be seen."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import anyio
import pytest
from front_door import H11, Agent, Serve, connected, reachable_folder, seatrial
from kept import kept
from small_tasks import AFTER, BEFORE, FIXED, small_task

from server.state import remove_tree

pytestmark = pytest.mark.anyio


@pytest.fixture
def joined(built_state: Path, tmp_path: Path) -> Serve:
    """Connect to servers with the tasks in ``tmp_path``."""
    return partial(connected, built_state, SEATRIAL_TASKS=str(tmp_path))


def environments(state: Path) -> set[str]:
    return {path.name for path in (state / "shared" / "environments").iterdir()}


def test_a_setup_that_fails_shows_its_end_and_leaves_nothing(built_state: Path, tmp_path: Path) -> None:
    small_task(tmp_path, "failing", setup="for n in $(seq 1 50); do echo line $n; done; echo no such compiler >&2; exit 7")
    before = environments(built_state)

    ran = seatrial(built_state, "tasks", "build", "failing", SEATRIAL_TASKS=str(tmp_path))

    assert ran.returncode == 1
    told = " ".join((ran.stdout + ran.stderr).split())
    assert "could not run the task's setup (exit code 7)" in told
    assert "line 50 no such compiler" in told
    assert "line 1 " not in told
    log = built_state / "private" / "logs" / "build-failing.log"
    assert log.name in told
    assert "line 1\n" in log.read_text()
    assert environments(built_state) == before


async def test_an_agent_is_told_of_a_build_that_failed(joined: Serve, built_state: Path, tmp_path: Path) -> None:
    small_task(tmp_path, "failing", setup="echo no such compiler; exit 7")
    async with joined() as agent:
        opened = await agent.call("open_workspace", task_id="failing")
        workspace = opened.first.removeprefix("workspace_id: ")
        answer = opened
        with anyio.fail_after(60):
            while not answer.is_error:
                assert "building: " in answer.text
                answer = await agent.call("list_files", workspace_id=workspace)
                await anyio.sleep(0.05)
        assert "does not count" in answer.text
        assert "no such compiler" in answer.text
        assert (await agent.submit(workspace)).first.startswith("error")

    record = kept(built_state, workspace).record
    assert (record.state, record.reward, record.error_class) == ("error", None, "build")


async def test_tools_answer_while_an_environment_is_being_built(joined: Serve, built_state: Path, tmp_path: Path) -> None:
    small_task(tmp_path, "slow", setup="sleep 1")
    async with joined() as agent:
        opened = await agent.call("open_workspace", task_id="slow")
        workspace = opened.first.removeprefix("workspace_id: ")
        assert "building: " in opened.text
        for tool, arguments in (("list_files", {}), ("run_command", {"command": "true"}), ("view_diff", {}), ("submit", {})):
            answer = await agent.call(tool, workspace_id=workspace, **arguments)
            assert answer.text.startswith("building: ")
            assert not answer.is_error
        with anyio.fail_after(60):
            while (await agent.run(workspace, "true")).text.startswith("building"):
                await anyio.sleep(0.1)

    record = kept(built_state, workspace).record
    assert record.timings["build"] >= 1
    assert record.deadline_at - record.ready_at == 1800, "time counts from when it is ready"


async def test_a_workspace_may_be_closed_while_its_environment_is_being_built(
    joined: Serve, built_state: Path, tmp_path: Path
) -> None:
    small_task(tmp_path, "slow", setup="sleep 1; : closed")
    async with joined() as agent:
        opened = await agent.call("open_workspace", task_id="slow")
        workspace = opened.first.removeprefix("workspace_id: ")
        assert (await agent.call("close_workspace", workspace_id=workspace)).first == "closed"
        await agent.open("slow")

        assert (await agent.run(workspace, "true")).is_error
    record = kept(built_state, workspace).record
    assert (record.state, record.reward, record.ready_at) == ("done", 0.0, 0)


async def test_two_servers_that_want_the_same_environment_build_it_once(joined: Serve, tmp_path: Path) -> None:
    small_task(tmp_path, "random", setup="sleep 0.5; od -An -N16 -tx1 /dev/urandom > /workspace/built-by")
    seen = []

    async def look(agent: Agent) -> None:
        workspace = await agent.open("random")
        seen.append((await agent.run(workspace, "cat built-by")).text.splitlines()[1])

    async with joined() as one, joined() as two, anyio.create_task_group() as both:
        both.start_soon(look, one)
        both.start_soon(look, two)

    assert len(seen[0]) > 30
    assert seen[0] == seen[1]


def test_a_builder_that_is_killed_leaves_nothing_half_made(built_state: Path, tmp_path: Path) -> None:
    small_task(tmp_path, "endless", setup="sleep 100000")
    before = environments(built_state)
    env = {**os.environ, "SEATRIAL_STATE": str(built_state), "SEATRIAL_TASKS": str(tmp_path)}
    command = [sys.executable, "-I", "-m", "server", "tasks", "build", "endless"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as builder:
        assert builder.stdout is not None
        for line in builder.stdout:
            if "installing" in line:
                break
        builder.kill()
    assert environments(built_state) - before, "what it was making has no name yet"
    assert all(name.startswith(".") for name in environments(built_state) - before)

    (tmp_path / "endless" / "environment" / "setup.sh").write_text("true\n")
    ran = seatrial(built_state, "tasks", "build", "endless", SEATRIAL_TASKS=str(tmp_path))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for name in environments(built_state) - before:
        if name.startswith("."):
            remove_tree(built_state / "shared" / "environments" / name)


async def test_what_the_host_shows_of_the_package_under_test_is_hidden(joined: Serve, built_state: Path, tmp_path: Path) -> None:
    extra = {"wsgiref/__init__.py": "mine = True\n"}  # the standard library, which sandboxes see, has one too
    small_task(tmp_path, "shown", before={**BEFORE, **extra}, after={**AFTER, **extra})
    find = "find / -type d -name wsgiref -not -path '/proc/*' -not -empty 2>/dev/null; true"
    async with joined() as agent:
        workspace = await agent.open("shown")
        assert (await agent.run(workspace, find)).text.splitlines()[1:] == ["/workspace/wsgiref"]
        await agent.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)
        assert (await agent.submit(workspace)).first == "resolved"

    verdict = kept(built_state, workspace).verdict
    assert verdict is not None
    place = built_state / "shared" / "environments" / verdict.digests["environment"] / "environment.json"
    masked = json.loads(place.read_text())["masked"]
    assert masked
    assert all(path.endswith("/wsgiref/") for path in masked)


async def test_the_environment_is_read_only_to_the_agent(joined: Serve, tmp_path: Path) -> None:
    small_task(tmp_path, "sums")
    async with joined() as agent:
        workspace = await agent.open("sums")
        for place in ("/opt/env", "/opt/python", "/usr", "/etc"):
            answer = await agent.run(workspace, f"touch {place}/x")
            assert "Read-only file system" in answer.text
        answer = await agent.run(workspace, "python -c 'import sums, pytest, sys; print(sums.__file__, sys.prefix)'")
        assert "/workspace/sums/__init__.py /opt/env" in answer.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take the network away")
@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
def test_after_the_build_no_network_is_needed(built_state: Path, agent: str, reward: float) -> None:
    command = ["unshare", "-n", sys.executable, "-I", "-m", "server", "run", "--agent", agent, "--task", H11, "--json"]
    env = {**os.environ, "SEATRIAL_STATE": str(built_state)}

    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)

    if "unshare failed" in ran.stderr:
        pytest.skip("this machine does not let even root unshare")
    assert ran.returncode == 0, ran.stderr
    assert f'"reward": {reward}' in ran.stdout


def test_without_network_and_without_a_build_it_says_what_is_missing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can take the network away")
    with reachable_folder() as state:
        command = ["unshare", "-n", sys.executable, "-I", "-m", "server", "tasks", "build", H11]
        ran = subprocess.run(
            command, env={**os.environ, "SEATRIAL_STATE": str(state)}, capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 1
        assert "Traceback" not in ran.stderr
        assert "h11" in ran.stdout + ran.stderr
