"""The catalog over real folders, bundled tasks included."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.catalog import BUNDLED, load_catalog
from tasks.errors import TaskError, UnknownTaskError

IDS = ("cachetools-copy-pickle", "h11-chunked-body")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Return a folder with two tasks of the user's."""
    for name in ("alpha", "beta"):
        shutil.copytree(BUNDLED / "h11-chunked-body", tmp_path / "mine" / name)
    return tmp_path / "mine"


def test_bundled_tasks_are_there_and_none_is_broken() -> None:
    catalog = load_catalog()

    assert tuple(catalog.tasks) == IDS
    assert catalog.problems == ()


def test_a_folder_of_tasks_and_a_task_folder_both_count(mine: Path) -> None:
    assert tuple(load_catalog([mine]).tasks) == (*IDS, "alpha", "beta")
    assert tuple(load_catalog([mine / "beta"]).tasks) == (*IDS, "beta")


def test_the_same_folder_twice_is_no_problem(mine: Path) -> None:
    assert load_catalog([mine, mine / "alpha"]).problems == ()


def test_a_broken_task_is_told_and_hides_no_other(mine: Path) -> None:
    (mine / "alpha/task.toml").write_text("[")

    catalog = load_catalog([mine])

    assert tuple(catalog.tasks) == (*IDS, "beta")
    ((folder, message),) = catalog.problems
    assert folder == mine / "alpha"
    with pytest.raises(TaskError, match="not valid TOML") as refusal:
        catalog.find("alpha")
    assert str(refusal.value) == message


def test_half_a_task_is_told(mine: Path) -> None:
    (mine / "alpha/task.toml").unlink()

    with pytest.raises(TaskError, match=r"task\.toml is missing"):
        load_catalog([mine]).find("alpha")


def test_an_id_that_is_taken_is_a_problem_and_the_first_one_stays(mine: Path) -> None:
    (mine / "alpha").rename(mine / IDS[0])

    catalog = load_catalog([mine])

    assert catalog.find(IDS[0]).folder == BUNDLED / IDS[0]
    assert "taken by" in catalog.problems[0].message


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_tasks_is_told(tmp_path: Path, make: bool) -> None:
    if make:
        (tmp_path / "none/deep/er").mkdir(parents=True)

    (problem,) = load_catalog([tmp_path / "none"]).problems

    assert "SEATRIAL_TASKS" in problem.message


def test_an_unknown_id_is_answered_with_the_way_to_the_known_ones() -> None:
    with pytest.raises(UnknownTaskError, match="list_tasks"):
        load_catalog().find("nothing")


@pytest.mark.parametrize(
    ("query", "found"),
    [("", IDS), ("PICKLE", IDS[:1]), ("http easy", IDS[1:]), ("python", IDS), ("smuggling", IDS[1:]), ("http pickle", ())],
)
def test_search_finds_every_word_whatever_its_case(query: str, found: tuple[str, ...]) -> None:
    assert tuple(task.id for task in load_catalog().search(query)) == found


def test_reading_the_catalog_imports_nothing_heavy() -> None:
    program = "import sys, tasks.catalog as c; c.load_catalog(); print({'git', 'unearth', 'mcp', 'typer'} & set(sys.modules))"

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=BUNDLED.parent.parent, check=True)

    assert ran.stdout == "set()\n"


@pytest.mark.parametrize("task_id", IDS)
def test_a_bundled_task_says_nothing_of_its_solution_to_the_agent(task_id: str) -> None:
    task = load_catalog().find(task_id)
    solution = task.facts.solution
    assert solution.kind == "pypi"

    told = "\n".join((task.id, task.title, task.instruction, *task.keywords))

    assert solution.version not in told
    assert solution.sha256 not in told
    assert solution != task.facts.snapshot


@pytest.mark.parametrize("task_id", IDS)
def test_a_bundled_environment_does_not_hold_the_package_under_test(task_id: str) -> None:
    task = load_catalog().find(task_id)
    source = task.facts.snapshot
    assert source.kind == "pypi"

    pins = (task.folder / task.facts.environment.requirements).read_text()

    assert f"{source.name}==" not in pins
    assert "pytest==" in pins
