"""What every verifier is given, and how its failures are called."""

from dataclasses import dataclass

from anyio.abc import TaskGroup

from server.blobs import Blobs
from server.sandboxes.recipe import Host
from server.state import State
from tasks.errors import SeaTrialError


class VerifierError(SeaTrialError):
    """A fault of ours in a verification: it ends as an error, never as a score."""


@dataclass(frozen=True)
class Bench:
    """What a verification works with."""

    state: State
    host: Host
    blobs: Blobs
    background: TaskGroup
