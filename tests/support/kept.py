"""What a server kept of a trial, read from its state folder as the operator would."""

from dataclasses import dataclass
from pathlib import Path

from server.blobs import Blobs
from server.records import Event, TrialRecord, Verdict, trial_id_of
from server.store import open_store


@dataclass(frozen=True)
class Kept:
    """The record, events and verdict of one trial."""

    record: TrialRecord
    events: tuple[Event, ...]
    verdict: Verdict | None

    def calls(self, name: str) -> list[Event]:
        return [event for event in self.events if event.kind == "call" and event.name == name]

    def command(self, command_id: str) -> Event:
        (event,) = [event for event in self.events if event.kind == "command" and event.name == command_id]
        return event


def kept(state: Path, workspace_id: str) -> Kept:
    """Read everything that was kept of the trial of a workspace."""
    trial = trial_id_of(workspace_id)
    with open_store(state / "private" / "store.db") as store:
        record = store.find_trial(trial)
        assert record is not None
        return Kept(record, store.events(trial), store.verdict(trial))


def blob(state: Path, name: str) -> bytes:
    return Blobs(state / "private" / "blobs").get(name)
