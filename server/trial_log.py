"""What happened in one trial, as events: every tool call and the end of every command, long texts as blobs."""

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from server.outputs import Output
from server.records import Event, Verdict
from server.sandboxes.base import CommandResult
from server.workspaces import CommandError, RunningCommand

if TYPE_CHECKING:
    from server.services import Services

_INLINE = 8_000
"""Characters: every answer fits; what is longer is a file of its own."""
_ACTING = frozenset({"save_file", "edit_file", "run_command"})


class TrialLog:
    """Writes and reads the events of one trial."""

    def __init__(self, trial: str, services: "Services") -> None:
        self._trial, self._store, self._blobs = trial, services.store, services.blobs

    def call(self, name: str, arguments: Mapping[str, Any], answer: str, *, ok: bool, duration_s: float) -> None:
        """Record a tool call with what it was given and what it answered."""
        kept = {key: self._kept(value) if isinstance(value, str) else value for key, value in arguments.items()}
        detail = {"answer": answer}  # every answer is short
        outcome = "ok" if ok else "error"
        self._store.add_event(Event(self._trial, time.time(), "call", name, outcome, round(duration_s, 6), kept, detail))

    def command_ended(self, command: RunningCommand) -> None:
        """Record how a command ended and what it printed, stdout and stderr told apart by its pieces."""
        head, tail, pieces = command.output.record()
        code = command.result.exit_code if command.result is not None else None
        detail = {
            "exit_code": code,
            "fault": command.fault,
            "out_of_memory": command.result is not None and command.result.out_of_memory,
            "timed_out": command.result is not None and command.result.timed_out,
            "output": self._kept(head.decode("utf-8", "surrogateescape"), head),
            "tail": self._kept(tail.decode("utf-8", "surrogateescape"), tail),
            "pieces": pieces,
            "total_bytes": command.output.total,
        }
        duration = command.result.duration_s if command.result is not None else time.time() - command.started_at
        outcome = "fault" if code is None else f"exit {code}"
        event = Event(
            self._trial, time.time(), "command", command.id, outcome, duration, {"command": self._kept(command.text)}, detail
        )
        self._store.add_event(event)

    def command_runs_on(self, command: RunningCommand) -> None:
        """Record that an agent was told of a command that is not over: its name must not be given again."""
        self._store.add_event(Event(self._trial, time.time(), "running", command.id, "running", 0, {}, {}))

    def _kept(self, text: str, data: bytes | None = None) -> Any:
        """Return a text as it goes into an event: itself if short, else the name of its blob."""
        if len(text) <= _INLINE:
            return text
        data = text.encode("utf-8", "surrogatepass") if data is None else data
        return {"blob": self._blobs.put(data), "bytes": len(data)}

    def next_command(self) -> int:
        """Return the number of the next command: one more than any that an agent was told of."""
        told = (event.name for event in self._store.events(self._trial) if event.kind in ("command", "running"))
        return 1 + max(map(_number, told), default=0)

    def command(self, command_id: str) -> RunningCommand:
        """Return a command that is over from the record.

        Raises:
            CommandError: none of this id ended in this trial; it may have been lost with a server.
        """
        for event in self._store.events(self._trial):
            if event.kind == "command" and event.name == command_id:
                return self._restored(event)
        raise CommandError(
            f"No command {command_id[:64]!r} is known here. If it was running when the server was restarted it was lost: "
            "run it again with run_command."
        )

    def _restored(self, event: Event) -> RunningCommand:
        head, tail = (
            kept.encode("utf-8", "surrogateescape") if isinstance(kept, str) else self._blobs.get(kept["blob"])
            for kept in (event.detail["output"], event.detail.get("tail", ""))
        )
        output = Output.restored(head, tail, event.detail["total_bytes"], event.detail["pieces"])
        command = RunningCommand(event.name, "", output=output, fault=event.detail["fault"])
        if (code := event.detail["exit_code"]) is not None:
            command.result = CommandResult(
                code, event.duration_s, timed_out=event.detail["timed_out"], out_of_memory=event.detail["out_of_memory"]
            )
        command.done.set()
        return command

    def step_ended(self, number: int, verdict: Verdict) -> None:
        """Record how a step that is not the last was judged."""
        detail = dataclasses.asdict(verdict)
        self._store.add_event(Event(self._trial, time.time(), "step", str(number), f"reward {verdict.reward}", 0, {}, detail))

    def steps(self) -> list[Mapping[str, float]]:
        """Return the rewards by name of the steps that were judged, in order."""
        return [event.detail["rewards"] for event in self._store.events(self._trial) if event.kind == "step"]

    def step_is_news(self) -> bool:
        """Say whether a step was judged and the agent did not hear of it: it has made no call since."""
        kinds = [event.kind for event in self._store.events(self._trial) if event.kind in ("step", "call")]
        return bool(kinds) and kinds[-1] == "step"

    def acted(self) -> bool:
        """Say whether the agent ever tried to change anything: looking is not acting, nor is asking whether it may begin."""
        return any(event.kind == "call" and event.name in _ACTING for event in self._store.events(self._trial))


def _number(command_id: str) -> int:
    return int(command_id[1:]) if command_id[1:].isdigit() else 0
