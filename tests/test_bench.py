"""The benchmark runs and shows every row. What it measures on a busy machine is nobody's proof, so nothing is said of that."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = {
    "open",
    "open-large",
    "bash",
    "run_command",
    "view_file",
    "initialize",
    "many-memory",
    "many-close",
    "many-end",
    "submit-h11-nop",
    "submit-h11-oracle",
    "submit-cachetools-nop",
    "submit-cachetools-oracle",
}


DOCKER = {"docker-open", "docker-close", "docker-command", "docker-many"}
"""Only where a daemon answers."""


def test_the_benchmark_shows_every_row_beside_its_floor(built_state: Path, tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--state", str(built_state), "--json", str(report)]

    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    assert ran.returncode in (0, 1), ran.stderr  # 1: a bar failed, which so few rounds cannot judge
    assert "Traceback" not in ran.stderr, ran.stderr
    rows = {row["name"]: row for row in json.loads(report.read_text())["rows"]}
    assert rows.keys() in (ROWS, ROWS | DOCKER), ran.stderr
    assert all(name in ran.stdout for name in ROWS)
    assert all(row["ours"]["median"] > 0 and row["floor"]["median"] > 0 for row in rows.values())
