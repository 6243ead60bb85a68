"""The local sandbox by itself: what its commands see and may do, and that nothing of it outlives it."""

import os
import signal
import socket
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

import anyio
import pytest
from boxes import Box, Ran, ran_in

from server.sandboxes.base import (
    CHANNEL,
    STDERR,
    STDOUT,
    Limits,
    PathError,
    Sandbox,
    SandboxDiedError,
    SandboxRefusedError,
)
from server.sandboxes.watchdog import descendants

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def box(shared_state_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Box:
    folder = shared_state_folder / "boxes"
    folder.mkdir(0o755)
    made = Box(shared_state_folder, folder)
    tree = made.fresh("tree")
    (tree / "file").write_bytes(bytes(range(256)) * 1000)
    (tree / "out").symlink_to("/etc/hostname")
    (tree / "in").symlink_to("file")
    (tree / "sub").mkdir()
    (tree / "sub" / "x").write_text("x")
    made.state.own_tree(tree)
    made.lowers = [tree]
    return made


@pytest.fixture(scope="module")
async def sandbox(box: Box) -> AsyncGenerator[Sandbox]:
    async with box.opened(box.machine(box.fresh("shared"), box.lowers)) as opened:
        yield opened


async def bash(sandbox: Sandbox, script: str, **command: object) -> Ran:
    return await ran_in(sandbox, ["/bin/bash", "-c", script], **command)  # type: ignore[arg-type]


async def test_many_commands_at_once_get_each_their_own_output(sandbox: Sandbox) -> None:
    """Descriptors of one command come back as another's as soon as they are closed."""
    texts: dict[int, str] = {}

    async def one(number: int) -> None:
        texts[number] = (await bash(sandbox, f"echo {number} | sort -u")).text

    for first in range(0, 480, 16):
        async with anyio.create_task_group() as group:
            for number in range(first, first + 16):
                group.start_soon(one, number)

    assert texts == {number: f"{number}\n" for number in range(480)}


async def test_streams_come_apart_and_in_order(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "for n in 1 2 3 4 5; do echo o$n; echo e$n >&2; done", channel=True)

    assert ran.pieces == [
        (stream, f"{name}{n}\n".encode()) for n in range(1, 6) for stream, name in ((STDOUT, "o"), (STDERR, "e"))
    ]


async def test_the_channel_is_a_stream_of_its_own_only_where_it_was_asked_for(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "echo secret >&3", channel=True)).pieces == [(CHANNEL, b"secret\n")]
    assert "Bad file descriptor" in (await bash(sandbox, "echo secret >&3")).text


async def test_no_descriptor_leaks_into_a_command(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "echo /proc/self/fd/*")).text.split() == [f"/proc/self/fd/{n}" for n in (0, 1, 2)] + [
        "/proc/self/fd/3"
    ]


async def test_output_of_any_size_is_whole(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "head -c 20000000 /dev/zero; echo end >&2")

    assert sum(len(data) for stream, data in ran.pieces if stream == STDOUT) == 20_000_000
    assert (STDERR, b"end\n") in ran.pieces


async def test_standard_input_is_given_whole(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "wc -c", stdin=b"x" * 49_152)).text.strip() == "49152"
    assert (await bash(sandbox, "cat")).text == ""


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", -9), ("kill $$", -15)])
async def test_how_a_command_ends_is_a_result(sandbox: Sandbox, script: str, code: int) -> None:
    assert (await bash(sandbox, script)).result.exit_code == code


async def test_a_command_ends_when_its_shell_does(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "sleep 100000 & echo started")

    assert ran.text == "started\n"
    assert (await bash(sandbox, "pgrep -c sleep")).text == "1\n"
    await bash(sandbox, "pkill -9 sleep")


async def test_a_command_out_of_time_goes_with_all_it_started(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "echo begun; setsid sleep 100000 & (sleep 100000 & sleep 100000); sleep 100000", timeout_s=0.5)

    assert ran.result.timed_out
    assert ran.text == "begun\n"
    assert (await bash(sandbox, "pgrep -c sleep")).text == "0\n"


async def test_cancelling_stops_one_command_and_no_other(sandbox: Sandbox) -> None:
    other: list[Ran] = []

    async def steady() -> None:
        other.append(await bash(sandbox, "until test -e /tmp/go; do :; done; echo steady"))

    async with anyio.create_task_group() as group:
        group.start_soon(steady)
        with anyio.move_on_after(0.5):
            await bash(sandbox, "sleep 100000")
        assert (await bash(sandbox, "pgrep -c sleep; touch /tmp/go")).text == "0\n"

    assert other[0].text == "steady\n", other[0]
    assert not sandbox.dead


@pytest.mark.parametrize(
    ("argv", "cwd", "said"),
    [
        (["/no/such/program"], "/workspace", "/no/such/program: No such file"),
        (["/bin/true"], "/no/such/folder", "cwd /no/such/folder: No such file"),
        (["/etc/passwd"], "/workspace", "Permission denied"),
    ],
)
async def test_what_cannot_be_started_is_refused(sandbox: Sandbox, argv: list[str], cwd: str, said: str) -> None:
    with pytest.raises(PathError, match=said):
        await ran_in(sandbox, argv, cwd=cwd)
    assert (await bash(sandbox, "echo fine")).text == "fine\n"


