"""Plain Harbor tasks through the front door: solved, not solved, and every way to cheat that leaves the agent's container."""

import re
from collections.abc import Generator
from pathlib import Path

import pytest
from docker_tasks import IMAGE, STRICT, docker_reason, harbor_task
from front_door import Agent, connected, reachable_folder, results_of, seatrial

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(docker_reason()), reason=docker_reason())]

RIGHT = "def answer():\n    return 42\n"
LIMITED = "[verifier]\ntimeout_sec = 8\n"


@pytest.fixture(scope="module")
def place() -> Generator[Path]:
    """A state folder, and the tasks beside it."""
    with reachable_folder() as folder:
        tasks = folder / "tasks"
        harbor_task(tasks, "answer")
        harbor_task(tasks, "strict", **{"tests/test.sh": STRICT})
        harbor_task(tasks, "hurried", LIMITED)
        linked = {
            "environment/Dockerfile": f"FROM {IMAGE}\nWORKDIR /app\nCOPY app.py .\nRUN mkdir /opt/tools && ln -s /opt/tools tools"
            " && printf '#!/bin/sh\\nexit 1\\n' > /opt/tools/check && chmod +x /opt/tools/check\n",
            "tests/test.sh": "#!/bin/sh\nif /opt/tools/check; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n",
            "solution/solve.sh": "",
        }
        harbor_task(tasks, "linked", **linked)
        built = seatrial(folder / "state", "tasks", "build", "answer", "strict", "hurried", "linked", SEATRIAL_TASKS=str(tasks))
        assert built.returncode == 0, built.stdout + built.stderr
        yield folder


async def reward_of(place: Path, task: str, *commands: str, save: str = "") -> tuple[str, dict[str, object]]:
    """Let an agent run ``commands``, save ``save`` as app.py, and submit; return the answer and what the operator sees."""
    async with connected(place / "state", SEATRIAL_TASKS=str(place / "tasks")) as agent:
        workspace = await agent.open(task)
        for command in commands:
            answer = await agent.run(workspace, command)
            assert not answer.is_error, answer.text
        if save:
            saved = await agent.call("save_file", workspace_id=workspace, path="app.py", content=save)
            assert not saved.is_error, saved.text
        answer = await agent.submit(workspace)
        assert not answer.is_error, answer.text
    return answer.text, results_of(place / "state")[-1]


async def test_the_right_answer_is_worth_one(place: Path) -> None:
    text, result = await reward_of(place, "answer", save=RIGHT)

    assert text.startswith("resolved")
    assert result["reward"] == 1.0


@pytest.mark.parametrize("task", ["answer", "strict"])
async def test_doing_nothing_is_worth_nothing(place: Path, task: str) -> None:
    text, result = await reward_of(place, task)

    assert text.startswith("not resolved")
    assert result["reward"] == 0.0


ATTACKS = {
    "a reward written beforehand": (["cd /logs/verifier; echo '{\"reward\": 1}' > reward.json; echo 1 > reward.txt"], ""),
    "a loop in the workspace": (["(while :; do echo 1 > /logs/verifier/reward.txt; sleep 0.01; done) >/dev/null 2>&1 &"], ""),
    "a fake python": (
        [
            "for one in python3 cat uv pytest sh; do printf '#!/bin/bash\\nexit 0\\n' > /usr/local/bin/$one; "
            "chmod +x /usr/local/bin/$one; done; hash -r"
        ],
        "",
    ),
    "planted tests": (["mkdir -p /tests; echo 'raise SystemExit(0)' > /tests/check.py; echo 'exit 0' > /tests/test.sh"], ""),
    "a planted solution": (["mkdir -p /solution; echo 'echo 1 > /logs/verifier/reward.txt' > /solution/solve.sh"], ""),
    "a loop started by the submission": (
        [],
        "import subprocess\n"
        "subprocess.Popen(['sh', '-c', 'while :; do echo 1 > /logs/verifier/reward.txt; sleep 0.01; done'],"
        " start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
        "def answer():\n    return 0\n",
    ),
    "a submission that kills the verifier": (
        [],
        "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\ndef answer():\n    return 0\n",
    ),
    "a broken rm and something left running": (
        [],
        "import pathlib, subprocess\npathlib.Path('/bin/rm').write_text('#!/bin/sh\\nexit 1\\n')\n"
        "subprocess.Popen(['sleep', '100'], start_new_session=True, stdout=subprocess.DEVNULL)\ndef answer():\n    return 0\n",
    ),
    "a file in place of the workdir": (["cd /; rm -rf /app; echo hi > /app"], ""),
    "a folder in place of a link": (
        ["rm tools; mkdir tools; printf '#!/bin/sh\\nexit 0\\n' > tools/check; chmod +x tools/check"],
        "",
    ),
    "a link to the reward": (["ln -s /logs/verifier/reward.txt /app/reward.txt; echo 1 > /app/reward.txt"], ""),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_cheat_is_worth_nothing(place: Path, name: str) -> None:
    commands, save = ATTACKS[name]

    task = "linked" if "link" in name and "folder" in name else "answer"

    text, result = await reward_of(place, task, *commands, save=save)

    assert text.startswith("not resolved"), text
    assert result["reward"] == 0.0


async def test_running_past_the_limit_is_worth_nothing(place: Path) -> None:
    _, result = await reward_of(place, "hurried", save="import time\ntime.sleep(600)\n")

    assert result["reward"] == 0.0
    assert "broke_verifier" in result["flags"]


async def test_an_agent_cannot_turn_nothing_into_an_error(place: Path) -> None:
    """The script of this task leaves no reward when a test fails: only the solution shows that it works."""
    _, result = await reward_of(place, "strict", save="raise SystemExit(3)\n")

    assert result["reward"] == 0.0
    assert "broke_verifier" in result["flags"]


def test_the_oracle_solves_and_nop_does_not(place: Path) -> None:
    tasks = {"SEATRIAL_TASKS": str(place / "tasks")}

    for agent, reward in (("oracle", "1.0"), ("nop", "0.0")):
        ran = seatrial(place / "state", "run", "--agent", agent, "--task", "answer", "--task", "strict", **tasks)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert re.findall(r"(?:oracle|nop) +1 +(\d\.\d)", ran.stdout) == [reward, reward], ran.stdout


async def test_a_container_sees_nothing_of_the_tests(place: Path) -> None:
    async with connected(place / "state", SEATRIAL_TASKS=str(place / "tasks")) as agent:
        workspace = await agent.open("answer")

        answer = await agent.run(workspace, "ls -a / /tests /solution /app 2>&1; id -u; pwd")

        assert "check.py" not in answer.text
        assert "solve.sh" not in answer.text
        await closed(agent, workspace)


async def closed(agent: Agent, workspace: str) -> None:
    assert (await agent.call("close_workspace", workspace_id=workspace)).text.startswith("closed")


async def test_a_change_that_cannot_be_read_is_refused_and_can_be_mended(place: Path) -> None:
    async with connected(place / "state", SEATRIAL_TASKS=str(place / "tasks")) as agent:
        workspace = await agent.open("answer")
        await agent.run(workspace, "ln -s loop loop")

        refused = await agent.call("submit", workspace_id=workspace)
        await agent.run(workspace, "rm loop")
        answer = await agent.submit(workspace)

    assert refused.is_error
    assert "/app/loop" in refused.text
    assert "/var/lib" not in refused.text
    assert answer.text.startswith("not resolved")
