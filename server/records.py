"""What is kept of a trial: the record, its events, its verdict. Plain values, so that reading them costs no database."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TrialState = Literal["building", "open", "submitted", "done", "error"]
SubmittedBy = Literal["", "agent", "time", "exit", "operator", "closed"]
Outcome = Literal["passed", "failed", "error", "skipped", "missing", "duplicated", "timed_out"]


def trial_id_of(workspace_id: str) -> str:
    """Return the name on disk and in the store of the trial that ``workspace_id`` opens; it cannot be turned back."""
    return hashlib.sha256(workspace_id.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Verdict:
    """How a submission was judged. ``reward`` is 1.0 iff every expected test passed, else 0.0; never an infrastructure failure.
    A Harbor verifier may give any number from 0 to 1.

    ``outcomes`` (test id -> outcome) are for the operator's eyes only. ``digests`` name everything that the verdict
    depends on: task, snapshot, environment, toolchain, verifier, patch.
    """

    reward: float
    assurance: str
    fail_to_pass: tuple[int, int]
    """Passed and expected."""
    pass_to_pass: tuple[int, int]
    duration_s: float
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    enforced: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds per phase of the verification."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Every number that a Harbor verifier gave, by name."""
    log: str = ""
    """SHA-256 of the runner's printed output, kept among the blobs."""

    @property
    def resolved(self) -> bool:
        return self.reward == 1.0


@dataclass(frozen=True)
class TrialRecord:
    """One attempt at one task. Times are seconds since the epoch, 0 while unknown.

    ``reward`` is None until there is a verdict, and stays None when the trial ended in an error of ours.
    """

    id: str
    task: str
    task_digest: str
    agent: str
    created_at: float
    agent_version: str = ""
    model: str = ""
    job: str = ""
    group: str = ""
    repetition: int = 0
    attempt: int = 1
    surface: str = "mcp"
    containment: str = "open"
    state: TrialState = "building"
    submitted_by: SubmittedBy = ""
    ready_at: float = 0
    deadline_at: float = 0
    ended_at: float = 0
    patch: str = ""
    reward: float | None = None
    error_class: str = ""
    error: str = ""
    flags: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds per phase: build, open, work, verify."""


@dataclass(frozen=True)
class Event:
    """One thing that happened in a trial: a tool call, the end of a command, or that an agent was told of one that goes on.

    ``detail`` is JSON data.
    """

    trial: str
    at: float
    kind: Literal["call", "command", "running", "step"]
    name: str
    outcome: str
    duration_s: float
    arguments: Mapping[str, Any]
    detail: Mapping[str, Any]