async def test_a_command_has_no_rights(sandbox: Sandbox) -> None:
    status = (await bash(sandbox, "cat /proc/self/status; id")).text

    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert "uid=1000" in status
    assert "uid=0" not in status


async def test_nothing_of_it_runs_as_root_on_the_host(box: Box) -> None:
    before = set(descendants(os.getpid()))
    async with box.opened(box.machine(box.fresh("uids"), box.lowers)) as sandbox, anyio.create_task_group() as group:
        group.start_soon(bash, sandbox, "exec sleep 100000")
        with anyio.fail_after(30):
            while not (found := [pid for pid in descendants(os.getpid()) if comm(pid) == "sleep"]):
                await anyio.sleep(0.02)
        for pid in set(descendants(os.getpid())) - before:
            uids = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Uid"))
            assert "0" not in uids.split()[1:]
            assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink() or pid not in found
        group.cancel_scope.cancel()


def comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("place", ["/", "/etc", "/usr", "/usr/bin", "/opt/python", "/dev", "/proc", "/sys", "/opt"])
async def test_only_the_workspace_and_scratch_space_can_be_written(sandbox: Sandbox, place: str) -> None:
    assert (await bash(sandbox, f"touch {place}/x 2>/dev/null; test ! -e {place}/x")).result.exit_code == 0


async def test_the_workspace_and_scratch_space_can_be_written(sandbox: Sandbox) -> None:
    assert (
        await bash(sandbox, "for d in /workspace /tmp /dev/shm /home/agent; do touch $d/x && rm $d/x || exit; done")
    ).text == ""


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert "refused" in (await bash(sandbox, f"echo > /dev/tcp/127.0.0.1/{port}")).text
    assert (await bash(sandbox, "cat /proc/net/dev | tail -n +3 | grep -v lo:")).text == ""


async def test_the_hosts_processes_and_environment_are_not_there(sandbox: Sandbox) -> None:
    seen = (await bash(sandbox, "ls /proc | grep -E '^[0-9]+$' | wc -l; tr '\\0' '\\n' < /proc/self/environ | sort")).text.split()

    assert int(seen[0]) < 8
    assert {line.partition("=")[0] for line in seen[1:]} <= {"PATH", "LANG", "PWD", "SHLVL", "_"}


ON_PID_1: Mapping[str, str] = {
    "kill": "kill -9 1; kill -STOP 1; kill -INT 1; kill -TERM 1; kill -SEGV 1; kill -HUP 1; true",
    "its channel": "echo x > /proc/1/fd/0; cat /proc/1/fd/0 /proc/1/environ /proc/1/mem; ls /proc/1/fd /proc/1/root; true",
    "ptrace": 'python3 -c "import ctypes; print(ctypes.CDLL(None).ptrace(16, 1, 0, 0))" | grep -- -1',
    "a namespace": "unshare -U true && exit 1; unshare -r true && exit 1; true",
    "mounts": "mount -t tmpfs x /tmp && exit 1; umount /workspace && exit 1; true",
}


@pytest.mark.parametrize("script", ON_PID_1.values(), ids=ON_PID_1.keys())
async def test_an_attack_on_the_sandbox_itself_fails(sandbox: Sandbox, script: str) -> None:
    ran = await bash(sandbox, script)

    assert ran.result.exit_code == 0, ran.text
    assert (await bash(sandbox, "echo fine")).text == "fine\n"
    assert not sandbox.dead


async def test_files_are_read_in_pieces(sandbox: Sandbox) -> None:
    whole = bytes(range(256)) * 1000

    piece = await sandbox.read("file", 100_000, 1000)
    assert (piece.data, piece.size) == (whole[100_000:101_000], len(whole))
    assert (await sandbox.read("file", 0, 1 << 20)).data == whole
    assert (await sandbox.read("in", 0, 3)).data == whole[:3]
    assert (await sandbox.read("file", 10**9, 10)).data == b""


async def test_files_are_written_whole(sandbox: Sandbox) -> None:
    data = os.urandom(500_000)
    await sandbox.write("new/er/file", data)
    await sandbox.write("new/er/file", data[::-1])

    assert (await sandbox.read("new/er/file", 0, 1 << 20)).data == data[::-1]
    assert [entry.path for entry in (await sandbox.list("new", 3, 100)).entries] == ["er", "er/file"]


