"""The lives of trials: servers that are killed, that share a state folder, that are told to stop; time limits; the record."""

import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream
from front_door import Agent, Serve, connected
from kept import blob, kept
from small_tasks import FIXED, small_task

from server.records import trial_id_of
from server.sandboxes.watchdog import descendants
from server.store import open_store

pytestmark = pytest.mark.anyio

ENDLESS = "sleep 100000"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    small_task(folder, "sums")
    small_task(folder, "brief", agent_timeout_s=2)
    small_task(folder, "slow", verifier={"build": "sleep 2"})
    return folder


@pytest.fixture(scope="module")
def state(built_state: Path, tasks: Path) -> Path:
    return built_state


@pytest.fixture
def joined(state: Path, tasks: Path) -> Serve:
    return partial(connected, state, SEATRIAL_TASKS=str(tasks))


@pytest.fixture(scope="module")
async def steady(state: Path, tasks: Path) -> AsyncGenerator[Agent]:
    """A server that lives as long as the module, for what kills none."""
    async with connected(state, SEATRIAL_TASKS=str(tasks)) as agent:
        yield agent


async def until(reached: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds; fail if it never does."""
    with anyio.fail_after(seconds):
        while not reached():
            await anyio.sleep(0.02)


@asynccontextmanager
async def running(state: Path, tasks: Path) -> AsyncGenerator[tuple[Process, Callable[[str], Awaitable[str]]]]:
    """Start a server by hand, to see how it ends; yields the process and a function that opens a workspace."""
    env = {**os.environ, "SEATRIAL_STATE": str(state), "SEATRIAL_TASKS": str(tasks)}
    command = [sys.executable, "-I", "-m", "server", "serve"]
    async with await anyio.open_process(command, env=env, stderr=None) as process:
        assert process.stdin is not None and process.stdout is not None
        answers = BufferedByteReceiveStream(process.stdout)

        async def ask(method: str, params: dict[str, object], number: int | None) -> dict[str, Any]:
            message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
            await process.stdin.send(json.dumps(message).encode() + b"\n")
            return json.loads(await answers.receive_until(b"\n", 1 << 20)) if number is not None else {}

        async def open_workspace(task: str) -> str:
            client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "by hand", "version": "1"}}
            with anyio.fail_after(60):
                await ask("initialize", client, 1)
                await ask("notifications/initialized", {}, None)
                answer = await ask("tools/call", {"name": "open_workspace", "arguments": {"task_id": task}}, 2)
            return str(answer["result"]["content"][0]["text"]).partition("\n")[0].removeprefix("workspace_id: ")

        yield process, open_workspace


def alive(pids: tuple[int, ...]) -> list[int]:
    found = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] != b"Z":
                found.append(pid)
        except OSError:
            continue
    return found


async def killed(agent: Agent, number: int = signal.SIGKILL) -> None:
    """End a server by a signal and see that everything it started is gone."""
    family = tuple(descendants(agent.pid))
    os.kill(agent.pid, number)
    await until(lambda: not alive(family))


async def test_a_killed_server_leaves_nothing_running(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        workspaces = [await agent.open("sums") for _ in range(3)]
        for workspace in workspaces:
            await agent.run(workspace, f"setsid {ENDLESS} & {ENDLESS}", wait_s=0)
        await until(lambda: len(descendants(agent.pid)) > 12)

        await killed(agent)

    assert str(state) not in Path("/proc/self/mounts").read_text()


async def test_a_workspace_goes_on_after_its_server_was_killed(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        workspace = await agent.open("sums")
        await agent.call("save_file", workspace_id=workspace, path="new/kept.txt", content="kept")
        first = await agent.run(workspace, "seq 1 100000; echo to-stderr >&2")
        running = await agent.run(workspace, f"echo begun; echo x > started; {ENDLESS}", wait_s=0)
        assert running.text.startswith("running: c2")
        await agent.call("run_command", workspace_id=workspace, command="while ! test -e started; do :; done")
        await killed(agent)

    async with joined() as agent:
        assert "kept" in (await agent.call("view_file", workspace_id=workspace, path="new/kept.txt")).text
        assert (await agent.call("command_output", workspace_id=workspace, command_id="c1")).text == first.text
        page = await agent.call("command_output", workspace_id=workspace, command_id="c1", start=300_000)
        assert "[bytes 300,000-" in page.text
        lost = await agent.call("command_output", workspace_id=workspace, command_id="c2")
        assert lost.is_error
        assert "it was lost" in lost.text
        assert "c4, " in (await agent.run(workspace, "true")).first, "ids are not given twice"
        await agent.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)
        assert (await agent.submit(workspace)).first == "resolved"
    assert kept(state, workspace).record.attempt >= 1


async def test_what_a_killed_server_had_submitted_is_judged_by_the_next(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        workspace = await agent.open("slow")
        await agent.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)
        assert (await agent.call("submit", workspace_id=workspace, wait_s=0)).first == "verifying"
        await killed(agent)
    assert kept(state, workspace).record.state == "submitted"

    async with joined() as agent:
        assert (await agent.submit(workspace)).first == "resolved"
    done = kept(state, workspace)
    assert (done.record.state, done.record.reward, done.record.submitted_by) == ("done", 1.0, "agent")


async def test_the_next_server_judges_without_being_asked(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        workspace = await agent.open("slow")
        await agent.call("submit", workspace_id=workspace, wait_s=0)
        await killed(agent)

    async with joined() as agent:
        await agent.open("sums")
        await until(lambda: kept(state, workspace).record.state == "done")
    await until(lambda: not left(state, workspace))


def left(state: Path, workspace: str) -> list[Path]:
    """Return what lies in the state folder under the name of a trial, or of a verification."""
    trial = trial_id_of(workspace)
    verifications = list((state / "shared" / "verify").iterdir()) if (state / "shared" / "verify").exists() else []
    places = (state / "shared" / "workspaces" / trial, state / "private" / "locks" / f"trial-{trial}")
    return [place for place in places if place.exists()] + verifications


async def test_two_servers_share_a_state_folder(joined: Serve, steady: Agent) -> None:
    mine = await steady.open("sums")
    async with joined() as other:
        refused = await other.call("list_files", workspace_id=mine)
        assert refused.is_error
        assert "open in another server process" in refused.text
        theirs = await other.open("sums")
        async with anyio.create_task_group() as both:
            both.start_soon(steady.run, mine, "echo mine > whose")
            both.start_soon(other.run, theirs, "echo theirs > whose")
        assert "mine" in (await steady.run(mine, "cat whose")).text
        assert "theirs" in (await other.run(theirs, "cat whose")).text
        async with anyio.create_task_group() as both:
            both.start_soon(steady.submit, mine)
            both.start_soon(other.submit, theirs)
        assert (await other.submit(mine)).first == "not resolved", "a verdict may be asked for anywhere"


async def test_a_second_submission_answers_the_first_verdict(steady: Agent, state: Path) -> None:
    workspace = await steady.open("sums")
    await steady.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)

    first, second = await steady.submit(workspace), await steady.submit(workspace)

    assert first.first == "resolved"
    assert second.text == first.text
    assert (await steady.run(workspace, "true")).is_error
    await until(lambda: not left(state, workspace))


async def test_several_submissions_at_once_are_one(steady: Agent, state: Path) -> None:
    workspace = await steady.open("sums")
    answers = []

    async def submit() -> None:
        answers.append(await steady.submit(workspace))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(submit)

    assert {answer.first for answer in answers} == {"not resolved"}
    assert len({answer.text for answer in answers}) == 1


async def test_a_change_that_is_no_patch_may_be_mended(steady: Agent) -> None:
    workspace = await steady.open("sums")
    await steady.run(workspace, "truncate -s 65M huge")

    refused = await steady.call("submit", workspace_id=workspace)
    assert refused.is_error
    assert "'huge'" in refused.text
    await steady.run(workspace, "rm huge")

    assert (await steady.submit(workspace)).first == "not resolved"


async def test_time_submits_what_is_there(steady: Agent, state: Path) -> None:
    workspace = await steady.open("brief")
    await steady.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)
    await steady.run(workspace, ENDLESS, wait_s=0)

    await until(lambda: kept(state, workspace).record.state == "done")

    done = kept(state, workspace)
    assert (done.record.submitted_by, done.record.reward) == ("time", 1.0)
    late = await steady.run(workspace, "true")
    assert late.is_error
    assert "Time was up" in late.text
    assert (await steady.submit(workspace)).first == "resolved"


async def test_time_that_ran_out_on_something_that_is_no_patch_scores_nothing(steady: Agent, state: Path) -> None:
    workspace = await steady.open("brief")
    await steady.run(workspace, "truncate -s 65M huge")

    await until(lambda: kept(state, workspace).record.state == "done")

    record = kept(state, workspace).record
    assert (record.submitted_by, record.reward, record.flags) == ("time", 0.0, ("patch_refused",))


async def test_time_runs_out_without_a_server_too(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        workspace = await agent.open("brief")
        await agent.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)
        await killed(agent)
    await until(lambda: time.time() > kept(state, workspace).record.deadline_at)

    async with joined() as agent:
        await agent.open("sums")
        await until(lambda: kept(state, workspace).record.state == "done")
        assert (await agent.submit(workspace)).first == "resolved"
    assert kept(state, workspace).record.submitted_by == "time"


async def test_an_assigned_server_hands_out_one_trial_and_never_a_recovered_one(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        stranger = await agent.open("slow")
        await agent.call("submit", workspace_id=stranger, wait_s=0)
        await killed(agent)

    async with joined(
        "--task", "sums", "--job", "j", "--group", "g", "--repetition", "3", "--agent", "me", "--model", "m"
    ) as agent:
        workspace = await agent.open("sums")
        assert await agent.open("sums") == workspace != stranger
        assert (await agent.call("open_workspace", task_id="slow")).is_error
    record = kept(state, workspace).record
    assert (record.job, record.group, record.repetition, record.agent, record.model) == ("j", "g", 3, "me", "m")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_a_server_cleanly(state: Path, tasks: Path, number: signal.Signals) -> None:
    async with running(state, tasks) as (process, ask):
        workspace = await ask("sums")
        family = tuple(descendants(process.pid))
        assert len(family) > 2
        process.send_signal(number)
        with anyio.fail_after(10):
            assert await process.wait() == 128 + number
    assert not alive(family)
    assert kept(state, workspace).record.state == "open", "a shutdown ends no trial"


async def test_closing_stdin_ends_a_server_cleanly(state: Path, tasks: Path) -> None:
    async with running(state, tasks) as (process, ask):
        await ask("sums")
        family = tuple(descendants(process.pid))
        await process.stdin.aclose()
        with anyio.fail_after(10):
            assert await process.wait() == 0
    assert not alive(family)


async def test_a_workspace_goes_on_after_a_shutdown(joined: Serve) -> None:
    async with joined() as agent:
        workspace = await agent.open("sums")
        await agent.call("save_file", workspace_id=workspace, path="x", content="before")
        await agent.run(workspace, f"echo some; {ENDLESS}", wait_s=0)
        await killed(agent, signal.SIGTERM)

    async with joined() as agent:
        assert "before" in (await agent.call("view_file", workspace_id=workspace, path="x")).text
        ended = await agent.call("command_output", workspace_id=workspace, command_id="c1")
        assert ended.first.startswith("c1 was killed: ")
        assert "was stopped" in ended.first


async def test_every_call_is_an_event(steady: Agent, state: Path) -> None:
    workspace = await steady.open("sums")
    await steady.call("save_file", workspace_id=workspace, path="x", content="y" * 20_000)
    await steady.call("view_file", workspace_id=workspace, path="nothing")
    await steady.call("list_files", workspace_id=workspace, wrong=1)
    await steady.run(workspace, "echo hello")
    await steady.submit(workspace)

    events = [event for event in kept(state, workspace).events if event.kind == "call"]
    told = [(event.name, event.outcome) for event in events if event.name != "submit"]
    assert told[:1] == [("open_workspace", "ok")]
    assert told[-4:] == [("save_file", "ok"), ("view_file", "error"), ("list_files", "error"), ("run_command", "ok")]
    assert events[-1].name == "submit"
    saved = kept(state, workspace).calls("save_file")[0]
    assert blob(state, saved.arguments["content"]["blob"]) == b"y" * 20_000
    assert saved.arguments["workspace_id"] == trial_id_of(workspace)
    assert all(event.duration_s > 0 for event in events)
    assert workspace not in repr(kept(state, workspace)), "who reads the record must not be able to use the workspace"


async def test_a_commands_output_is_kept_apart_and_in_order(steady: Agent, state: Path) -> None:
    workspace = await steady.open("sums")
    shown = await steady.run(workspace, r"for n in 1 2 3; do echo out$n; echo err$n >&2; done; printf '\xff\0'; exit 7")

    assert shown.text.partition("\n")[2].startswith("out1\nerr1\nout2\nerr2\nout3\nerr3\n")
    command = kept(state, workspace).command("c1")
    assert command.outcome == "exit 7"
    assert command.detail["pieces"] == [[1, 5], [2, 5], [1, 5], [2, 5], [1, 5], [2, 5], [1, 2]]
    assert command.detail["output"].encode("utf-8", "surrogateescape").endswith(b"err3\n\xff\0")


async def test_a_long_output_is_a_blob(steady: Agent, state: Path) -> None:
    workspace = await steady.open("sums")
    await steady.run(workspace, "seq 1 1000000")

    detail = kept(state, workspace).command("c1").detail
    assert detail["total_bytes"] == 6_888_896
    assert blob(state, detail["output"]["blob"]).startswith(b"1\n2\n3\n")


async def test_who_connected_is_the_agent_and_attempts_are_counted(steady: Agent, state: Path) -> None:
    records = [kept(state, await steady.open("sums")).record for _ in range(2)]

    assert records[0].agent
    assert records[0].agent_version
    assert records[1].attempt == records[0].attempt + 1
    assert (records[0].surface, records[0].containment) == ("mcp", "open")


async def test_a_closed_workspace_scores_nothing(steady: Agent, state: Path) -> None:
    workspace = await steady.open("sums")

    assert (await steady.call("close_workspace", workspace_id=workspace)).first == "closed"

    record = kept(state, workspace).record
    assert (record.state, record.reward, record.submitted_by) == ("done", 0.0, "closed")
    assert (await steady.call("close_workspace", workspace_id=workspace)).is_error
    assert (await steady.submit(workspace)).first == "not resolved"
    await until(lambda: not left(state, workspace))


async def test_the_verdict_is_stored_before_it_is_answered(joined: Serve, state: Path) -> None:
    async with joined() as agent:
        workspace = await agent.open("sums")
        answer = await agent.submit(workspace)
        await killed(agent)

    assert answer.first == "not resolved"
    assert kept(state, workspace).verdict is not None


async def test_a_task_that_changed_ends_its_trials_as_an_error(state: Path, tmp_path: Path) -> None:
    small_task(tmp_path, "sums")
    async with connected(state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        workspace = await agent.open("sums")
        await killed(agent)
    (tmp_path / "sums" / "instruction.md").write_text("Something else.\n")

    async with connected(state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        refused = await agent.run(workspace, "true")

    assert refused.is_error
    assert "changed after this trial began" in refused.text
    assert kept(state, workspace).record.reward is None


async def test_what_dead_servers_left_is_removed(joined: Serve, state: Path) -> None:
    orphan = state / "shared" / "workspaces" / ("f" * 24)
    for folder in (orphan / "upper", state / "shared" / "verify" / "verify-orphan"):
        folder.mkdir(parents=True)

    async with joined() as agent:
        await agent.open("sums")
        await until(lambda: not orphan.exists() and not (state / "shared" / "verify" / "verify-orphan").exists())


def test_the_store_of_this_module_is_consistent(state: Path) -> None:
    with open_store(state / "private" / "store.db") as store:
        for record in store.trials(states=("done",)):
            assert record.reward in (0.0, 1.0)
            assert record.ended_at >= record.created_at
