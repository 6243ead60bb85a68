"""Whatever an agent sends or runs: an answer that says what to do, a server that lives on, a workspace that can be used."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import anyio
import pytest
from desk import Desk, desk_at, narrow_task
from front_door import H11, Agent, Answer, connected, reachable_folder, seatrial
from small_tasks import BUNDLED, small_task

pytestmark = pytest.mark.anyio

FILE_TOOLS: Mapping[str, Mapping[str, object]] = {
    "list_files": {},
    "view_file": {},
    "save_file": {"content": "overwritten"},
    "edit_file": {"old_text": "root", "new_text": "overwritten"},
}
OUTSIDE = (
    "..",
    "../etc/passwd",
    "/etc/passwd",
    "//etc/passwd",
    "/workspace/../etc/passwd",
    "h11/../../etc/passwd",
    "/proc/self/root/etc/passwd",
    "/proc/1/fd/0",
    "/proc/1/mem",
    "/dev/zero",
    "/tmp/x",
    "nul\0nul",
    "\0",
    "x" * 5_000,
    "/".join(["y" * 50] * 90),
    "z" * 300,
)
LINKS = {
    "to-file": "/etc/passwd",
    "to-folder": "/etc",
    "up": "../../../etc/passwd",
    "by-proc": "/proc/self/root/etc/passwd",
    "to-channel": "/proc/1/fd/0",
    "to-memory": "/proc/self/mem",
    "to-device": "/dev/zero",
    "to-terminal": "/dev/tty",
    "loop": "loop",
    "nowhere": "/nowhere/at/all",
}
WITH_WORKSPACE: Mapping[str, Mapping[str, object]] = {
    **{tool: {"path": "README.rst", **arguments} for tool, arguments in FILE_TOOLS.items()},
    "search_files": {"pattern": "x"},
    "run_command": {"command": "true"},
    "command_output": {"command_id": "c1"},
    "stop_command": {"command_id": "c1"},
    "view_diff": {},
}


@pytest.mark.parametrize("tool", [*WITH_WORKSPACE, "submit", "close_workspace"])
@pytest.mark.parametrize("workspace_id", ["", "nope", "0" * 32, "../../store.db", "nul\0", "\U0001f600" * 5_000])
async def test_an_unknown_workspace_is_answered_with_what_to_do(desk: Desk, tool: str, workspace_id: str) -> None:
    answer = await desk.agent.call(tool, workspace_id=workspace_id, **WITH_WORKSPACE.get(tool, {}))

    assert answer.is_error
    assert answer.text.startswith("No workspace ")
    assert "open_workspace" in answer.text


@pytest.mark.parametrize("command_id", ["", "c", "c0", "c99999999999", "../c1", "c\u0661", "nul\0"])
@pytest.mark.parametrize("tool", ["command_output", "stop_command"])
async def test_an_unknown_command_is_answered_with_what_to_do(desk: Desk, tool: str, command_id: str) -> None:
    said = await desk.bad(tool, command_id=command_id)

    assert said.startswith("No command ")
    assert "run_command" in said


@pytest.mark.parametrize("task_id", ["", "nope", "../h11-chunked-body", "/etc/passwd", "nul\0"])
async def test_an_unknown_task_is_answered_with_what_to_do(desk: Desk, task_id: str) -> None:
    for tool in ("get_task", "open_workspace"):
        answer = await desk.agent.call(tool, task_id=task_id)

        assert answer.is_error
        assert "Call list_tasks" in answer.text


@pytest.mark.parametrize("cursor", ["x", "-1", "999999", "1e3", "\u0661", "9" * 5_000])
async def test_a_cursor_that_was_not_given_is_refused(desk: Desk, cursor: str) -> None:
    answer = await desk.agent.call("list_tasks", cursor=cursor)

    assert answer.is_error
    assert "Call list_tasks without one" in answer.text


@pytest.mark.parametrize("path", OUTSIDE)
async def test_a_path_outside_or_without_meaning_is_refused_by_every_tool(desk: Desk, path: str) -> None:
    for tool, arguments in FILE_TOOLS.items():
        said = await desk.bad(tool, path=path, **arguments)

        assert "outside the workspace" in said or "characters" in said or "too long" in said
    if len(path) != 300:
        await desk.bad("view_diff", path=path)
        await desk.bad("search_files", path=path, pattern="root")
    assert "root" in await desk.run("cat /etc/passwd")


@pytest.mark.parametrize("name", LINKS)
async def test_a_symlink_that_leads_outside_is_refused_by_every_tool(desk: Desk, name: str) -> None:
    await desk.run(f"mkdir -p links; ln -sfn {LINKS[name]} links/{name}")

    for tool, arguments in FILE_TOOLS.items():
        assert f"links/{name}: " in await desk.bad(tool, path=f"links/{name}", **arguments)
        assert f"links/{name}/below: " in await desk.bad(tool, path=f"links/{name}/below", **arguments)
    assert f"A links/{name} (symlink)" in await desk.good("view_diff", path="links")


async def test_what_is_no_regular_file_is_named_and_never_opened(desk: Desk) -> None:
    await desk.python(
        "import os, socket\nos.makedirs('special', exist_ok=True)\nos.mkfifo('special/FIFO')\nos.mkdir('special/folder')\n"
        "socket.socket(socket.AF_UNIX).bind('special/socket')\n"
    )

    for kind in ("FIFO", "folder", "socket"):
        for tool in ("view_file", "save_file", "edit_file"):
            assert f"not a regular file but a {kind}" in await desk.bad(tool, path=f"special/{kind}", **FILE_TOOLS[tool])
    assert "not a folder" in await desk.bad("list_files", path="special/FIFO")
    assert await desk.good("search_files", pattern="x", path="special/FIFO") == "No match for 'x' in special/FIFO."
    assert await desk.good("search_files", pattern="x", path="special") == "No match for 'x' in special."
    assert await desk.good("view_diff", path="special") == "No changes."
    for tool in ("view_file", "save_file", "edit_file", "list_files"):
        assert "README.rst/below: " in await desk.bad(tool, path="README.rst/below", **FILE_TOOLS[tool])
    assert await desk.works()


@pytest.mark.parametrize(
    "tool, arguments, said",
    [
        ("run_command", {"command": ""}, "The command is empty."),
        ("run_command", {"command": " \n"}, "The command is empty."),
        ("run_command", {"command": "echo a\0b"}, "no NUL"),
        ("run_command", {"command": "true", "cwd": "nul\0"}, "no NUL"),
        ("run_command", {"command": "true", "cwd": "nowhere"}, "was not started: cwd /workspace/nowhere: No such file"),
        ("run_command", {"command": "true", "cwd": "setup.py"}, "was not started: cwd /workspace/setup.py: Not a directory"),
        ("search_files", {"pattern": ""}, "not empty"),
        ("search_files", {"pattern": "a\0b"}, "no NUL"),
        ("search_files", {"pattern": "x", "glob": "a\0b"}, "no NUL"),
        ("save_file", {"path": "", "content": ""}, "The path of a file is needed."),
        ("save_file", {"path": ".", "content": ""}, "The path of a file is needed."),
        ("edit_file", {"path": "nowhere", "old_text": "a", "new_text": "b"}, "nowhere: no such file or folder"),
        ("view_file", {"path": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
async def test_a_call_without_meaning_is_refused(desk: Desk, tool: str, arguments: Mapping[str, object], said: str) -> None:
    assert said in await desk.bad(tool, **arguments)


async def test_patterns_made_to_search_for_ever_are_given_up(desk: Desk) -> None:
    await desk.good("save_file", path="evil.txt", content=("a" * 40 + "!\n") * 2_000)

    answer = await desk.call("search_files", pattern="(a+)+$", path="evil.txt")

    assert "of the server's" not in answer.text
    assert await desk.works()


# --- the end of a trial ---


async def test_after_closing_every_tool_says_that_the_trial_is_over(desk: Desk) -> None:
    closed = Desk(desk.agent, await desk.agent.open(H11))
    await closed.good("close_workspace")

    for tool, arguments in WITH_WORKSPACE.items():
        assert "This workspace was closed, so its trial is over" in await closed.bad(tool, **arguments)
    assert await closed.good("submit") == "not resolved\nThis workspace was closed before it was submitted."
    assert "This workspace was closed, so its trial is over" in await closed.bad("close_workspace")


async def test_after_submitting_there_is_the_same_verdict_and_nothing_else(desk: Desk) -> None:
    workspace = await desk.agent.open(H11)
    submitted = Desk(desk.agent, workspace)
    answers: list[Answer] = []

    async def submit() -> None:
        answers.append(await desk.agent.submit(workspace))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(submit)

    assert len({answer.text for answer in answers}) == 1
    assert answers[0].first == "not resolved"
    assert await desk.agent.submit(workspace) == answers[0]
    for tool, arguments in {**WITH_WORKSPACE, "close_workspace": {}}.items():
        assert "Call submit to see the result" in await submitted.bad(tool, **arguments)


# --- commands that attack ---


@pytest.fixture(scope="module")
async def narrow(built_state: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Desk]:
    """A workspace with 128 MB of memory, 32 MB of disk and 64 processes."""
    tasks = tmp_path_factory.mktemp("narrow")
    async with desk_at(built_state, narrow_task(tasks, "narrow"), SEATRIAL_TASKS=str(tasks)) as desk:
        yield desk


FORKS = """
import os
while True:
    try:
        if os.fork() == 0:
            os.setsid()
    except OSError:
        pass
