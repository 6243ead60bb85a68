"""The command line, started as users start it."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters
from rich.console import Console
from rich.progress import Progress, TextColumn

import seatrial_start
from server.cli.builds import Built, write_not_built
from server.cli.connect import environment_of
from server.cli.display import Live
from server.cli.runs import results_command
from server.settings import Settings, inherited_environment

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
STARTS = (
    ISOLATED,
    (PYTHON, "-P", "-m", "server"),
    (PYTHON, "-m", "server"),
    (PYTHON, "-mserver"),
    (PYTHON, "-um", "server"),
    (PYTHON, "-W", "error", "-Xutf8", "-m", "server"),
    (str(Path(PYTHON).parent / "seatrial"),),
)


@pytest.mark.parametrize("start", STARTS, ids=" ".join)
def test_no_way_to_start_imports_anything_of_the_users_folder(
    start: Sequence[str], hostile: Path, environment: dict[str, str]
) -> None:
    ran = seatrial("tasks", "list", env=environment, cwd=hostile, start=start)

    assert ran.returncode == 0, ran.stderr
    assert "h11" in ran.stdout


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("python -m server", "server"),
        ("python -mserver tasks list", "server"),
        ("python -uIm server", "server"),
        ("python -W error -X utf8 -Wignore -Xdev -m server", "server"),
        ("python --check-hash-based-pycs never -m server", "server"),
        ("python -m pytest server", "pytest"),
        ("python -c pass -m server", ""),
        ("python -cm server", ""),
        ("python app.py -m server", ""),
        ("python - -m server", ""),
        ("python -- app.py -m server", ""),
        ("python -W -m server", ""),
        ("python -m", ""),
        ("python", ""),
        ("", ""),
    ],
)
def test_the_start_up_file_knows_what_python_is_to_run(command: str, module: str) -> None:
    assert seatrial_start.module_of(command.split()) == module


def test_the_start_up_file_leaves_other_programs_alone(hostile: Path, environment: dict[str, str]) -> None:
    (hostile / "program.py").write_text("import sys\nimport server")

    ran = seatrial("server", env=environment, cwd=hostile, start=(PYTHON, "program.py"))

    assert "the user's file was imported" in ran.stderr


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

    assert names == entry["autoApprove"]


def test_the_entry_means_the_same_settings_in_any_folder_and_environment(tmp_path: Path) -> None:
    given = {"SEATRIAL_STATE": "state", "SEATRIAL_TASKS": "a:b", "SEATRIAL_BWRAP": "bwrap", "SEATRIAL_PYTHONS": "c:/d"}
    settings = Settings.from_environment(
        given | {"SEATRIAL_REVEAL": "none", "SEATRIAL_CONTAINMENT": "sealed", "PATH": "bin:/bin"}
    )

    written = environment_of(settings)

    assert Settings.from_environment(written) == settings
    assert written["SEATRIAL_TASKS"] == f"{Path.cwd() / 'a'}:{Path.cwd() / 'b'}"
    assert not [part for value in written.values() for part in value.split(":") if not part.startswith(("/", "none", "sealed"))]


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
        ("results", "no-such-job"),
        ("serve", "--task", "no-such-task"),
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
        ("run", "--agent", "nobody", "--task", "h11-chunked-body"),
        ("run", "--agent", "nop", "--task", "x", "--job", "red \x1b[31m"),
        ("connect", "no-such-client"),
        ("serve", "--no-such-option"),
        ("--no-such-option",),
        ("serve", "--repetition", "many"),
        ("serve", "--repetition", "-1"),
        ("serve", "--job", "two\nlines"),
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


@pytest.mark.parametrize(
    "arguments",
    [("tasks", "build", "h11-chunked-body"), ("run", "--agent", "nop", "--task", "h11-chunked-body"), ("demo",)],
    ids=" ".join,
)
def test_json_is_all_that_json_prints_of_long_work(arguments: Sequence[str], built_state: Path) -> None:
    ran = seatrial(*arguments, "--json", env=inherited_environment() | {"SEATRIAL_STATE": str(built_state)})

    json.loads(ran.stdout)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_server_names_the_tasks_there_are_when_its_own_is_not(environment: dict[str, str]) -> None:
    assert "h11-chunked-body" in seatrial("serve", "--task", "no-such-task", env=environment).stderr


@pytest.mark.parametrize(
    "arguments",
    [("demo",), ("run", "--agent", "nop", "--task", "h11-chunked-body"), ("tasks", "build")],
    ids=" ".join,
)
def test_what_no_sandbox_can_do_without_is_told_once(arguments: Sequence[str], environment: dict[str, str]) -> None:
    ran = seatrial(*arguments, env=environment | {"SEATRIAL_BWRAP": "/no/bwrap"})

    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("seatrial: ")
    assert ran.stderr.count("/no/bwrap") == ran.stderr.count("\n") == 1


def test_doctor_names_interpreters_that_are_none(environment: dict[str, str]) -> None:
    ran = seatrial("doctor", "--json", env=environment | {"SEATRIAL_PYTHONS": f"{PYTHON}:/no/python"})

    found = {finding["feature"]: finding for finding in json.loads(ran.stdout)["findings"]}
    assert "/no/python" in found["SEATRIAL_PYTHONS"]["how"]
    assert PYTHON not in found["SEATRIAL_PYTHONS"]["how"]


def test_tasks_list_finds_the_tasks_that_hold_every_word(environment: dict[str, str]) -> None:
    shown = seatrial("tasks", "list", "CHUNKED", "bodies", env=environment).stdout

    assert "h11-chunked-body" in shown
    assert "cachetools" not in shown


def test_tasks_list_says_that_nothing_matches(environment: dict[str, str]) -> None:
    ran = seatrial("tasks", "list", "chunked", "nowhere", env=environment)

    assert ran.returncode == 0
    assert ran.stdout.startswith("No task matches 'chunked nowhere'")


@pytest.mark.parametrize("job", ["plain", "two words", "it's", "-k", "$(echo x)"])
def test_the_hint_can_be_pasted_whatever_the_job_is_called(job: str, environment: dict[str, str]) -> None:
    _, *arguments = shlex.split(results_command(job))

    assert f"job {job!r}" in seatrial(*arguments, env=environment).stderr


def test_why_something_was_not_built_is_told_once_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    write_not_built([Built("a-task", 1.0, "No network."), Built("other", 1.0, "")])

    assert capsys.readouterr() == ("", "a-task was not built: No network.\n")


def test_a_board_keeps_what_ended_and_shows_what_goes_on_whatever_the_height() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80, height=4)
    with Progress(TextColumn("{task.description}", markup=False), console=console, auto_refresh=False) as progress:
        board = Live(progress)
        for number in range(20):
            board.stage(f"trial {number}", "working")
            board.done(f"trial {number}", "done in 2.6 s")
        board.stage("last", "[red]working")
        rows = [task.description for task in progress.tasks]

    assert rows == ["last: [red]working"]
    assert all(f"trial {number}: done in 2.6 s\n" in screen.getvalue() for number in range(20))


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


PRINTING = pytest.mark.parametrize("arguments", [("tasks", "list"), ("--version",), ("--help",)], ids=" ".join)
UNBUFFERED = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])


@PRINTING
@UNBUFFERED
def test_a_reader_that_leaves_is_no_traceback(arguments: Sequence[str], unbuffered: str, environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)

    try:
        ran = sent_to(writer, *arguments, env=environment | {"PYTHONUNBUFFERED": unbuffered})
    finally:
        os.close(writer)

    assert (ran.returncode, ran.stderr) == (141, "")


@PRINTING
@UNBUFFERED
def test_a_full_disk_is_one_line(arguments: Sequence[str], unbuffered: str, environment: dict[str, str]) -> None:
    with Path("/dev/full").open("wb") as output:
        ran = sent_to(output.fileno(), *arguments, env=environment | {"PYTHONUNBUFFERED": unbuffered})

    assert ran.returncode == 1
    assert ran.stderr.startswith("seatrial: Cannot write the output")
    assert ran.stderr.count("\n") == 1


def test_a_closed_output_is_one_line(environment: dict[str, str]) -> None:
    ran = seatrial("tasks", "list", env=environment, start=("sh", "-c", 'exec "$@" >&-', "sh", *ISOLATED))

    assert ran.returncode == 1
    assert ran.stderr == "seatrial: The output is closed. Send it to a file or to /dev/null.\n"


def sent_to(output: int, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [*ISOLATED, *arguments]
    return subprocess.run(command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S)


@contextmanager
def typed() -> Generator[int]:
    """Yield the descriptor of a terminal that nobody types into."""
    ours, theirs = os.openpty()
    try:
        yield theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_the_bare_name_in_a_terminal_shows_the_help(environment: dict[str, str]) -> None:
    with typed() as terminal:
        ran = subprocess.run(ISOLATED, env=environment, cwd=ROOT, stdin=terminal, capture_output=True, timeout=TIMEOUT_S)

    assert ran.returncode == 0
    assert b"Usage: seatrial" in ran.stdout


def test_serve_in_a_terminal_says_what_it_waits_for(environment: dict[str, str]) -> None:
    command = [*ISOLATED, "serve"]
    with (
        typed() as terminal,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdin=terminal, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        told = process.stderr.readline()
        process.send_signal(signal.SIGINT)

    assert b"Ctrl-C ends it; see seatrial --help." in told
    assert process.returncode == 130


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
