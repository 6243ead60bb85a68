"""Generated tasks that differ only in how large their tree is."""

import subprocess
import sys
from pathlib import Path

from tests.bench.kit import BenchError, Kit

FILE_BYTES = 20_000
SNAPSHOT_MB = 50
"""The most that comes with the task folder (a folder of facts is bounded); the rest is written by the task's setup."""

_TASK = """schema_version = "1.4"
[task]
name = "bench/{name}"
description = "A tree of {megabytes} MB"
[environment]
storage_mb = 2048
[metadata.seatrial.snapshot]
kind = "directory"
path = "tree"
[metadata.seatrial.environment]
setup = "environment/setup.sh"
[metadata.seatrial.solution]
kind = "directory"
path = "solution"
[metadata.seatrial.verifier]
kind = "pytest"
test_paths = ["tests"]
fail_to_pass = "tests/ids.txt"
pass_to_pass = "tests/kept.txt"
"""

_SETUP = """cd /workspace
for n in $(seq 1 {folders}); do mkdir -p made/$n; head -c {folder_bytes} /dev/urandom | split -b {file_bytes} - made/$n/; done
"""


def make_trees(kit: Kit) -> tuple[str, str]:
    """Generate and build the small and the large tree, unless they are there, and return the ids of their tasks."""
    names = tuple(f"tree-{megabytes}mb" for megabytes in kit.scale.trees_mb)
    for name, megabytes in zip(names, kit.scale.trees_mb, strict=True):
        if not (kit.tasks / name).exists():
            _write_task(kit.tasks / name, megabytes)
    command = [sys.executable, "-I", "-m", "server", "tasks", "build", *names]
    built = subprocess.run(command, env=kit.environ(), capture_output=True, text=True, check=False)
    if built.returncode:
        raise BenchError(f"The generated tasks could not be built: {built.stdout}{built.stderr}")
    return names[0], names[1]


def _write_task(folder: Path, megabytes: int) -> None:
    in_snapshot = min(megabytes, SNAPSHOT_MB)
    for number in range(in_snapshot * 1_000_000 // FILE_BYTES):
        file = folder / "tree" / f"part{number // 50}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        line = f"value_{number} = {number}  # one of the lines of a generated file\n"
        file.write_text(line * (FILE_BYTES // len(line)))
    for name, text in (
        ("task.toml", _TASK.format(name=folder.name, megabytes=megabytes)),
        ("instruction.md", "Change nothing.\n"),
        ("environment/setup.sh", _setup(megabytes - in_snapshot)),
        ("tests/ids.txt", "tests/test_a.py::test_a\n"),
        ("tests/kept.txt", "tests/test_a.py::test_b\n"),
        ("solution/tests/test_a.py", "def test_a(): pass\ndef test_b(): pass\n"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _setup(megabytes: int) -> str:
    if not megabytes:
        return "true\n"
    folders = max(1, megabytes // 2)
    return _SETUP.format(folders=folders, folder_bytes=megabytes * 1_000_000 // folders, file_bytes=FILE_BYTES)
