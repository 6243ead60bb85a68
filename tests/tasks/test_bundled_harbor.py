"""The files that let bundled tasks run under Harbor itself say the same as the facts in their task.toml."""

import json
from pathlib import Path

import pytest

from tasks.harbor import load_task
from tasks.model import PypiSource, PytestTask

BUNDLED = sorted(path.parent for path in (Path(__file__).parents[2] / "tasks/bundled").glob("*/task.toml"))
every_task = pytest.mark.parametrize("folder", BUNDLED, ids=[folder.name for folder in BUNDLED])


def loaded(folder: Path) -> PytestTask:
    task = load_task(folder)
    assert isinstance(task, PytestTask)
    return task


@every_task
def test_releases_are_those_of_the_facts(folder: Path) -> None:
    facts = loaded(folder).facts

    for source, files in (
        (facts.snapshot, ["environment/snapshot.txt"]),
        (facts.solution, ["tests/truth.txt", "solution/truth.txt"]),
    ):
        assert isinstance(source, PypiSource)
        for file in files:
            assert (folder / file).read_text() == f"{source.name}=={source.version} --hash=sha256:{source.sha256}\n"
    assert (folder / "tests/requirements.txt").read_bytes() == (folder / facts.environment.requirements).read_bytes()


@every_task
def test_the_verifier_judges_by_the_facts(folder: Path) -> None:
    facts = loaded(folder).facts.verifier

    assert json.loads((folder / "tests/judge.json").read_text()) == {
        "test_paths": [str(path) for path in facts.test_paths],
        "protected": [str(path) for path in facts.protected],
        "pythonpath": [str(path) for path in facts.pythonpath],
        "args": list(facts.args),
        "env": dict(facts.env),
    }
    assert f"rm -rf {' '.join(map(str, facts.test_paths))})" in (folder / "solution/solve.sh").read_text()


@pytest.mark.parametrize("file", ["tests/judge.py", "tests/test.sh"])
def test_all_tasks_are_judged_by_the_same_program(file: str) -> None:
    assert len({(folder / file).read_bytes() for folder in BUNDLED}) == 1