"""
MEMORY = "kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))\n"
MEMORY_FILES = """
import os
kept = []
while True:
    kept.append(os.memfd_create("hidden"))
    for _ in range(20):
        os.write(kept[-1], bytes(1 << 20))
"""
DISK = """
import itertools
for n in itertools.count():
    with open(f"big-{n}", "wb") as file:
        for _ in range(20):
            file.write(bytes(1 << 20))
"""
DELETED = """
import os
kept = []
while True:
    kept.append(open("hidden", "wb"))
    os.unlink("hidden")
    for _ in range(20):
        kept[-1].write(bytes(1 << 20))
"""
BOMBS = {
    "forks in the foreground": ("python .git/program.py", FORKS),
    "forks left behind": ("python .git/program.py & sleep 0.2", FORKS),
    "forks of the shell": ("f() { f | f & }; f; sleep 1", ""),
    "memory": ("python .git/program.py", MEMORY),
    "memory of children": ("for n in 1 2 3 4; do python .git/program.py & done; wait", MEMORY),
    "memory in files without names": ("python .git/program.py", MEMORY_FILES),
    "memory in folders of memory": ("for at in /tmp /dev/shm ~; do for n in 1 2 3; do yes > $at/$n; done; done", ""),
    "disk": ("python .git/program.py; sleep 5", DISK),
    "disk in deleted files": ("python .git/program.py; sleep 5", DELETED),
    "threads": (
        "python .git/program.py",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,)).start()",
    ),
    "descriptors": ("python .git/program.py", "import os\nkept = []\nwhile True: kept.append(os.pipe())"),
    "no end": ("sleep infinity", ""),
    "no end and deaf": ("trap '' TERM INT HUP; while :; do :; done", ""),
    "output without end": ("yes", ""),
    "binary output without end": ("cat /dev/urandom", ""),
    "errors without end": ("while :; do echo $RANDOM >&2; done", ""),
    "one line without end": ("cat /dev/zero", ""),
}


@pytest.mark.parametrize("command, program", BOMBS.values(), ids=BOMBS)
async def test_a_bomb_costs_its_command_and_at_most_the_processes_beside_it(narrow: Desk, command: str, program: str) -> None:
    await narrow.good("save_file", path=".git/program.py", content=program)
    await narrow.good("save_file", path="kept.txt", content="kept\n")

    answer = await narrow.good("run_command", command=command, wait_s=1, timeout_s=20)
    command_id = re.search(r"\bc\d+\b", answer.partition("\n")[0])
    assert command_id is not None
    stopped = await narrow.good("stop_command", command_id=command_id[0])

    assert "exit code" in stopped or "was killed" in stopped
    assert await narrow.run("cat kept.txt; find . -name 'big-*' -delete; rm -f hidden; echo ok") == "kept\nok\n"
    assert await narrow.works()


async def tidied(desk: Desk) -> None:
    """Use the workspace until a command runs to its end undisturbed: a bomb may still be going off in the background."""
    with anyio.fail_after(20):
        while True:
            answer = await desk.call("run_command", command="echo through", timeout_s=10)
            if answer.first.startswith("exit code 0") and "through" in answer.text:
                return


FILES = """
import itertools, os
for n in itertools.count():
    if n % 10_000 == 0:
        os.makedirs(f"crowd/{n // 10_000}")
    os.mknod(f"crowd/{n // 10_000}/{n}")
