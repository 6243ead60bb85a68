"""Small tasks made for one test: a directory snapshot and its solution, built in a second where the wheels are at hand."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from front_door import H11

BUNDLED = Path(__file__).parents[2] / "tasks" / "bundled"

BEFORE: Mapping[str, str] = {
    "README.md": "sums adds numbers.\n",
    "sums/__init__.py": "from sums.core import total\n",
    "sums/core.py": "def total(numbers):\n    return sum(abs(number) for number in numbers)\n",
    "tests/test_sums.py": "from sums import total\n\n\ndef test_plain():\n    assert total([1, 2]) == 3\n",
}
"""The repository that trials start from."""

FIXED = "def total(numbers):\n    return sum(numbers)\n"
"""``sums/core.py`` as it solves the task."""

AFTER: Mapping[str, str] = {
    **BEFORE,
    "sums/core.py": FIXED,
    "tests/test_sums.py": BEFORE["tests/test_sums.py"] + "\n\ndef test_negative():\n    assert total([1, -2]) == -1\n",
}
"""The solution, with the hidden tests."""


def small_task(
    tasks: Path,
    name: str,
    *,
    before: Mapping[str, str] = BEFORE,
    after: Mapping[str, str] = AFTER,
    agent_timeout_s: float = 1800,
    setup: str = "",
    limits: str = "",
    verifier: Mapping[str, object] | None = None,
) -> str:
    """Write the task ``name`` into the folder of tasks and return its id; ``verifier`` changes keys of its table."""
    folder = tasks / name
    for top, files in (("before", before), ("after", after)):
        for path, text in files.items():
            place = folder / top / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
    (folder / "environment").mkdir()
    shutil.copyfile(BUNDLED / H11 / "environment" / "requirements.txt", folder / "environment" / "requirements.txt")
    if setup:
        (folder / "environment" / "setup.sh").write_text(setup)
    (folder / "tests").mkdir()
    (folder / "tests" / "fail_to_pass.txt").write_text("tests/test_sums.py::test_negative\n")
    (folder / "tests" / "pass_to_pass.txt").write_text("tests/test_sums.py::test_plain\n")
    (folder / "instruction.md").write_text("`total` takes the sign from negative numbers. It must add them as they are.\n")
    (folder / "task.toml").write_text(_toml(agent_timeout_s, setup, limits, verifier or {}))
    return name


def _toml(agent_timeout_s: float, setup: str, limits: str, verifier: Mapping[str, object]) -> str:
    table = {"kind": "pytest", "test_paths": ["tests"], "pythonpath": ["."], "timeout_s": 60, **verifier}
    judged = "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items())
    return f"""schema_version = "1.4"
[metadata]
title = "Sums of negative numbers"
[agent]
timeout_sec = {agent_timeout_s}
[environment]
cpus = 2
memory_mb = 1024
storage_mb = 256
{limits}
[metadata.seatrial.snapshot]
kind = "directory"
path = "before"
[metadata.seatrial.solution]
kind = "directory"
path = "after"
[metadata.seatrial.environment]
requirements = "environment/requirements.txt"
pythonpath = ["."]
{'setup = "environment/setup.sh"' if setup else ""}
[metadata.seatrial.verifier]
{judged}
"""
