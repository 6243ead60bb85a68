"""`seatrial doctor`: what this machine can enforce."""

from dataclasses import asdict

from server.cli.display import write_json, write_line, write_table
from server.doctor import diagnose
from server.settings import Settings


def show_findings(*, as_json: bool) -> int:
    """Print every finding with its remedy; 1 if the local sandbox cannot work."""
    findings = diagnose(Settings.from_environment())
    return len(findings)
