"""Control groups, on the machine's own where it lets us, and on made-up trees for the layouts it does not have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.sandboxes import cgroups
from server.sandboxes.base import Limits

SMALL = Limits(cpus=0.5, memory_bytes=64 << 20, processes=20)

WAIT = "import sys; sys.stdin.readline(); "


def needs(limit: str) -> None:
    with cgroups.cgroup(SMALL, "probe") as group:
        if limit not in group.enforced:
            pytest.skip(f"no control group for {limit} can be made here")


def run_in(group: cgroups.Cgroup, code: str) -> tuple[int, str]:
    """Run ``code`` in the group (it waits for a line until it is in); return its exit code and first line of output."""
    command = [sys.executable, "-I", "-S", "-c", WAIT + code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        group.add(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        return process.wait(timeout=60), process.stdout.readline()


def test_a_process_that_takes_too_much_memory_is_killed_and_the_group_says_why() -> None:
    needs("memory")
    with cgroups.cgroup(SMALL, "memory") as group:
        code, _ = run_in(group, "x = bytearray(200 << 20)")

        assert code == -9
        assert group.kill_reason() == "it ran out of its memory (limit 64 MiB)"


def test_a_fork_bomb_is_held_and_the_group_says_why() -> None:
    needs("processes")
    with cgroups.cgroup(SMALL, "pids") as group:
        code = "import os, signal\nn = 0\ntry:\n while True:\n  n += 1\n  if os.fork() == 0: signal.pause()\n"
        _, output = run_in(group, code + "except BlockingIOError: print(n, flush=True); os._exit(0)")

        assert int(output) == 20
        assert group.kill_reason() == "it ran out of processes (limit 20)"


def test_nothing_is_left_after_the_block_not_even_processes_that_were_still_running() -> None:
    needs("processes")
    with cgroups.cgroup(SMALL, "left") as group:
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", WAIT], stdin=subprocess.PIPE)
        group.add(process.pid)

        assert group.kill_reason() is None
    with process:
        assert process.wait(timeout=60) == -9
    assert not [folder for folder in group.folders.values() if folder.exists()]


def test_groups_of_dead_servers_are_reaped_and_those_of_live_ones_are_not() -> None:
    needs("processes")
    parent = cgroups.find_parents().folders["pids"]
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    (parent / f"seatrial-{dead.stdout.strip()}-x").mkdir()

    with cgroups.cgroup(SMALL, "alive") as group:
        cgroups.reap_cgroups()

        assert all(folder.exists() for folder in group.folders.values())
    assert not (parent / f"seatrial-{dead.stdout.strip()}-x").exists()


def test_adding_a_process_that_has_ended_is_fine() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    with cgroups.cgroup(SMALL, "ended") as group:
        group.add(process.pid)


def made_up(folder: Path, own: str, mount: str) -> Path:
    process = folder / "process"
    process.mkdir()
    (process / "cgroup").write_text(own)
    (process / "mountinfo").write_text(mount)
    return process


def version_2_group(folder: Path, controllers: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.subtree_control").write_text(controllers)
    (folder / "cgroup.procs").write_text("")
    return folder


def test_in_version_2_the_folder_above_us_is_used_if_it_hands_on_its_controllers(tmp_path: Path) -> None:
    slices = version_2_group(tmp_path / "tree" / "app.slice", "cpu memory pids")
    version_2_group(slices / "us.scope", "")
    mount = f"30 20 0:26 / {tmp_path}/tree rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"

    parents = cgroups.find_parents(made_up(tmp_path, "0::/app.slice/us.scope\n", mount))

    assert parents == cgroups.Parents(2, {"cpu": slices, "memory": slices, "pids": slices})


def test_in_version_2_without_a_controller_to_hand_on_there_is_no_group(tmp_path: Path) -> None:
    version_2_group(tmp_path / "tree", "")
    mount = f"30 20 0:26 / {tmp_path}/tree rw - cgroup2 cgroup2 rw\n"

    assert cgroups.find_parents(made_up(tmp_path, "0::/\n", mount)).folders == {}


def test_in_version_1_groups_are_made_below_our_own_as_a_container_sees_it(tmp_path: Path) -> None:
    (tmp_path / "tree" / "jobs").mkdir(parents=True)
    own = "4:memory:/docker/abc/jobs\n0::/\n"
    mount = f"30 20 0:26 /docker/abc {tmp_path}/tree rw - cgroup cgroup rw,memory\n"

    assert cgroups.find_parents(made_up(tmp_path, own, mount)).folders == {"memory": tmp_path / "tree" / "jobs"}


def test_where_no_group_can_be_made_nothing_is_claimed() -> None:
    group = cgroups.Cgroup(SMALL)
    group.add(os.getpid())

    assert group.enforced == {}
    assert group.kill_reason() is None
