"""Runs in the verifier's sandbox as ``python -I -S -B runner.py CONFIG``: pytest with a trusted configuration.

Without ``-S`` Python would run the submission's ``sitecustomize.py`` before this file: environments may put the workspace
on the path with a ``.pth`` file. So `site` is loaded by hand, after the start record.

Outcomes go to descriptor 3, one JSON object per line, each with the nonce that was read from standard input and a
number that counts up; the last is the end record. What is printed proves nothing and is only logged. Everything that this
file and pytest need at the start is imported before the submission's code can be.
"""

import json
import os
import site
import sys
from pathlib import Path

sys.path.append(str(Path(sys.executable).parents[1] / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"))
import pytest

CHANNEL = 3


class Records:
    """Writes numbered records to the channel. The descriptor is not inherited by what the tests start."""

    def __init__(self, nonce):
        self.nonce, self.number = nonce, 0
        self.channel = os.dup(CHANNEL)
        os.close(CHANNEL)
        self.process = os.getpid()

    def write(self, **values):
        if os.getpid() != self.process:
            return  # a fork of a test ran to the end of pytest
        line = json.dumps({"nonce": self.nonce, "number": self.number, **values}).encode() + b"\n"
        self.number += 1
        while line:
            line = line[os.write(self.channel, line) :]


class Reporter:
    """Keeps only the expected tests and reports every phase of each."""

    def __init__(self, records, expected):
        self.records, self.expected = records, expected

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        chosen = [item for item in items if item.nodeid.partition("[")[0] in self.expected]
        left = [item for item in items if item.nodeid.partition("[")[0] not in self.expected]
        if left:
            config.hook.pytest_deselected(items=left)
        items[:] = chosen

    def pytest_runtest_logreport(self, report):
        if type(report).__name__ == "SubtestReport":
            if report.outcome != "passed":
                self.records.write(kind="phase", id=report.nodeid, when="subtest", outcome=report.outcome)
            return
        outcome = "skipped" if hasattr(report, "wasxfail") else report.outcome
        self.records.write(kind="phase", id=report.nodeid, when=report.when, outcome=outcome)


def load_site():
    """Make this the interpreter of the virtual environment, as it would be without ``-S``, but for ``sitecustomize``."""
    sys.path.pop()
    sys.modules["sitecustomize"] = None
    site.main()
    del sys.modules["sitecustomize"]


def main():
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    nonce = sys.stdin.readline().strip()
    records = Records(nonce)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir("/")
    records.write(kind="start")
    load_site()
    sys.path[:0] = config["pythonpath"]
    arguments = [*config["options"], *config["args"], *config["files"]]
    code = pytest.main(arguments, plugins=[Reporter(records, frozenset(config["expected"]))])
    records.write(kind="end", exit_code=int(code))
    sys.stdout.flush()
    os._exit(int(code))  # no atexit of the submission's, no waiting for its threads


if __name__ == "__main__":
    main()