"""


async def test_files_without_number_are_stopped_and_can_be_removed(built_state: Path, tmp_path: Path) -> None:
    """200,000 is the limit, and the slowest thing here: making that many takes a while."""
    small_task(tmp_path, "many-files")
    async with desk_at(built_state, "many-files", SEATRIAL_TASKS=str(tmp_path)) as desk:
        await desk.good("save_file", path=".git/program.py", content=FILES)

        answer = await desk.good("run_command", command="python .git/program.py", wait_s=50)
        while answer.startswith("running"):
            answer = await desk.good("command_output", command_id=answer.split()[1], wait_s=50)

        assert "more than 200,000 files in the workspace" in answer
        assert (await desk.bad("submit")).startswith("The change has more than 20,000 files.")
        assert await desk.run("rm -rf crowd; ls", timeout_s=300) == "README.md\nsums\ntests\n"
        assert await desk.works()


ATTACKS = {
    "kill": "kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1; kill -SEGV 1; kill -34 1; kill -9 0",
    "kill all": "kill -9 -1",
    "signal floods": "for n in $(seq 2000); do kill -CHLD 1; kill -STOP 1; kill -CONT 1; kill -USR1 1; kill -PIPE 1; done",
    "zombies": "for n in $(seq 40); do (sleep 0 & exec true) & done; wait",
    "limits": "prlimit --pid 1 --nofile=0:0; prlimit --pid 1 --fsize=0:0; prlimit --pid 1 --nproc=0:0",
    "memory limit": "prlimit --pid 1 --as=1:1; prlimit --pid 1 --stack=1:1; prlimit --pid 1 --data=1:1",
    "time limit": "prlimit --pid 1 --cpu=0:0; for n in $(seq 2000); do kill -CHLD 1; done",
    "priority": "renice 19 1; chrt -i -p 0 1; ionice -c 3 -p 1; taskset -p 1 1",
    "descriptors": "for n in $(seq 0 20); do echo forged > /proc/1/fd/$n; done; exec 0<&- 1<&- 2<&-",
    "own pipes": "python -c \"import fcntl; [fcntl.fcntl(n, 1031, 1 << 20) for n in (1, 2)]; print('x' * 300_000)\"",
    "memory": "head -c 10 /proc/1/mem; echo x > /proc/1/mem; cat /proc/1/environ /proc/1/maps /proc/1/auxv /proc/1/stack",
    "adjustments": "echo 1000 > /proc/1/oom_score_adj; echo 1 > /proc/1/coredump_filter; echo c > /proc/sysrq-trigger",
    "unmounting": "umount /workspace; mount -t tmpfs none /workspace; mount --bind /tmp /workspace; rm -rf /workspace",
    "no right to enter": "chmod 000 /workspace",
    "no right to enter, then death": "chmod 000 /workspace; prlimit --pid 1 --nofile=0:0",
}


@pytest.mark.parametrize("command", ATTACKS.values(), ids=ATTACKS)
async def test_an_attack_on_the_first_process_leaves_a_workspace_that_works(narrow: Desk, command: str) -> None:
    await narrow.call("run_command", command=command, timeout_s=20)

    if "chmod 000" in command:
        await narrow.call("run_command", command="chmod 755 /workspace", cwd="/")
    await tidied(narrow)
    await narrow.call("run_command", command="prlimit --pid 1 --nofile=0:0")  # so that it cannot go on, and is made anew
    await narrow.call("run_command", command="true")
    assert await narrow.works()


REACHING_IN = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def tried(name, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*arguments)
    print(name, "done" if result >= 0 else os.strerror(ctypes.get_errno()))
buffer = ctypes.create_string_buffer(64)
x86 = os.uname().machine == "x86_64"
pidfd = os.pidfd_open(1)
tried("attach", 101 if x86 else 117, 16, 1, 0, 0)
tried("seize", 101 if x86 else 117, 0x4206, 1, 0, 0)
tried("read", 310 if x86 else 270, 1, buffer, 1, buffer, 1, 0)
tried("take descriptor", 438, pidfd, 0, 0)
tried("compare", 312 if x86 else 272, 1, os.getpid(), 0, 0, 0)
tried("enter", 308 if x86 else 268, pidfd, 0x20000000)
tried("unshare", 272 if x86 else 97, 0x10000000)
for name in ("fd", "fdinfo", "map_files", "cwd", "root", "exe", "ns/net"):
    try:
        os.listdir(f"/proc/1/{name}") if name.startswith(("fd", "map")) else os.readlink(f"/proc/1/{name}")
        print(name, "done")
    except OSError as error:
        print(name, error.strerror)
"""


