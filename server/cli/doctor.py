"""`seatrial doctor`: what this machine can enforce."""

from server.doctor import diagnose
from server.settings import Settings


def show_findings(*, as_json: bool) -> int:
    """Print every finding with its remedy; 1 if the local sandbox cannot work."""
    findings = diagnose(Settings.from_environment())
    return len(findings)
