"""The reference agents against the real server: what they are told, what they leave, and how a trial of theirs can break off."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from front_door import children, seatrial
from small_tasks import FIXED, small_task

from clients.scripted import Change, Launch, TrialPlan, TrialRun, play_trial
from server.blobs import Blobs
from server.patches import load_patch
from server.records import TrialRecord
from server.store import open_store

pytestmark = pytest.mark.anyio

SLOW = "import time\n\n\ndef total(numbers):\n    time.sleep(600)\n"


@dataclass(frozen=True)
class Wanted:
    """A change, as the command line hands it in."""

    path: str
    data: bytes | None = None
    executable: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Solution:
    """What solves the one step of a task."""

    changes: Sequence[Change]
    command: str = ""


@dataclass(frozen=True)
class Place:
    """A state folder and a folder with one small task, built."""

    state: Path
    tasks: Path
    task: str

    async def play(
        self, agent: str, changes: Sequence[Change] = (), *, timeout_s: float = 120, task: str = "", kill_at: str = ""
    ) -> TrialRun:
        environment = {**os.environ, "SEATRIAL_STATE": str(self.state), "SEATRIAL_TASKS": str(self.tasks)}
        launch = Launch((sys.executable, "-I", "-m", "server", "serve"), environment)
        plan = TrialPlan(task or self.task, agent, "a job", "a group", 2, (Solution(changes),), timeout_s)
        before = children()

        def report(stage: str) -> None:
            if stage == kill_at:
                for pid in children() - before:
                    os.kill(pid, signal.SIGKILL)

        return await play_trial(plan, launch, report)

    def record(self, run: TrialRun) -> TrialRecord:
        with open_store(self.state / "private" / "store.db") as store:
            record = store.find_trial(run.trial)
        assert record is not None
        return record

    def submitted(self, run: TrialRun) -> dict[str, tuple[str, bytes, bool]]:
        """Return the patch of a trial: path -> (kind, content, executable)."""
        blobs = Blobs(self.state / "private" / "blobs")
        patch = load_patch(blobs.get(self.record(run).patch))
        return {
            change.path: (change.kind, blobs.get(change.sha256) if change.sha256 else b"", change.executable)
            for change in patch.changes
        }


@pytest.fixture(scope="module")
def place(built_state: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    tasks = tmp_path_factory.mktemp("tasks")
    task = small_task(tasks, "small-for-agents")
    built = seatrial(built_state, "tasks", "build", task, SEATRIAL_TASKS=str(tasks))
    assert built.returncode == 0, built.stderr
    return Place(built_state, tasks, task)


async def test_nop_opens_and_submits_and_is_not_resolved(place: Place) -> None:
    run = await place.play("nop")

    assert run.error == ""
    assert run.answer.startswith("not resolved")
    assert list(run.timings) == ["start", "open", "work", "verify", "total"]
    assert place.submitted(run) == {}


async def test_the_record_has_what_the_trial_belongs_to(place: Place) -> None:
    record = place.record(await place.play("nop"))

    assert (record.task, record.agent, record.job, record.group) == (place.task, "nop", "a job", "a group")
    assert (record.repetition, record.containment, record.reward) == (2, "sealed", 0.0)


async def test_oracle_makes_every_path_as_the_change_says(place: Place) -> None:
    changes = [
        Wanted("README.md"),
        Wanted("sums/core.py", FIXED.encode()),
        Wanted("new/text é.py", "print('ü')\r\n".encode()),
        Wanted("-n 'quoted' $(touch no)", b"1"),
        Wanted("empty", b""),
        Wanted("bin/run", b"#!/bin/sh\n", executable=True),
        Wanted("data/binary", bytes(range(256)) * 300),
        Wanted("large.txt", b"line\n" * 60_000),
        Wanted("folder", link="data"),
    ]

    run = await place.play("oracle", changes)

    assert run.error == ""
    assert run.answer.startswith("resolved")
    assert place.submitted(run) == {
        change.path: ("link", change.link.encode(), False)
        if change.link is not None
        else ("deleted", b"", False)
        if change.data is None
        else ("file", change.data, change.executable)
        for change in changes
    }


async def test_a_command_of_the_oracle_that_fails_is_an_error(place: Place) -> None:
    run = await place.play("oracle", [Wanted("README.md/below", b"\xff")])

    assert "A command of the oracle failed" in run.error
    assert run.answer == ""
    assert place.record(run).reward is None


async def test_a_refusal_is_told_in_the_servers_words(place: Place) -> None:
    run = await place.play("oracle", [Wanted("../outside", b"x")])

    assert run.error.startswith("save_file answered: ")
    assert "outside" in run.error
    assert place.record(run).reward is None


async def test_a_server_that_refuses_to_start_is_told_in_its_words(place: Place) -> None:
    run = await place.play("nop", task="no-such-task")

    assert "No task 'no-such-task'" in run.error
    assert place.task in run.error
    assert run.trial == ""


async def test_a_server_that_dies_in_the_middle_is_an_error_and_no_score(place: Place) -> None:
    run = await place.play("nop", kill_at="verifying")

    assert run.error
    assert run.answer == ""
    assert place.record(run).reward is None


async def test_a_verification_without_end_is_left_at_the_deadline(place: Place) -> None:
    run = await place.play("oracle", [Wanted("sums/core.py", SLOW.encode())], timeout_s=6)

    assert run.error == "The trial did not end within 6 s."


async def test_a_server_that_cannot_be_started_is_an_error() -> None:
    run = await play_trial(TrialPlan("a-task", "nop"), Launch(("/no/such/program",), {}), lambda _: None)

    assert "FileNotFoundError" in run.error