async def test_commands_cannot_reach_into_the_first_process(narrow: Desk) -> None:
    lines = (await narrow.python(REACHING_IN)).strip().split("\n")

    assert len(lines) == 14
    assert all(line.endswith(("Operation not permitted", "Permission denied")) for line in lines), lines


async def test_folders_without_rights_are_named_and_do_not_stand_in_the_way(narrow: Desk) -> None:
    await narrow.run("mkdir -p shut/below open; echo needle > shut/x; echo needle > open/x; chmod 000 shut; chmod 000 open/x")

    assert "denied" in (await narrow.bad("view_file", path="shut/x")).lower()
    assert "denied" in (await narrow.bad("list_files", path="shut")).lower()
    assert "denied" in (await narrow.bad("save_file", path="shut/y", content="")).lower()
    assert "denied" in (await narrow.bad("view_file", path="open/x")).lower()
    assert "shut/" in await narrow.good("list_files", depth=3)
    await narrow.call("search_files", pattern="needle")
    assert "A shut/x" in await narrow.good("view_diff")
    assert await narrow.works()
    await narrow.run("chmod -R u+rwX shut open; rm -rf shut open")


async def test_a_workspace_full_of_odd_things_is_submitted_all_the_same(built_state: Path, tmp_path: Path) -> None:
    small_task(tmp_path, "odd")
    async with connected(built_state, SEATRIAL_TASKS=str(tmp_path)) as agent:
        desk = Desk(agent, await agent.open("odd"))
        await desk.good("edit_file", path="sums/core.py", old_text="abs(number)", new_text="number")
        await desk.python(
            "import os, socket\nos.mkfifo('FIFO')\nsocket.socket(socket.AF_UNIX).bind('socket')\nos.symlink('/etc', 'etc')\n"
            "open(b'\\xff\\n', 'w').close()\nopen('sparse', 'w').truncate(1 << 20)\nos.mkdir('shut')\n"
            "open('shut/x', 'w').close()\nos.chmod('shut', 0)\nos.chmod('sums/core.py', 0)\nos.chmod('.', 0)\n"
        )

        answer = await agent.submit(desk.workspace)

    assert answer.first == "resolved", answer.text


