"""The watchdog against real processes and files that grow, hide, move and vanish."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from server.sandboxes import watchdog
from server.sandboxes.base import Limits

MIB = 1 << 20


@contextmanager
def program(code: str) -> Generator[int]:
    """Run ``code`` until it has printed a line; it then waits for the end of its input, and so for the end of the block."""
    command = [sys.executable, "-I", "-S", "-c", f"import os, sys\n{code}\nprint(flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate(timeout=60)


FAMILY = "import subprocess\nx = [subprocess.Popen([sys.executable, '-I', '-S', '-c', {!r}], stdin=0, stdout=subprocess.PIPE)"
FAMILY += " for _ in range(3)]\n[one.stdout.readline() for one in x]"


def test_memory_is_counted_over_all_descendants() -> None:
    with program(FAMILY.format("import sys; x = bytearray(30 << 20); print(flush=True); sys.stdin.read()")) as pid:
        assert len(watchdog.descendants(pid)) == 4
        assert watchdog.processes(pid) == 4
        assert 90 * MIB < watchdog.memory_bytes(pid) < 160 * MIB


def test_threads_count_like_processes() -> None:
    with program("import threading\n[threading.Thread(target=sys.stdin.read, daemon=True).start() for _ in range(5)]") as pid:
        assert watchdog.processes(pid) == 6


@pytest.mark.parametrize(
    "code",
    [
        "f = os.memfd_create('x'); os.write(f, bytes(50 << 20))",
        "import mmap\nm = mmap.mmap(-1, 50 << 20)\nm.write(b'x' * (50 << 20))",
    ],
    ids=["a memory file that nobody maps", "a shared mapping"],
)
def test_memory_that_is_no_process_own_is_counted_too(code: str) -> None:
    with program(code) as pid:
        assert 50 * MIB < watchdog.memory_bytes(pid) < 90 * MIB


def test_a_shared_mapping_is_counted_once_however_many_share_it() -> None:
    code = "import mmap\nm = mmap.mmap(-1, 50 << 20)\nm.write(b'x' * (50 << 20))\n"
    with program(code + "for _ in range(3):\n  if os.fork() == 0:\n    m[:]; sys.stdin.read(); os._exit(0)") as pid:
        assert 50 * MIB < watchdog.memory_bytes(pid) < 150 * MIB


def test_a_process_that_is_gone_counts_as_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)

    assert watchdog.memory_bytes(process.pid) == 0
    assert watchdog.processes(process.pid) == 0


def test_usage_counts_entries_and_blocks_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(bytes(4 * MIB))
    upper = tmp_path / "upper"
    (upper / "a" / "b").mkdir(parents=True)
    (upper / "a" / "one").write_bytes(b"x" * MIB)
    os.link(upper / "a" / "one", upper / "a" / "b" / "same")
    (upper / "link").symlink_to(outside)
    os.mkfifo(upper / "pipe")
    os.truncate(os.open(upper / "sparse", os.O_CREAT | os.O_WRONLY), 1 << 36)
    (upper / os.fsdecode(b"not utf-8 \xff\n")).touch()

    size, files = watchdog.usage_of(upper)

    assert files == 8
    assert MIB <= size < 2 * MIB


def test_the_walk_stops_soon_after_the_limit(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / str(number)).touch()

    assert watchdog.usage_of(tmp_path, most_files=10)[1] == 11


def test_a_very_deep_tree_is_walked_without_running_out_of_descriptors(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)

    assert watchdog.usage_of(tmp_path)[1] == 3001
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_a_folder_that_may_not_be_opened_is_guessed_at(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "x").touch()
    closed.chmod(0)
    try:
        assert watchdog.usage_of(tmp_path)[1] >= 1
    finally:
        closed.chmod(0o700)


def test_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert watchdog.usage_of(tmp_path / "gone") == (0, 0)


async def first_breach(pid: int, upper: Path, limits: Limits, reserve_bytes: int = 0) -> list[str]:
    reasons: list[str] = []
    with anyio.fail_after(60):
        await watchdog.watch(pid, upper, limits, reserve_bytes, reasons.append)
    return reasons


@pytest.mark.anyio
async def test_too_many_files_are_a_breach(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / str(number)).touch()
    with program("") as pid:
        reasons = await first_breach(pid, tmp_path, Limits(files=20))

    assert reasons == ["more than 20 files in the workspace (limit 20)"]


@pytest.mark.anyio
async def test_too_many_bytes_are_a_breach(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(3 * MIB))
    with program("") as pid:
        reasons = await first_breach(pid, tmp_path, Limits(disk_bytes=2 * MIB))

    assert reasons == ["more than 2 MiB written to the workspace (limit 2 MiB)"]


@pytest.mark.anyio
async def test_too_much_memory_is_a_breach_while_commands_run(tmp_path: Path) -> None:
    with program(FAMILY.format("import sys; x = bytearray(30 << 20); print(flush=True); sys.stdin.read()")) as pid:
        reasons = await first_breach(pid, tmp_path, Limits(memory_bytes=64 * MIB))

    assert reasons == ["more than 64 MiB of memory (limit 64 MiB)"]


@pytest.mark.anyio
async def test_the_hosts_reserve_is_kept(tmp_path: Path) -> None:
    with program("") as pid:
        reasons = await first_breach(pid, tmp_path, Limits(), reserve_bytes=1 << 60)

    assert "which the host keeps for itself" in reasons[0]


@pytest.mark.anyio
async def test_watching_ends_with_the_sandbox_and_at_once_when_cancelled(tmp_path: Path) -> None:
    async with await anyio.open_process([sys.executable, "-c", ""]) as process:
        assert await first_breach(process.pid, tmp_path, Limits()) == []

    with program("") as pid, anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(watchdog.watch, pid, tmp_path, Limits(), 0, print)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
