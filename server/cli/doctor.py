"""`seatrial doctor`: what this machine can enforce."""

from dataclasses import asdict

from server.cli.display import write_json, write_line, write_table
from server.doctor import diagnose
from server.settings import Settings

_BARS = ("refused", "missing")


def show_findings(*, as_json: bool) -> int:
    """Print every finding with its remedy; 1 if one of them keeps tasks from running here."""
    findings = diagnose(Settings.from_environment())
    works = not any(finding.status in _BARS for finding in findings)
    if as_json:
        write_json({"works": works, "findings": [asdict(finding) for finding in findings]})
        return 0 if works else 1
    write_table(("feature", "status", "how"), [(finding.feature, finding.status, finding.how) for finding in findings])
    for remedy in dict.fromkeys(finding.remedy for finding in findings if finding.remedy):
        features = ", ".join(finding.feature for finding in findings if finding.remedy == remedy)
        write_line(f"\n{features}: {remedy}")
    write_line("\nTasks can run here." if works else "\nTasks cannot run here until what is refused or missing is mended.")
    return 0 if works else 1
