"""How the failures of verifiers are called."""

from tasks.errors import SeaTrialError


class VerifierError(SeaTrialError):
    """A fault of ours in a verification: it ends as an error, never as a score."""