# --- tasks and state folders that cannot be used ---


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks of which one is sound."""
    tasks = tmp_path_factory.mktemp("broken")
    for name in ("sound", "no-toml", "no-tests", "empty-tests", "unknown-key"):
        small_task(tasks, name)
    (tasks / "no-toml" / "task.toml").write_text("[metadata\nnot toml")
    (tasks / "no-tests" / "tests" / "fail_to_pass.txt").unlink()
    (tasks / "empty-tests" / "tests" / "fail_to_pass.txt").write_text("# none yet\n")
    with (tasks / "unknown-key" / "task.toml").open("a") as file:
        file.write("time_out_s = 3\n")
    shutil.copytree(BUNDLED / H11, tasks / "wrong-hash")
    file = tasks / "wrong-hash" / "task.toml"
    file.write_text(file.read_text().replace('sha256 = "2a7db2d2', 'sha256 = "00000000'))
    return tasks


BROKEN = {
    "no-toml": "not valid TOML",
    "no-tests": "'tests/fail_to_pass.txt', and there is no such file",
    "empty-tests": "holds no test ids",
    "unknown-key": "time_out_s",
}


async def test_broken_tasks_are_named_and_the_others_are_not_affected(built_state: Path, broken: Path) -> None:
    async with connected(built_state, SEATRIAL_TASKS=str(broken)) as agent:
        listed = (await agent.call("list_tasks")).text
        for name, said in BROKEN.items():
            for tool in ("get_task", "open_workspace"):
                answer = await agent.call(tool, task_id=name)
                assert answer.is_error
                assert said in answer.text
                assert f"{name}: " not in listed
        assert "sound: " in listed
        assert await Desk(agent, await agent.open("sound")).works()


async def test_a_wrong_hash_ends_the_trial_as_an_error_that_does_not_count(built_state: Path, broken: Path) -> None:
    async with connected(built_state, SEATRIAL_TASKS=str(broken)) as agent:
        opened = await agent.call("open_workspace", task_id="wrong-hash")
        workspace = opened.first.removeprefix("workspace_id: ")
        answer = await ended(agent, workspace)
        submitted = await agent.call("submit", workspace_id=workspace)

        assert answer.is_error
        assert "does not count" in answer.text
        assert "h11" in answer.text
        assert submitted.first == "error: no score"
        assert await Desk(agent, await agent.open(H11)).works()


async def ended(agent: Agent, workspace: str) -> Answer:
    with anyio.fail_after(120):
        while (answer := await agent.call("list_files", workspace_id=workspace)).text.startswith("building"):
            await anyio.sleep(0.1)
    return answer


def test_the_command_line_names_broken_tasks_and_builds_the_others(built_state: Path, broken: Path) -> None:
    listed = seatrial(built_state, "tasks", "list", SEATRIAL_TASKS=str(broken), COLUMNS="200")
    built = seatrial(built_state, "tasks", "build", SEATRIAL_TASKS=str(broken), COLUMNS="200")
    one = seatrial(built_state, "tasks", "build", "no-toml", SEATRIAL_TASKS=str(broken))

    assert listed.returncode == 0
    for name, said in BROKEN.items():
        assert f"{broken / name}" in listed.stdout
        assert said in listed.stdout
    assert built.returncode == 1
    assert "wrong-hash" in built.stdout
    assert "Traceback" not in built.stdout + built.stderr
    assert any(line.split()[0] == "sound" and line.split()[-1] == "built" for line in built.stdout.splitlines() if line.split())
    assert one.returncode == 1
    assert "not valid TOML" in one.stderr


@pytest.mark.parametrize("folder", ["/nowhere/at/all", "/etc/passwd"])
async def test_a_tasks_folder_that_is_none_is_no_reason_to_stop(built_state: Path, folder: str) -> None:
    async with connected(built_state, SEATRIAL_TASKS=folder) as agent:
        assert H11 in (await agent.call("list_tasks")).text
    listed = seatrial(built_state, "tasks", "list", SEATRIAL_TASKS=folder)
    assert "Check SEATRIAL_TASKS" in listed.stdout.replace("\n", " ")


async def test_a_state_folder_that_cannot_be_made_is_answered_so_and_tasks_can_still_be_listed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async with connected(tmp_path / "file") as agent:
        listed = await agent.call("list_tasks")
        opened = await agent.call("open_workspace", task_id=H11)
        again = await agent.call("open_workspace", task_id=H11)
    built = seatrial(tmp_path / "file", "tasks", "build")

    assert H11 in listed.text
    assert opened.is_error
    assert opened == again
    assert "cannot be written" in opened.text
    assert "Set SEATRIAL_STATE" in opened.text
    assert built.returncode == 1
    assert "Set SEATRIAL_STATE" in built.stderr
    assert "Traceback" not in built.stderr


def test_a_state_folder_of_somebody_else_is_answered_so() -> None:
    """Root gives up the power over other users' files for this: it may otherwise write everywhere."""
    with reachable_folder() as folder:
        weak = []
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
            weak = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
            if shutil.which("setpriv") is None:
                pytest.skip("setpriv is needed to give up root's power over files")
        else:
            folder.chmod(0o555)
        command = [*weak, sys.executable, "-I", "-m", "server", "tasks", "build"]
        environment = {**os.environ, "SEATRIAL_STATE": str(folder / "state")}
        built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    assert built.returncode == 1
    assert "cannot be written (Permission denied). Set SEATRIAL_STATE" in built.stderr
