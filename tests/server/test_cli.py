"""The command line, started as users start it."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters

from clients.connect import TOOLS
from server.settings import inherited_environment

ISOLATED = (sys.executable, "-I", "-m", "server")
ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 120
HEAVY = ("typer", "rich", "sqlalchemy", "git", "unearth", "pip")


@pytest.fixture
def environment(state_folder: Path) -> dict[str, str]:
    return inherited_environment() | {"SEATRIAL_STATE": str(state_folder / "state")}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's project with packages and modules that are named like ours, or like what we need."""
    for name in ("server", "tools", "tasks", "clients"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the user\\'s file was imported')\n")
    for name in ("mcp", "typing", "anyio", "argparse", "pydantic"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the user\\'s file was imported')\n")
    return tmp_path


def seatrial(
    *arguments: str, env: Mapping[str, str], cwd: Path = ROOT, start: Sequence[str] = ISOLATED
) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*start, *arguments], env=env, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_python_m_server_imports_nothing_of_a_folder_without_a_server(hostile: Path, environment: dict[str, str]) -> None:
    (hostile / "server" / "__init__.py").unlink()
    (hostile / "server").rmdir()

    ran = seatrial("tasks", "list", env=environment, cwd=hostile, start=(sys.executable, "-m", "server"))

    assert ran.returncode == 0, ran.stderr
    assert "h11" in ran.stdout


PYTHON = sys.executable
STARTS = (ISOLATED, (PYTHON, "-P", "-m", "server"), (PYTHON, "-m", "server"), (str(Path(PYTHON).parent / "seatrial"),))


@pytest.mark.parametrize("start", STARTS, ids=" ".join)
def test_no_way_to_start_imports_anything_of_the_users_folder(
    start: Sequence[str], hostile: Path, environment: dict[str, str]
) -> None:
    ran = seatrial("tasks", "list", env=environment, cwd=hostile, start=start)

    assert ran.returncode == 0, ran.stderr
    assert "h11" in ran.stdout


@pytest.mark.anyio
async def test_the_entry_that_connect_prints_serves_the_tools_from_a_hostile_folder(
    hostile: Path, environment: dict[str, str]
) -> None:
    printed = json.loads(seatrial("connect", "cline", "--json", env=environment).stdout)
    entry = printed["mcpServers"]["seatrial"]
    server = StdioServerParameters(command=entry["command"], args=entry["args"], env=entry["env"], cwd=hostile)

    with anyio.fail_after(TIMEOUT_S):
        async with Client(server) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]

    assert names == list(TOOLS) == entry["autoApprove"]


def test_a_server_loads_neither_the_command_line_nor_the_store_before_it_serves(environment: dict[str, str]) -> None:
    script = f"import sys, server.cli.serve; print([name for name in {HEAVY!r} if name in sys.modules])"

    ran = seatrial("-c", script, env=environment, start=(sys.executable, "-P"))

    assert ran.stdout.strip() == "[]", ran.stderr


def test_help_names_every_command(environment: dict[str, str]) -> None:
    shown = seatrial("--help", env=environment).stdout

    for command in ("serve", "tasks", "run", "results", "connect", "doctor", "demo"):
        assert command in shown


def test_help_of_serve_names_every_option(environment: dict[str, str]) -> None:
    shown = seatrial("serve", "--help", env=environment).stdout

    for option in ("task", "job", "group", "repetition", "agent", "model", "reveal", "containment", "state", "tasks"):
        assert f"--{option}" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ("tasks", "show", "no-such-task"),
        ("tasks", "build", "no-such-task"),
        ("run", "--agent", "nop", "--task", "no-such-task"),
        ("run", "--agent", "nobody", "--task", "h11-chunked-body"),
        ("results", "no-such-job"),
        ("connect", "no-such-client"),
    ],
    ids=" ".join,
)
def test_an_expected_failure_is_one_line_that_says_what_to_do(arguments: Sequence[str], environment: dict[str, str]) -> None:
    ran = seatrial(*arguments, env=environment)

    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr.startswith("seatrial: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("no-such-command",),
        ("run", "--agent", "nop"),
        ("run", "--agent", "nop", "--task", "x", "-k", "0"),
        ("serve", "--no-such-option"),
        ("--no-such-option",),
        ("serve", "--repetition", "many"),
        ("serve", "--reveal", "everything"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(arguments: Sequence[str], environment: dict[str, str]) -> None:
    ran = seatrial(*arguments, env=environment)

    assert ran.returncode == 2
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr


def test_a_state_folder_that_cannot_be_written_is_refused_with_a_remedy(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")

    ran = seatrial("results", env=environment | {"SEATRIAL_STATE": str(tmp_path / "file" / "state")})

    assert ran.returncode == 1
    assert "SEATRIAL_STATE" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "arguments",
    [("tasks", "list"), ("tasks", "show", "h11-chunked-body"), ("results",), ("connect", "cline"), ("doctor",)],
    ids=" ".join,
)
def test_json_is_all_that_json_prints(arguments: Sequence[str], environment: dict[str, str]) -> None:
    ran = seatrial(*arguments, "--json", env=environment)

    json.loads(ran.stdout)
    assert "Traceback" not in ran.stderr


def test_tasks_show_tells_what_an_operator_asks_for(environment: dict[str, str]) -> None:
    shown = seatrial("tasks", "show", "h11-chunked-body", env=environment).stdout

    assert "starts from" in shown
    assert "must begin to pass" in shown


def test_a_folder_that_is_no_task_is_named_and_hides_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "task.toml").write_text("not = [toml")

    ran = seatrial("tasks", "list", env=environment | {"SEATRIAL_TASKS": str(tmp_path)})

    assert "h11-chunked-body" in ran.stdout
    assert str(tmp_path / "broken") in ran.stdout


def test_results_of_nothing_say_how_to_begin(environment: dict[str, str]) -> None:
    assert "seatrial demo" in seatrial("results", env=environment).stdout


def test_a_reader_that_leaves_is_no_traceback(environment: dict[str, str]) -> None:
    command = [*ISOLATED, "tasks", "list"]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()

    assert told == b""


def test_ctrl_c_ends_a_server_cleanly(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [*ISOLATED, "serve"], env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(_INITIALIZE)
        process.stdin.flush()
        assert b'"result"' in process.stdout.readline()

        process.send_signal(signal.SIGINT)
        process.wait(timeout=TIMEOUT_S)  # its stdin is still open: some clients only send the signal
        told = process.stderr.read()

    assert process.returncode == 130
    assert b"Traceback" not in told


_INITIALIZE = (
    json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
        }
    ).encode()
    + b"\n"
)
