"""The whole path, with the real server, sandbox and verifier: what `seatrial demo` promises, and what comes after it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.settings import inherited_environment

ISOLATED = (sys.executable, "-I", "-m", "server")
TASKS = ("cachetools-copy-pickle", "h11-chunked-body")
TIMEOUT_S = 900


@pytest.fixture(scope="module")
def environment(built_state: Path) -> dict[str, str]:
    return inherited_environment() | {"SEATRIAL_STATE": str(built_state)}


@pytest.fixture(scope="module")
def demo(environment: dict[str, str]) -> Any:
    ran = seatrial("demo", "--json", env=environment)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def seatrial(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ISOLATED, *arguments], env=env, cwd="/", capture_output=True, text=True, timeout=TIMEOUT_S)


def test_the_oracle_is_scored_1_and_nop_0_on_every_bundled_task(demo: Any) -> None:
    rewards = {(trial["task"], trial["agent"]): trial["reward"] for trial in demo["trials"]}

    assert demo["as_expected"] is True
    assert rewards == {(task, agent): reward for task in TASKS for agent, reward in (("oracle", 1.0), ("nop", 0.0))}


def test_every_trial_tells_its_phases_and_its_assurance(demo: Any) -> None:
    for trial in demo["trials"]:
        assert set(trial["timings_s"]) == {"start", "open", "work", "verify", "total"}
        assert trial["assurance"] == "basic"


def test_the_results_show_the_trials_of_the_demo(demo: Any, environment: dict[str, str]) -> None:
    shown = json.loads(seatrial("results", demo["job"], "--json", env=environment).stdout)

    assert {trial["id"]: trial["reward"] for trial in shown["trials"]} == {
        trial["trial"]: trial["reward"] for trial in demo["trials"]
    }
    assert {mean["containment"] for mean in shown["means"]} == {"sealed"}
    assert {tuple(mean["assurance"]) for mean in shown["means"]} == {("basic",)}
    assert {(mean["agent"], mean["mean_reward"]) for mean in shown["means"]} == {("oracle", 1.0), ("nop", 0.0)}


def test_a_run_repeats_each_task_in_order(demo: Any, environment: dict[str, str]) -> None:
    arguments = ("--agent", "oracle", "--task", "h11-chunked-body", "-k", "3", "-n", "2", "--job", "three")
    ran = seatrial("run", *arguments, "--json", env=environment)

    printed = json.loads(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    assert [(trial["repetition"], trial["reward"]) for trial in printed["trials"]] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert "three" in seatrial("results", env=environment).stdout


def test_the_tables_can_be_read(demo: Any, environment: dict[str, str]) -> None:
    ran = seatrial("run", "--agent", "nop", "--task", "h11-chunked-body", env=environment)

    header, row, *_ = ran.stdout.splitlines()
    assert header.split()[:4] == ["task", "agent", "#", "reward"]
    assert row.split()[:4] == ["h11-chunked-body", "nop", "1", "0.0"]


def test_ctrl_c_ends_a_run_with_all_that_it_started(demo: Any, environment: dict[str, str]) -> None:
    command = [*ISOLATED, "run", "--agent", "oracle", "--task", "h11-chunked-body", "-k", "50", "--job", "broken off"]
    with subprocess.Popen(
        command, env=environment, cwd="/", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "working" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()

    assert process.returncode == 130
    assert "Traceback" not in told
    assert "stopped; see: seatrial results 'broken off'\n" in told
