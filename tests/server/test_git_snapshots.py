"""Snapshots and solutions that are commits of real repositories made on the spot."""

import json
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
from front_door import reachable_folder, seatrial
from repository import commit, git, new_repository
from small_tasks import AFTER, BEFORE, small_task

from server.repositories import RepositoryError, check_out
from server.settings import Settings
from server.snapshots import SnapshotError, build_snapshot, build_truth, source_digest
from server.state import State, open_state
from tasks.catalog import load_catalog
from tasks.errors import TaskError
from tasks.model import DirectorySource, GitSource


@pytest.fixture
def state() -> Generator[State]:
    with reachable_folder() as folder:
        yield open_state(Settings(state=folder / "state"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return new_repository(tmp_path / "sums")


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def source_of(repository: Path, commit_id: str, subfolder: str = "") -> GitSource:
    return GitSource(kind="git", url=str(repository), commit=commit_id, subfolder=subfolder)


def names(tree: Path) -> set[str]:
    found = (path.relative_to(tree) for path in tree.rglob("*") if not path.is_dir())
    return {str(path) for path in found if path.parts[0] != ".git"}


def test_a_commit_becomes_a_tree_without_history(state: State, repository: Path, tmp_path: Path) -> None:
    write(repository, {**BEFORE, ".gitattributes": "*.txt eol=crlf\nsecret export-ignore\n", "a.txt": "a\n", "secret": "s\n"})
    (repository / "run.sh").write_text("true\n")
    (repository / "run.sh").chmod(0o755)
    (repository / "link").symlink_to("sums/core.py")
    first = commit(repository)
    write(repository, AFTER)
    commit(repository)

    tree = build_snapshot(source_of(repository, first), tmp_path, state).tree

    assert names(tree) == {*BEFORE, ".gitattributes", "a.txt", "secret", "run.sh", "link"}
    assert (tree / "sums/core.py").read_text() == BEFORE["sums/core.py"]
    assert (tree / "a.txt").read_bytes() == b"a\n"
    assert (tree / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (tree / "link").readlink() == Path("sums/core.py")
    assert git(tree, "-c", "safe.directory=*", "log", "--all", "--format=%s") == "Snapshot"
    assert git(tree, "-c", "safe.directory=*", "rev-parse", "HEAD^{tree}") == git(repository, "rev-parse", f"{first}^{{tree}}")
    assert [path.name for path in tree.parent.iterdir()] == ["tree"]


def test_the_digest_is_of_the_commit_and_the_folder_not_of_the_address(tmp_path: Path) -> None:
    def digest(url: str, commit_id: str, subfolder: str = "") -> str:
        return source_digest(GitSource(kind="git", url=url, commit=commit_id, subfolder=subfolder), tmp_path)

    assert digest("https://a/x.git", "a" * 40) == digest("git@b:y.git", "a" * 40)
    assert len({digest("/x", "a" * 40), digest("/x", "b" * 40), digest("/x", "a" * 40, "sub")}) == 3


def test_a_folder_of_a_commit_can_be_the_truth(state: State, repository: Path, tmp_path: Path) -> None:
    write(repository, {f"inner/{name}": text for name, text in AFTER.items()})

    tree = build_truth(source_of(repository, commit(repository), "inner"), tmp_path, state)

    assert names(tree) == set(AFTER)
    assert not (tree / ".git").exists()


def test_a_commit_that_is_not_there_is_told(state: State, repository: Path, tmp_path: Path) -> None:
    write(repository, BEFORE)
    commit(repository)

    with pytest.raises(RepositoryError, match="has no branch, tag or commit 'aaaa"):
        build_snapshot(source_of(repository, "a" * 40), tmp_path, state)
    assert list((state.shared / "snapshots").iterdir()) == []


def test_a_branch_that_is_named_like_a_commit_is_not_taken_for_it(state: State, repository: Path, tmp_path: Path) -> None:
    write(repository, BEFORE)
    commit(repository)
    git(repository, "update-ref", f"refs/heads/{'a' * 40}", "HEAD")

    with pytest.raises(RepositoryError):
        build_snapshot(source_of(repository, "a" * 40), tmp_path, state)


def test_submodules_are_refused_unless_they_lie_elsewhere(state: State, repository: Path, tmp_path: Path) -> None:
    write(repository, {"inner/code.py": "x = 1\n"})
    commit(repository)
    git(repository, "update-index", "--add", "--cacheinfo", f"160000,{'b' * 40},vendor/lib")
    git(repository, "commit", "--quiet", "--message=Submodule")
    head = git(repository, "rev-parse", "HEAD")

    with pytest.raises(SnapshotError, match=r"has submodules at .* \(vendor/lib\). They are not fetched"):
        build_snapshot(source_of(repository, head), tmp_path, state)
    assert names(build_snapshot(source_of(repository, head, "inner"), tmp_path, state).tree) == {"code.py"}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside", "sums/../../outside", "x/.git/config"])
def test_links_that_lead_out_are_refused(target: str, state: State, repository: Path, tmp_path: Path) -> None:
    write(repository, BEFORE)
    (repository / "link").symlink_to(target)

    with pytest.raises(SnapshotError, match="has a link that leads outside, 'link'"):
        build_snapshot(source_of(repository, commit(repository)), tmp_path, state)


def test_a_fetch_that_hangs_is_ended(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("git")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").write_text(f'#!/bin/sh\n[ "$1" = fetch ] && exec sleep 600\nexec {real} "$@"\n')
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(str(real)).parent}:/usr/bin:/bin")
    (tmp_path / "tree").mkdir()

    with pytest.raises(RepositoryError, match="not fetched within the time limit"):
        check_out(str(repository), "", "", tmp_path / "tree", timeout_s=1)
    assert not (tmp_path / "tree.repository").exists()


def test_stray_files_never_reach_the_agent(state: State, tmp_path: Path) -> None:
    """What file managers leave behind is no part of a snapshot, nor is anything that lies beside it in the task folder."""
    mine = tmp_path / "mine"
    small_task(mine, "sums")
    folder = mine / "sums"
    before = load_catalog([mine]).find("sums").digest
    write(
        folder, {"README.md": "The solution is abs().\n", ".DS_Store": "x", "before/.DS_Store": "x", "before/sums/.DS_Store": "x"}
    )
    write(folder, {"before/sums/__pycache__/core.pyc": "x"})

    tree = build_snapshot(DirectorySource(kind="directory", path="before"), folder, state).tree

    assert names(tree) == set(BEFORE)
    assert "The solution is" not in load_catalog([mine]).find("sums").instruction
    (folder / "README.md").unlink()
    assert load_catalog([mine]).find("sums").digest == before


def test_a_task_from_git_is_solved_by_the_oracle_and_not_by_nop(state_folder: Path, repository: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    small_task(mine, "sums-git")
    commits = {}
    for top, files in (("before", BEFORE), ("after", AFTER)):
        write(repository, files)
        commits[top] = commit(repository)
        shutil.rmtree(mine / "sums-git" / top)
    facts = mine / "sums-git/task.toml"
    text = facts.read_text()
    for top, commit_id in commits.items():
        source = f'kind = "git"\nurl = "file://{repository}"\ncommit = "{commit_id}"'
        text = text.replace(f'kind = "directory"\npath = "{top}"', source)
    facts.write_text(text)

    shown = seatrial(state_folder, "tasks", "show", "sums-git", "--tasks", str(mine)).stdout
    rewards = {}
    for agent in ("oracle", "nop"):
        ran = seatrial(state_folder, "run", "--agent", agent, "--task", "sums-git", "--tasks", str(mine), "--json")
        assert ran.returncode == 0, ran.stdout + ran.stderr
        rewards[agent] = json.loads(ran.stdout)["trials"][0]["reward"]

    assert f"file://{repository} at {commits['before'][:12]}" in shown
    assert rewards == {"oracle": 1.0, "nop": 0.0}


def test_facts_of_a_commit_are_checked(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    small_task(mine, "sums")
    facts = mine / "sums/task.toml"
    text = facts.read_text()
    facts.write_text(text.replace('kind = "directory"\npath = "before"', 'kind = "git"\nurl = "/x"\ncommit = "v1"'))

    with pytest.raises(TaskError, match=r"snapshot\.commit must be the whole id of a commit"):
        load_catalog([mine]).find("sums")
