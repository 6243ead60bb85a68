"""Plain Harbor tasks with the features that real ones have: their solution is worth 1, nothing is worth 0, nothing stays."""

import re
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest
from docker_tasks import IMAGE, containers_of, docker_reason, harbor_task
from front_door import connected, reachable_folder, results_of, seatrial

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(bool(docker_reason()), reason=docker_reason())]

FIXTURES = Path(__file__).parents[1] / "fixtures" / "harbor"
TASKS = sorted(folder.name for folder in FIXTURES.iterdir() if folder.is_dir())


@pytest.fixture(scope="module")
def state() -> Generator[Path]:
    with reachable_folder() as folder:
        yield folder
        assert containers_of(folder) == []


def rewards(ran: str) -> list[str]:
    return re.findall(r"(?:oracle|nop) +\d+ +(\S+)", ran)


@pytest.mark.skipif(not IMAGE.startswith("seatrial-test-base"), reason="the fixtures name seatrial-test-base")
@pytest.mark.parametrize("task", TASKS)
def test_the_solution_is_worth_one_and_nothing_is_worth_nothing(state: Path, task: str) -> None:
    for agent, reward in (("oracle", "1.0"), ("nop", "0.0")):
        ran = seatrial(state, "run", "--agent", agent, "--task", task, SEATRIAL_TASKS=str(FIXTURES))

        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert rewards(ran.stdout) == [reward], ran.stdout


async def test_a_second_step_is_told_when_the_first_was_judged(state: Path) -> None:
    async with connected(state, SEATRIAL_TASKS=str(FIXTURES)) as agent:
        workspace = await agent.open("two-steps")

        answer = await agent.submit(workspace)

    assert answer.text.startswith("not resolved"), "the first step's least reward was not reached"
    assert results_of(state)[-1]["reward"] == 0.0


def test_a_task_that_the_local_sandbox_cannot_run_says_so(state: Path) -> None:
    built = seatrial(state, "tasks", "build", "cline-like", "--sandbox", "local", SEATRIAL_TASKS=str(FIXTURES))

    assert built.returncode == 1
    assert "--sandbox docker" in built.stderr


def test_a_daemon_that_does_not_answer_is_told_with_what_to_do(state: Path) -> None:
    nowhere = "unix:///nonexistent/docker.sock"
    built = seatrial(state, "tasks", "build", "cline-like", SEATRIAL_TASKS=str(FIXTURES), DOCKER_HOST=nowhere)

    assert built.returncode == 1
    assert nowhere.removeprefix("unix://") in built.stderr
    assert "DOCKER_HOST" in built.stderr


