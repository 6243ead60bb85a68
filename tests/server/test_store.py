"""The store on a real file: two processes, damage, other versions, and what must survive."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.records import Event, TrialRecord, Verdict, trial_id_of
from server.store import SCHEMA_VERSION, StoreError, open_store

VERDICT = Verdict(
    1.0, "basic", (1, 1), (2, 2), 0.5, {"t.py::test": "passed"}, ("retried",), {"patch": "0"}, {"cpu": "no"}, {"tests": 1.5}
)


def record(name: str = "t1", **changes: Any) -> TrialRecord:
    return replace(TrialRecord(id=name, task="task", task_digest="d", agent="agent", created_at=time.time()), **changes)


def test_what_was_written_is_read_again_as_it_was(tmp_path: Path) -> None:
    wanted = record(job="j", group="g", repetition=2, flags=("a", "b"), timings={"open": 0.5}, agent="ü\n'\"")
    happened = Event("t1", 1.5, "call", "run_command", "ok", 0.25, {"command": "x\udcff"}, {"answer": [1, None, {"a": "ü"}]})
    with open_store(tmp_path / "store.db") as store:
        assert store.add_trial(wanted) == wanted
        store.add_event(happened)
        store.end_trial("t1", VERDICT, state="done", reward=1.0)

    with open_store(tmp_path / "store.db") as store:
        ended = store.find_trial("t1")
        assert ended is not None
        assert replace(ended, state="building", reward=None, ended_at=0) == wanted
        assert store.events("t1") == (happened,)
        assert store.verdict("t1") == VERDICT
        assert store.find_trial("t2") is None
        assert store.verdict("t2") is None
        assert store.events("t2") == ()


def test_the_first_end_counts(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as store:
        store.add_trial(record())
        first = store.end_trial("t1", None, state="error", error_class="build", error="why")

        assert store.end_trial("t1", VERDICT, state="done", reward=1.0) == first
        assert store.verdict("t1") is None


def test_attempts_count_what_is_the_same_trial_again(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as store:
        attempts = [
            store.add_trial(record(f"t{n}", **changes)).attempt
            for n, changes in enumerate(
                [
                    {},
                    {},
                    {"agent": "other"},
                    {"task": "other"},
                    {"repetition": 1},
                    {"job": "j"},
                    {"model": "m"},
                    {"group": "g"},
                    {},
                ]
            )
        ]

    assert attempts == [1, 2, 1, 1, 1, 1, 1, 1, 3]


def test_trials_are_listed_in_order_and_by_what_was_asked(tmp_path: Path) -> None:
    with open_store(tmp_path / "store.db") as store:
        for n, job in ((2, "a"), (1, "b"), (3, "a")):
            store.add_trial(record(f"t{n}", created_at=float(n), job=job))
        store.update_trial("t3", state="open")

        assert [one.id for one in store.trials()] == ["t1", "t2", "t3"]
        assert [one.id for one in store.trials(job="a")] == ["t2", "t3"]
        assert [one.id for one in store.trials(states=("open", "submitted"))] == ["t3"]
        assert [one.id for one in store.trials(job="none")] == []


WRITER = """
import sys, time
from pathlib import Path
from server.records import Event, TrialRecord
from server.store import open_store
with open_store(Path(sys.argv[1])) as store:
    for n in range(40):
        store.add_trial(TrialRecord(f"{sys.argv[2]}-{n}", "task", "d", "agent", time.time()))
        store.add_event(Event("shared", time.time(), "call", sys.argv[2], str(n), 0, {}, {}))
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("a", "b", "c")]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]

    with open_store(path) as store:
        assert sorted(one.attempt for one in store.trials()) == list(range(1, 121)), "no two attempts have one number"
        events = store.events("shared")
        for name in ("a", "b", "c"):
            assert [event.outcome for event in events if event.name == name] == [str(n) for n in range(40)]


ENDER = """
import os, signal, sys
from pathlib import Path
from server.records import TrialRecord, Verdict
from server.store import open_store
with open_store(Path(sys.argv[1])) as store:
    store.add_trial(TrialRecord("t1", "task", "d", "agent", 1.0))
    store.end_trial("t1", Verdict(1.0, "basic", (1, 1), (0, 0), 1.0), state="done", reward=1.0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_end_survives_the_death_of_its_process(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    assert subprocess.run([sys.executable, "-c", ENDER, str(path)], timeout=60).returncode == -9

    with open_store(path) as store:
        ended = store.find_trial("t1")
        assert ended is not None
        assert (ended.state, ended.reward) == ("done", 1.0)
        assert store.verdict("t1") is not None


def test_another_schema_is_refused(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "store.db"
    with open_store(path):
        pass
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()

    with pytest.raises(StoreError, match=r"has schema 2.*SEATRIAL_STATE"), open_store(path):
        pass


@pytest.mark.parametrize("content", [b"this is no database at all " * 100, b"SQLite format 3\0" + b"\xff" * 8192])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(content)

    with pytest.raises(StoreError, match=r"cannot be used: .*Check the file"), open_store(path):
        pass
    assert path.read_bytes() == content, "a file that is not ours is left alone"


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"), open_store(tmp_path):
        pass


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"), open_store(tmp_path / "none" / "store.db"):
        pass


OPENER = """
import sys
from pathlib import Path
from server.store import StoreError, open_store
try:
    with open_store(Path(sys.argv[1])) as store:
        store.trials()
except StoreError as error:
    print(error)
"""


def opened_by_others(path: Path) -> str:
    """Open a store as a user who may not write it, and return what that user is told."""
    environment: Mapping[str, str] = {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath}
    python = sys.executable if os.geteuid() else f"/usr/bin/python3.{sys.version_info[1]}"
    user: dict[str, Any] = {"user": 61_003, "group": 61_003, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        ran = subprocess.run(
            [python, "-c", OPENER, str(path)], env=environment, cwd="/", capture_output=True, text=True, timeout=60, **user
        )
    except OSError:
        pytest.skip("no interpreter that other users can start")
    if "ModuleNotFoundError" in ran.stderr:
        pytest.skip("other users cannot read the project")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_folder_that_cannot_be_written_is_refused(state_folder: Path) -> None:
    closed = state_folder / "closed"
    closed.mkdir()
    with open_store(closed / "store.db"):
        pass
    (closed / "store.db").chmod(0o444)
    closed.chmod(0o555)

    assert "cannot be used" in opened_by_others(closed / "store.db")


def test_the_name_of_a_trial_does_not_give_its_workspace_away() -> None:
    assert trial_id_of("0" * 32) != trial_id_of("1" * 32)
    assert len(trial_id_of("0" * 32)) == 24
