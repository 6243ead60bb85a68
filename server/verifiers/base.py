"""What a verifier is given of a trial, and how its failures are called."""

from dataclasses import dataclass

from server.patches import Patch
from tasks.errors import SeaTrialError


class VerifierError(SeaTrialError):
    """A fault of ours in a verification: it ends as an error, never as a score."""


@dataclass(frozen=True)
class Submission:
    """What is judged: a patch, of which trial, and as which step of the task (0 where it has one)."""

    patch: Patch
    trial: str
    step: int = 0