@pytest.mark.parametrize(
    ("name", "files", "toml", "words"),
    [
        (
            "broken",
            {"environment/Dockerfile": f"FROM {IMAGE}\nRUN echo this is odd && exit 3\n"},
            "",
            ["this is odd", "whole log"],
        ),
        ("slow", {"environment/Dockerfile": f"FROM {IMAGE}\nRUN sleep 60\n"}, "[environment]\nbuild_timeout_sec = 2\n", ["2 s"]),
        ("absent", {}, '[environment]\ndocker_image = "localhost:1/no/such:image"\n', ["no/such"]),
        ("unset", {}, '[environment]\nenv = { KEY = "${SEATRIAL_NOT_SET}" }\n', ["SEATRIAL_NOT_SET"]),
        ("everything", {"environment/Dockerfile": f"FROM {IMAGE}\nWORKDIR /\n"}, "", ["in-place", "workdir"]),
    ],
)
async def test_what_cannot_be_built_is_told(
    state: Path, tmp_path: Path, name: str, files: dict[str, str], toml: str, words: list[str]
) -> None:
    harbor_task(tmp_path, name, toml, **files)

    async with connected(state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        answer = await agent.call("open_workspace", task_id=name)
        if not answer.is_error:
            workspace = answer.first.removeprefix("workspace_id: ")
            while (answer := await agent.call("list_files", workspace_id=workspace)).text.startswith("building"):
                pass

    assert answer.is_error
    for word in words:
        assert word in answer.text, answer.text
    assert results_of(state)[-1]["reward"] is None


async def test_a_container_killed_from_outside_is_opened_again_with_its_files(state: Path, tmp_path: Path) -> None:
    harbor_task(tmp_path, "kept")
    async with connected(state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        workspace = await agent.open("kept")
        await agent.run(workspace, "echo kept > /app/file; echo too > /etc/file")
        (name,) = containers_of(state)
        await anyio.run_process(["docker", "kill", name])

        first = await agent.run(workspace, "cat /app/file /etc/file")
        second = await agent.run(workspace, "cat /app/file /etc/file")

        assert "kept" in (first.text + second.text)
        assert "kept\ntoo" in second.text
        await agent.call("close_workspace", workspace_id=workspace)


async def test_a_workspace_shows_its_change_and_carries_modes_links_and_deletions(state: Path, tmp_path: Path) -> None:
    check = (
        "import os, sys\nsys.path.insert(0, '/app')\nimport app\n"
        "good = os.access('/app/run', os.X_OK) and os.readlink('/app/link') == 'run' and not os.path.exists('/app/old')\n"
        "good = good and open('/app/deep/er/new.txt').read() == 'new\\n' and not os.path.exists('/etc/not-carried')\n"
        "sys.exit(0 if good and app.answer() == 42 and open('/etc/carried').read() == 'x\\n' else 1)\n"
    )
    dockerfile = f"FROM {IMAGE}\nWORKDIR /app\nCOPY app.py .\nRUN mkdir old && echo 1 > old/file\n"
    toml = '[metadata.seatrial.verifier]\nkind = "harbor"\ncarry = ["/etc/carried"]\n'
    harbor_task(tmp_path, "carries", toml, **{"environment/Dockerfile": dockerfile, "tests/check.py": check})

    async with connected(state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        workspace = await agent.open("carries")
        await agent.run(
            workspace,
            "printf 'def answer():\\n    return 42\\n' > app.py; echo a > run; chmod +x run; ln -s run link; rm -r old;"
            "mkdir -p deep/er; echo new > deep/er/new.txt; echo x > /etc/carried; echo y > /etc/not-carried",
        )
        diff = await agent.call("view_diff", workspace_id=workspace)
        answer = await agent.submit(workspace)

    assert "M app.py" in diff.text
    assert "-    return 0" in diff.text
    assert "A deep/er/new.txt" in diff.text
    assert "D old" in diff.text
    assert answer.text.startswith("resolved"), answer.text


ALLOWLIST = '[environment]\nnetwork_mode = "allowlist"\nallowed_hosts = ["allowed.test"]\n'
FETCH = (
    'python3 -c "import urllib.request, urllib.error\n'
    "for host in ('denied.test', '127.0.0.1:1'):\n"
    "    try: urllib.request.urlopen('http://' + host, timeout=5)\n"
    "    except urllib.error.HTTPError as error: print(host, error.code)\n"
    "    except OSError as error: print(host, 'unreachable')\n"
    '"; cat /proc/net/dev | grep -c eth'
)


async def test_a_list_of_hosts_is_held_by_a_proxy(state: Path, tmp_path: Path) -> None:
    harbor_task(tmp_path, "listed", ALLOWLIST)
    async with connected(state, SEATRIAL_TASKS=str(tmp_path), SEATRIAL_DOCKER_BASE=IMAGE) as agent:
        workspace = await agent.open("listed")

        answer = await agent.run(workspace, FETCH)

        assert "denied.test 403" in answer.text, answer.text
        assert answer.text.rstrip().endswith("0"), "there is no network but the loopback"
        told = await agent.call("get_task", task_id="listed")
        assert "allowed.test" in told.text or not told.is_error
        await agent.call("close_workspace", workspace_id=workspace)


async def test_a_list_of_hosts_without_an_image_for_its_proxy_says_which_setting(state: Path, tmp_path: Path) -> None:
    harbor_task(tmp_path, "unlisted", ALLOWLIST)
    async with connected(state, SEATRIAL_TASKS=str(tmp_path), SEATRIAL_DOCKER_BASE="") as agent:
        answer = await agent.call("open_workspace", task_id="unlisted")
        if not answer.is_error:
            workspace = answer.first.removeprefix("workspace_id: ")
            while (answer := await agent.call("list_files", workspace_id=workspace)).text.startswith("building"):
                pass

    assert answer.is_error
    assert "SEATRIAL_DOCKER_BASE" in answer.text


async def test_a_task_judged_in_place_keeps_what_lies_outside_its_workdir(state: Path, tmp_path: Path) -> None:
    toml = '[metadata.seatrial.verifier]\nkind = "harbor"\nassurance = "in-place"\n'
    test = "#!/bin/sh\nif [ -f /etc/made ]; then echo 1; else echo 0; fi > /logs/verifier/reward.txt\n"
    harbor_task(tmp_path, "placed", toml, **{"tests/test.sh": test})

    async with connected(state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        workspace = await agent.open("placed")
        await agent.run(workspace, "touch /etc/made")
        answer = await agent.submit(workspace)

    assert answer.text.startswith("resolved"), answer.text