async def test_a_file_keeps_its_mode_when_it_is_written(sandbox: Sandbox) -> None:
    await bash(sandbox, "echo x > script; chmod 750 script")
    await sandbox.write("script", b"y")

    assert (await bash(sandbox, "stat -c %a script")).text == "750\n"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("none", "no such file"),
        ("../etc/passwd", "no such file|outside"),
        ("/etc/passwd", "outside|no such file|permission"),
        ("out", "outside|leads nowhere"),
        ("sub", "not a regular file but a folder"),
        ("pipe", "not a regular file but a FIFO"),
        ("sub/../../etc/passwd", "no such file|outside|permission"),
        ("/proc/1/environ", "."),
        ("file/x", "Not a directory"),
    ],
)
async def test_what_is_no_file_of_the_workspace_is_refused(sandbox: Sandbox, path: str, said: str) -> None:
    await bash(sandbox, "test -e pipe || mkfifo pipe")

    with pytest.raises(PathError, match=said):
        await sandbox.read(path, 0, 10)
    if path not in ("none",):
        with pytest.raises(PathError):
            await sandbox.write(path, b"x")
    assert not sandbox.dead


async def test_a_listing_is_bounded_and_says_what_is_what(sandbox: Sandbox) -> None:
    await bash(
        sandbox, "mkdir -p many; cd many; for n in $(seq 100 399); do : > $n; done; mkfifo ../many/a-pipe; ln -s x ../many/b-link"
    )

    listed = (await sandbox.list("many", 1, 1000)).entries
    assert [entry.kind for entry in listed[-4:]] == ["file", "file", "other", "link"]
    assert len((await sandbox.list("many", 1, 50)).entries) == 50
    with pytest.raises(PathError, match="not a folder"):
        await sandbox.list("file", 1, 10)


LIMITS = Limits(memory_bytes=256 << 20, processes=64, disk_bytes=64 << 20, files=5000, tmp_bytes=16 << 20)

BOMBS: Mapping[str, str] = {
    "memory": "python3 -c \"x = [bytearray(b'x' * (16 << 20)) for _ in range(1000)]\"",
    "processes": "bomb() { bomb | bomb & }; bomb; sleep 5; exit 1",
    "disk": "for n in $(seq 1000); do head -c 16000000 /dev/zero > $n; done; sleep 20; exit 1",
    "files": "python3 -c \"for n in range(200000): open(f'{n}', 'w')\"; sleep 20; exit 1",
    "scratch space": "head -c 64000000 /dev/zero > /tmp/x",
    "one huge file": "truncate -s 1T huge",
}


@pytest.mark.parametrize("script", BOMBS.values(), ids=BOMBS.keys())
async def test_what_uses_everything_up_is_stopped_and_the_files_can_be_used_again(box: Box, script: str) -> None:
    upper = box.fresh(f"bomb-{abs(hash(script))}")
    machine = box.machine(upper, box.lowers, LIMITS)
    async with box.opened(machine) as sandbox:
        await bash(sandbox, "echo before > before")
        try:
            assert (await bash(sandbox, script, timeout_s=60)).result.exit_code != 0
        except SandboxDiedError as died:
            assert "limit" in died.reason or "memory" in died.reason or "ended" in died.reason

    async with box.opened(machine) as again:
        assert (await bash(again, "cat before; find . -name '[0-9]*' -delete")).text == "before\n"


async def test_a_sandbox_that_died_says_so_to_everyone(box: Box) -> None:
    before = set(descendants(os.getpid()))
    async with box.opened(box.machine(box.fresh("dying"), box.lowers)) as sandbox:
        (inner,) = [pid for pid in set(descendants(os.getpid())) - before if is_inner(pid)]
        async with anyio.create_task_group() as group:
            group.start_soon(kill_soon, inner)
            with pytest.raises(SandboxDiedError, match="ended"):
                await bash(sandbox, "exec sleep 100000")
        with pytest.raises(SandboxDiedError):
            await sandbox.read("file", 0, 1)
        assert sandbox.dead


async def kill_soon(pid: int) -> None:
    while not any(comm(one) == "sleep" for one in descendants(pid)):
        await anyio.sleep(0.02)
    os.kill(pid, signal.SIGKILL)


def is_inner(pid: int) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
        namespaces = next(row for row in Path(f"/proc/{pid}/status").read_text().splitlines() if row.startswith("NSpid"))
    except OSError:
        return False
    return b"/.inner.py" in line and namespaces.split()[-1] == "1"


async def test_nothing_is_left_when_it_ends(box: Box) -> None:
    before = set(descendants(os.getpid()))
    async with box.opened(box.machine(box.fresh("ending"), box.lowers)) as sandbox:
        await bash(sandbox, "setsid sleep 100000 & sleep 100000 & disown; (trap '' TERM HUP INT; sleep 100000) & echo x > kept")
        family = set(descendants(os.getpid())) - before
        assert len(family) > 3

    assert not set(descendants(os.getpid())) & family
    assert (box.folder / "ending" / "kept").read_text() == "x\n"
    assert str(box.folder) not in Path("/proc/self/mounts").read_text()


async def test_what_cannot_be_mounted_is_a_refusal_with_a_remedy(box: Box) -> None:
    machine = box.machine(box.fresh("refused"), [box.folder / "no-such-layer"])

    with pytest.raises(SandboxRefusedError, match="seatrial doctor"):
        async with box.opened(machine):
            pass
