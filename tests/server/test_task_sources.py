"""Sources of tasks through the command line, with real repositories made on the spot."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from front_door import connected, seatrial
from repository import commit, new_repository
from small_tasks import small_task

from server.settings import Settings
from server.task_sources import task_folders


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    small_task(folder, "sums-a")
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a task in a folder of its own, tagged v1."""
    folder = new_repository(tmp_path / "bench")
    small_task(folder / "suite", "sums-b")
    commit(folder, tag="v1")
    return folder


def listed(state: Path, *options: str) -> tuple[list[str], list[str]]:
    """Return the ids that are listed beside the bundled ones, and the problems."""
    ran = seatrial(state, "tasks", "list", "--json", *options)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    return [task["id"] for task in told["tasks"]][2:], told["problems"]


def recorded(state: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(seatrial(state, "tasks", "sources", "--json").stdout)["sources"]
    return found


def added(state: Path, *arguments: str) -> str:
    ran = seatrial(state, "tasks", "add", *arguments)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def checkout(state: Path) -> Path:
    (folder,) = [path for path in (state / "private/sources").iterdir() if path.is_dir()]
    return folder


def test_an_added_folder_is_used_where_it_is_until_it_is_removed(state_folder: Path, tasks: Path) -> None:
    told = added(state_folder, str(tasks))

    assert "added mine" in told
    assert "1 usable task, 0 not usable" in told
    assert "seatrial tasks build sums-a" in told
    assert listed(state_folder) == (["sums-a"], [])

    small_task(tasks, "sums-c")
    assert listed(state_folder)[0] == ["sums-a", "sums-c"]
    assert "1 new" in seatrial(state_folder, "tasks", "update", "mine").stdout

    assert "removed mine" in seatrial(state_folder, "tasks", "remove", "mine").stdout
    assert listed(state_folder) == ([], [])
    assert (tasks / "sums-a" / "task.toml").exists()


def test_a_repository_is_pinned_to_the_commit_that_its_revision_is(state_folder: Path, repository: Path) -> None:
    first = commit(repository)
    assert f"at {first[:12]}" in added(state_folder, f"file://{repository}@main:suite", "--name", "bench")
    assert listed(state_folder) == (["sums-b"], [])
    small_task(repository / "suite", "sums-d")
    (repository / "suite/sums-b/instruction.md").write_text("Another text.\n")
    second = commit(repository)
    assert listed(state_folder) == (["sums-b"], [])

    told = seatrial(state_folder, "tasks", "update").stdout

    assert f"{first[:12]} -> {second[:12]} 1 new, 1 changed" in told
    assert listed(state_folder) == (["sums-b", "sums-d"], [])
    (source,) = recorded(state_folder)
    assert (source["name"], source["kind"], source["rev"], source["commit"]) == ("bench", "git", "main", second)
    assert seatrial(state_folder, "tasks", "update").stdout == "bench: no task changed\n"
    assert seatrial(state_folder, "tasks", "remove", "bench").returncode == 0
    assert [path.name for path in (state_folder / "private/sources").iterdir()] == ["sources.json"]


def test_a_tag_a_commit_and_an_abbreviated_one_name_the_same_tasks(state_folder: Path, repository: Path) -> None:
    whole = commit(repository)
    (repository / "later").write_text("x")
    commit(repository)
    for number, rev in enumerate(("v1", whole, whole[:9])):
        added(state_folder, f"{repository}@{rev}:suite", "--name", f"s{number}")

    assert {source["commit"] for source in recorded(state_folder)} == {whole}
    assert listed(state_folder) == (["sums-b"], [])


def test_a_repository_or_a_subfolder_that_is_a_task_keeps_its_name(state_folder: Path, tmp_path: Path, repository: Path) -> None:
    folder = new_repository(tmp_path / "sums-root")
    small_task(tmp_path, "sums-root")
    commit(folder)
    added(state_folder, f"file://{folder}")
    added(state_folder, f"file://{repository}:suite/sums-b")

    assert listed(state_folder) == (["sums-root", "sums-b"], [])


def test_nothing_of_a_repository_is_kept_or_executed(state_folder: Path, repository: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    (repository / "suite/.gitattributes").write_text("* filter=evil text eol=crlf\n*.md export-ignore\n")
    (repository / ".gitmodules").write_text('[submodule "x"]\n\tpath = x\n\turl = /none\n')
    commit(repository)
    config = tmp_path / "config"
    config.write_text(f'[filter "evil"]\n\tsmudge = touch {mark}; cat\n[core]\n\thooksPath = {tmp_path}/hooks\n')
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (hooks / name).chmod(0o755)

    ran = seatrial(state_folder, "tasks", "add", f"file://{repository}:suite", GIT_CONFIG_GLOBAL=str(config))

    assert ran.returncode == 0, ran.stderr
    assert not mark.exists()
    assert not list(checkout(state_folder).rglob(".git"))
    assert b"\r" not in (checkout(state_folder) / "suite/sums-b/instruction.md").read_bytes()


def test_a_checkout_that_was_edited_is_refused_until_it_is_fetched_again(state_folder: Path, repository: Path) -> None:
    added(state_folder, f"file://{repository}:suite", "--name", "bench")
    suite = checkout(state_folder) / "suite"
    (suite / "sums-b/tests/fail_to_pass.txt").write_text("tests/test_sums.py::test_other\n")
    small_task(suite, "sums-planted")
    (suite / "sums-link").symlink_to(suite / "sums-b")

    ids, problems = listed(state_folder)

    assert ids == []
    assert len(problems) == 3
    assert sum("changed by hand. Fetch it again: seatrial tasks update bench" in problem for problem in problems) == 2
    assert any("is a symbolic link" in problem for problem in problems)
    assert "changed by hand" in seatrial(state_folder, "tasks", "show", "sums-b").stderr
    assert seatrial(state_folder, "tasks", "update", "bench").returncode == 0
    assert listed(state_folder) == (["sums-b"], [])


def test_a_checkout_that_is_gone_is_told_and_fetched_again(state_folder: Path, repository: Path) -> None:
    added(state_folder, f"file://{repository}:suite", "--name", "bench")
    subprocess.run(["rm", "-r", checkout(state_folder)], check=True)

    (problem,) = listed(state_folder)[1]

    assert "cannot be read" in problem
    assert "seatrial tasks update bench" in problem
    assert seatrial(state_folder, "tasks", "update").returncode == 0
    assert listed(state_folder) == (["sums-b"], [])


def test_a_broken_task_is_named_and_the_others_are_added(state_folder: Path, tasks: Path) -> None:
    (tasks / "half").mkdir()
    (tasks / "half/instruction.md").write_text("Do it.\n")
    small_task(tasks, "h11-chunked-body")

    told = added(state_folder, str(tasks))

    assert "1 usable task, 2 not usable" in told
    assert "half/task.toml is missing" in told
    assert "'h11-chunked-body' is taken" in told
    ids, problems = listed(state_folder)
    assert ids == ["sums-a"]
    assert len(problems) == 2


BAD = {
    "no such thing": ("nothing/here", "is no folder that exists, and no URL"),
    "empty": ("", "names nothing"),
    "program": ("ext::sh -c true", "no folder that exists, and no URL"),
    "scheme": ("git://host/x.git", "can be https, http, ssh, file"),
    "password": ("https://me:secret@host/x.git", "holds a password"),
    "file": ("{repository}/suite/sums-b/task.toml", "is a file"),
    "no tasks": ("{empty}", "holds no task"),
    "no tasks in git": ("file://{repository}", "holds no task"),
    "rev": ("file://{repository}@v2:suite", "has no branch, tag or commit 'v2'"),
    "commit": ("file://{repository}@" + "a" * 40, f"has no branch, tag or commit '{'a' * 40}'"),
    "option": ("file://{repository}@--upload-pack=x", "is no revision"),
    "refspec": ("file://{repository}@a..b", "is no revision"),
    "subfolder": ("file://{repository}@v1:none", "has no folder 'none' at v1"),
    "a file of it": ("file://{repository}@v1:suite/sums-b/task.toml", "has no folder"),
    "out of it": ("file://{repository}:../x", "is no subfolder"),
    "local subfolder": ("{repository}:none", "There is no folder 'none'"),
    "no repository": ("file://{empty}", "There is no git repository at"),
    "no such repository": ("file:///none/x.git", "There is no folder /none/x.git"),
    "unreachable": ("http://127.0.0.1:1/x.git", "cannot be reached"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_added_is_told_and_leaves_nothing(case: str, state_folder: Path, repository: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text, expected = BAD[case]

    ran = seatrial(state_folder, "tasks", "add", text.format(repository=repository, empty=empty))

    assert ran.returncode == 1
    assert expected in ran.stderr
    assert "secret" not in ran.stderr
    assert "Traceback" not in ran.stderr
    folder = state_folder / "private/sources"
    assert not folder.exists() or list(folder.iterdir()) == []


def test_names_and_places_are_taken_once(state_folder: Path, tasks: Path, repository: Path) -> None:
    added(state_folder, str(tasks))

    for arguments, expected in (
        ((str(tasks), "--name", "other"), "It was added before, as 'mine'"),
        ((str(repository / "suite"), "--name", "mine"), "There is a source 'mine' already"),
        ((str(repository / "suite"), "--name", "../x"), "cannot be a name"),
    ):
        ran = seatrial(state_folder, "tasks", "add", *arguments)
        assert ran.returncode == 1
        assert expected in ran.stderr
    assert "No source 'other'. There are: mine." in seatrial(state_folder, "tasks", "remove", "other").stderr
    assert "No source 'other'" in seatrial(state_folder, "tasks", "update", "mine", "other").stderr


def test_an_update_that_fails_keeps_the_source_and_does_not_stop_the_others(
    state_folder: Path, tasks: Path, repository: Path
) -> None:
    added(state_folder, f"file://{repository}:suite", "--name", "bench")
    added(state_folder, str(tasks))
    repository.rename(repository.with_name("moved"))

    ran = seatrial(state_folder, "tasks", "update")

    assert ran.returncode == 1
    assert "bench was not updated" in ran.stderr
    assert "mine: no task changed" in ran.stdout
    assert listed(state_folder) == (["sums-b", "sums-a"], [])


def test_sources_added_at_once_are_all_there(state_folder: Path, repository: Path) -> None:
    def add(number: int) -> int:
        place = f"file://{repository}@v1:suite" if number else str(repository / "suite")
        return seatrial(state_folder, "tasks", "add", place, "--name", f"s{number}").returncode

    seatrial(state_folder, "tasks", "sources")
    commit(repository, tag="v2")
    with ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(add, range(4)))

    assert sorted(codes) == [0, 0, 1, 1], "three name the same place: one of them is added"
    assert len(recorded(state_folder)) == 2
    assert [path.name for path in (state_folder / "private/sources").glob(".*")] == []


def test_what_a_killed_add_left_is_never_seen_and_cleaned_by_the_next(
    state_folder: Path, repository: Path, tmp_path: Path
) -> None:
    """git is replaced by one that hangs in fetch, so that the kill comes in the middle."""
    programs = tmp_path / "bin"
    programs.mkdir()
    reached = tmp_path / "reached"
    os.mkfifo(reached)
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    (programs / "git").write_text(
        f'#!/bin/sh\n[ "$1" = fetch ] && {{ echo $$ > {reached}; exec sleep 600; }}\nexec {real} "$@"\n'
    )
    (programs / "git").chmod(0o755)
    env = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SEATRIAL_STATE": str(state_folder)}
    command = [sys.executable, "-I", "-m", "server", "tasks", "add", f"file://{repository}:suite"]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        hanging = int(reached.read_text())
        process.kill()
    os.kill(hanging, 9)
    sources = state_folder / "private/sources"
    assert list(sources.glob(".incoming.*"))
    assert listed(state_folder) == ([], [])

    added(state_folder, f"file://{repository}:suite")

    assert list(sources.glob(".*")) == []
    assert listed(state_folder) == (["sums-b"], [])


def test_reading_sources_makes_no_state_folder(state_folder: Path) -> None:
    assert task_folders(Settings(state=state_folder / "none")) == ()
    assert "No source was added" in seatrial(state_folder / "none", "tasks", "sources").stdout
    assert not (state_folder / "none").exists()


def test_a_broken_record_is_told(state_folder: Path, tasks: Path) -> None:
    added(state_folder, str(tasks))
    (state_folder / "private/sources/sources.json").write_text("{")

    ran = seatrial(state_folder, "tasks", "list")

    assert ran.returncode == 1
    assert "sources.json is broken. Remove it" in ran.stderr


def test_tasks_of_an_option_stand_beside_added_ones(state_folder: Path, tasks: Path, repository: Path) -> None:
    added(state_folder, str(tasks))

    assert listed(state_folder, "--tasks", str(repository / "suite"))[0] == ["sums-b", "sums-a"]
    assert seatrial(state_folder, "tasks", "show", "sums-b", "--tasks", str(repository / "suite")).returncode == 0


async def test_an_agent_sees_added_tasks(state_folder: Path, repository: Path) -> None:
    added(state_folder, f"file://{repository}@v1:suite")

    async with connected(state_folder) as agent:
        assert "sums-b" in (await agent.call("list_tasks")).text
        assert "takes the sign" in (await agent.call("get_task", task_id="sums-b")).text
