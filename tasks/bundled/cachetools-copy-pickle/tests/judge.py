"""Judge a workspace with the ground truth's tests: ``judge.py TRUTH WORKSPACE``. Exit code 0: every listed test passed.

Run with ``-I`` by a Python whose environment has pytest: nothing of the workspace is imported before its tests are. It is
weaker than the verification of Sea Trial itself, which never judges where the agent worked.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def read_ids(name):
    lines = (HERE / name).read_text().splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def restore(truth, workspace, path):
    """Make ``path`` in the workspace what it is in the ground truth: whole, or gone."""
    source, target = truth / path, workspace / path
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


class Outcomes:
    """Keeps the listed tests only; a function passes when all phases of all its cases do."""

    def __init__(self, expected):
        self.expected, self.ran, self.failed = expected, set(), set()

    def pytest_collection_modifyitems(self, items):
        items[:] = [item for item in items if item.nodeid.partition("[")[0] in self.expected]

    def pytest_runtest_logreport(self, report):
        name = report.nodeid.partition("[")[0]
        if report.outcome != "passed" or hasattr(report, "wasxfail"):
            self.failed.add(name)
        elif report.when == "call":
            self.ran.add(name)


def main(truth, workspace):
    facts = json.loads((HERE / "judge.json").read_text())
    parents = {str(parent / "conftest.py") for path in facts["test_paths"] for parent in Path(path).parents}
    for path in (*facts["test_paths"], *facts["protected"], *sorted(parents)):
        restore(truth, workspace, path)
    expected = read_ids("fail_to_pass.txt") | read_ids("pass_to_pass.txt")
    ini = truth.parent / "pytest.ini"
    ini.write_text("[pytest]\n")
    os.environ.update(facts["env"], PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTHONDONTWRITEBYTECODE="1")
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.chdir("/")
    sys.path[:0] = [str(workspace / path) for path in facts["pythonpath"]]
    outcomes = Outcomes(expected)
    files = sorted({str(workspace / test.partition("::")[0]) for test in expected})
    options = ["-c", str(ini), f"--rootdir={workspace}", "-p", "no:cacheprovider", "-q", "--continue-on-collection-errors"]
    pytest.main([*options, *facts["args"], *files], plugins=[outcomes])
    missing = sorted(expected - outcomes.ran | outcomes.failed)
    print(f"{len(expected) - len(missing)} of {len(expected)} listed tests passed", *missing[:20], sep="\n  ")
    sys.stdout.flush()
    os._exit(1 if missing else 0)


main(Path(sys.argv[1]), Path(sys.argv[2]))
