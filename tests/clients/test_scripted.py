"""The reference agents against a server that answers as the contract says; `test_real_trials` has the real one."""

import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from clients.scripted import Change, Launch, TrialPlan, TrialRun, play_trial
from server.records import trial_id_of

WORKSPACE = "0123456789abcdef" * 2
SERVER = Path(__file__).with_name("fake_server.py")

pytestmark = pytest.mark.anyio


@dataclass(frozen=True)
class Path_:
    """A change, as the command line hands it in."""

    path: str
    data: bytes | None = None
    executable: bool = False
    link: str | None = None


async def play(folder: Path, agent: str, mode: str = "plain", changes: Sequence[Change] = (), timeout_s: float = 60) -> TrialRun:
    plan = TrialPlan("a-task", agent, "a job", "a group", 2, changes, timeout_s)
    launch = Launch((sys.executable, str(SERVER), str(folder), mode), {"PATH": os.defpath})
    return await play_trial(plan, launch, lambda _: None)


async def test_nop_opens_and_submits(tmp_path: Path) -> None:
    run = await play(tmp_path, "nop")

    assert (run.error, run.answer) == ("", "resolved\nwell done")
    assert run.trial == trial_id_of(WORKSPACE)
    assert list(run.timings) == ["start", "open", "work", "verify", "total"]
    assert os.listdir(tmp_path) == ["options"]


async def test_the_server_is_told_what_the_trial_belongs_to(tmp_path: Path) -> None:
    await play(tmp_path, "nop")

    assert (tmp_path / "options").read_text().splitlines() == [
        "--task=a-task",
        "--job=a job",
        "--group=a group",
        "--repetition=2",
        "--agent=nop",
        "--containment=sealed",
    ]


async def test_oracle_makes_every_path_as_the_change_says(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "gone.py").write_text("x")
    (tmp_path / "folder").mkdir()
    changes = [
        Path_("old"),
        Path_("new/text é.py", "print('ü')\r\n".encode()),
        Path_("-n 'quoted' $(touch no)", b"1"),
        Path_("empty", b""),
        Path_("bin/run", b"#!/bin/sh\n", executable=True),
        Path_("data/binary", bytes(range(256)) * 300),
        Path_("large.txt", b"line\n" * 60_000),
        Path_("folder", link="data"),
    ]

    run = await play(tmp_path, "oracle", changes=changes)

    assert run.error == ""
    assert not (tmp_path / "old").exists()
    assert not (tmp_path / "no").exists()
    assert (tmp_path / "folder").readlink() == Path("data")
    for change in changes:
        if change.data is not None:
            assert (tmp_path / change.path).read_bytes() == change.data
            assert bool((tmp_path / change.path).stat().st_mode & stat.S_IXUSR) is change.executable


async def test_a_command_of_the_oracle_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    run = await play(tmp_path, "oracle", changes=[Path_("file/below", b"\xff")])

    assert "A command of the oracle failed" in run.error
    assert run.answer == ""


async def test_a_build_is_waited_for(tmp_path: Path) -> None:
    run = await play(tmp_path, "nop", "builds")

    assert (run.error, run.answer) == ("", "resolved\nwell done")


async def test_a_refusal_is_told_in_the_servers_words(tmp_path: Path) -> None:
    run = await play(tmp_path, "nop", "refuses")

    assert run.error.startswith("open_workspace answered: ")
    assert run.error.endswith("No task 'a-task'. Call list_tasks to see the ids.")
    assert run.trial == ""


async def test_a_server_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    run = await play(tmp_path, "nop", "dies")

    assert "the disk is full" in run.error
    assert run.answer == ""
    assert run.trial == trial_id_of(WORKSPACE)


async def test_a_server_that_hangs_is_left_at_the_deadline(tmp_path: Path) -> None:
    run = await play(tmp_path, "nop", "hangs", timeout_s=4)

    assert run.error == "The trial did not end within 4 s."


async def test_a_server_that_cannot_be_started_is_an_error() -> None:
    run = await play_trial(TrialPlan("a-task", "nop"), Launch(("/no/such/program",), {}), lambda _: None)

    assert "FileNotFoundError" in run.error
