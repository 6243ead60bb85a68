"""The README tells the truth: its marked examples run, and its tables name what there is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import inherited_environment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
MARKED = re.compile(r"<!-- run -->\n```console\n(.*?)```", re.DOTALL)


def examples() -> list[tuple[str, list[str]]]:
    """Return each command of the marked blocks with the lines that its output must hold."""
    found: list[tuple[str, list[str]]] = []
    for block in MARKED.findall(README):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip():
                found[-1][1].append(line)
    return found


@pytest.mark.parametrize(("command", "expected"), examples(), ids=[command for command, _ in examples()])
def test_an_example_runs(command: str, expected: list[str], state_folder: Path) -> None:
    environment = inherited_environment()
    environment |= {"PATH": f"{BIN}:{environment['PATH']}", "HOME": str(state_folder), "SEATRIAL_STATE": f"{state_folder}/state"}

    ran = subprocess.run(["sh", "-c", command], env=environment, cwd=state_folder, capture_output=True, text=True, timeout=120)

    assert ran.returncode == 0, ran.stderr
    assert [line for line in expected if line not in ran.stdout.splitlines()] == []


def test_every_setting_is_told() -> None:
    read = set(re.findall(r'"(SEATRIAL_[A-Z]+)"', (ROOT / "server/settings.py").read_text()))

    assert read == set(re.findall(r"^\| `(SEATRIAL_[A-Z]+)`", README, re.MULTILINE))


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "ARCHITECTURE.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / document).read_text()):
            assert target.startswith("https://") or (ROOT / target).exists(), f"{document}: {target}"
