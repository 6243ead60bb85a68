"""Small plain Harbor tasks, and whether this machine can run them."""

import os
import subprocess
from pathlib import Path

import docker_world

IMAGE = docker_world.image_name()


def docker_reason() -> str:
    """Return why tests that need Docker are skipped here; empty where they can run, or must because ``.ci/run`` saw to it."""
    required = os.environ.get("CI") == "true" and os.environ.get("SEATRIAL_DOCKER_REQUIRED") == "1"
    return "" if required else docker_world.docker_reason() or ""


CHECK = """
import sys
sys.path.insert(0, "/app")
import app
sys.exit(0 if app.answer() == 42 else 1)
"""

TEST = """#!/bin/sh
cd /app
if python3 -B /tests/check.py; then echo 1 > /logs/verifier/reward.txt; else echo 0 > /logs/verifier/reward.txt; fi
"""

STRICT = """#!/bin/sh
set -e
cd /app
python3 -B /tests/check.py
echo 1 > /logs/verifier/reward.txt
"""

SOLVE = """#!/bin/sh
printf 'def answer():\\n    return 42\\n' > /app/app.py
"""


def harbor_task(folder: Path, name: str, toml: str = "", **files: str) -> Path:
    """Write a task in which ``answer`` must return 42; ``files`` (``a__b`` is a/b, ``a__b_sh`` a/b.sh) replace or add to it."""
    root = folder / name
    contents = {
        "instruction.md": "Make answer() in /app/app.py return 42.\n",
        "task.toml": f'version = "1.0"\n[metadata]\ndifficulty = "easy"\n[agent]\ntimeout_sec = 300\n{toml}',
        "environment/Dockerfile": f"FROM {IMAGE}\nWORKDIR /app\nCOPY app.py .\n",
        "environment/app.py": "def answer():\n    return 0\n",
        "tests/test.sh": TEST,
        "tests/check.py": CHECK,
        "solution/solve.sh": SOLVE,
        **files,
    }
    for path, text in contents.items():
        if text:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    return root


def containers_of(state: Path) -> list[str]:
    """Return the names of all containers that belong to a state folder."""
    identity = state / "private" / "identity"
    if not identity.exists():
        return []
    command = ["docker", "ps", "--all", "--filter", f"label=seatrial.state={identity.read_text()}", "--format", "{{.Names}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
