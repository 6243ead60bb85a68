"""One trial as this process holds it, and what can be said of one instead of an answer."""

import time
from dataclasses import dataclass, field

import anyio

from server.places import Environment
from server.records import TrialRecord
from server.settings import Settings
from server.trial_log import TrialLog
from server.workspaces import Workspace
from tasks.errors import SeaTrialError
from tasks.model import Task


class UnknownWorkspaceError(SeaTrialError):
    """No trial has this workspace id."""

    def __init__(self, workspace_id: str) -> None:
        super().__init__(f"No workspace {workspace_id[:64]!r}. Use the id that open_workspace answered, or open one.")


class HeldElsewhereError(SeaTrialError):
    """Another server process works on this trial."""

    def __init__(self) -> None:
        super().__init__("This workspace is open in another server process. Use it there, or end that server and call again.")


class TrialEndedError(SeaTrialError):
    """The trial is over; only its result can still be asked for."""

    def __init__(self, record: TrialRecord) -> None:
        super().__init__(_over(record))


class StillBuildingError(SeaTrialError):
    """Not a failure: the environment is being built; whoever called should call again."""


class TooManyWorkspacesError(SeaTrialError):
    """This server has as many live workspaces as it may."""

    def __init__(self, most: int) -> None:
        super().__init__(f"{most} workspaces are open already. Submit or close one first.")


@dataclass(frozen=True)
class AgentInfo:
    """Who connected, as far as it says."""

    name: str = "unknown"
    version: str = ""


@dataclass
class Trial:
    """One trial in this process. ``lock`` is the descriptor that keeps other processes away while the trial is not over."""

    workspace_id: str
    task: Task
    record: TrialRecord
    log: TrialLog
    lock: int | None = None
    workspace: Workspace | None = None
    environment: Environment | None = None
    stage: str = "waiting"
    ending: anyio.Lock = field(default_factory=anyio.Lock)
    ended: anyio.Event = field(default_factory=anyio.Event)
    judged: anyio.Event = field(default_factory=anyio.Event)
    """Set when the submission under way was judged, as the whole trial or as a step of it."""
    step: int = 0
    news: str = ""
    """What the agent must hear of a step that was judged, before it can submit the next."""
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def over(self) -> bool:
        return self.record.state in ("done", "error")

    def building(self, then: str = "make the same call again") -> str:
        """Say how far the environment is, and what to do meanwhile."""
        waited = time.time() - self.record.created_at
        return (
            f"building: {self.stage} ({waited:.0f} s so far)\nThe environment is being built, once for all trials of this "
            f"task. Nothing is wrong: wait a few seconds and {then}. Your time counts from when it is ready."
        )


def new_record(trial_id: str, task: Task, agent: AgentInfo, settings: Settings) -> TrialRecord:
    """Return the record that a trial of ``task`` begins with; what was assigned counts more than what a client says."""
    assignment = settings.assignment
    return TrialRecord(
        id=trial_id,
        task=task.id,
        task_digest=task.digest,
        agent=assignment.agent or agent.name,
        agent_version="" if assignment.agent else agent.version,
        model=assignment.model,
        job=assignment.job,
        group=assignment.group,
        repetition=assignment.repetition,
        containment=settings.containment,
        created_at=time.time(),
    )


def _over(record: TrialRecord) -> str:
    if record.state == "submitted":
        why = "Time was up, so this workspace" if record.submitted_by == "time" else "This workspace"
        return f"{why} was submitted and is being verified. Call submit to see the result."
    if record.state == "error":
        return f"This trial ended in an error that is not the agent's and does not count: {record.error}"
    if record.submitted_by == "closed":
        return "This workspace was closed, so its trial is over and counts as not resolved."
    if record.submitted_by == "time":
        return "Time was up: what was in the workspace has been submitted. Call submit to see the result."
    return "This workspace was submitted and its trial is over. Call submit to see the result again."
