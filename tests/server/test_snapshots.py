"""Snapshots and truths from real archives, real folders and the real git; hostile archives among them."""

import hashlib
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from server.archives import ArchiveError
from server.downloads import DownloadError
from server.repositories import RepositoryError
from server.settings import Settings
from server.snapshots import EPOCH_S, build_snapshot, build_truth, find_snapshot, find_truth
from server.state import State, open_state, remove_tree
from tasks.catalog import load_catalog
from tasks.model import DirectorySource, PypiSource

ROOT = Path(__file__).parent.parent.parent
Member = tuple[tarfile.TarInfo, bytes]

BUILD = """
import os, sys
from pathlib import Path
from server.snapshots import build_snapshot
from server.state import State
from tasks.errors import SeaTrialError
from tasks.model import DirectorySource
try:
    uid, gid = int(sys.argv[3]), int(sys.argv[4])
    source = DirectorySource(kind="directory", path="repo")
    print(build_snapshot(source, Path(sys.argv[2]), State(Path(sys.argv[1]), uid, gid)).tree)
except SeaTrialError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def state() -> Generator[State]:
    """Yield a state folder below one that the sandboxes' user may enter, which tmp_path is not for root's."""
    folder = Path(tempfile.mkdtemp(prefix="seatrial-test-", dir="/var/tmp"))
    folder.chmod(0o711)
    yield open_state(Settings(state=folder / "state"))
    remove_tree(folder)


@pytest.fixture
def task_folder(tmp_path: Path) -> Path:
    """Return a task folder with a repository to start from and one that solves it."""
    for name, text in {
        "repo/pkg/code.py": "x = 1\n",
        "repo/run.sh": "true\n",
        "repo/ignored.log": "kept all the same\n",
        "repo/.gitignore": "*.log\n",
        "repo/.gitattributes": "*.txt text eol=crlf\n*.py filter=evil ident\n",
        "repo/windows.txt": "one\r\ntwo\n",
        "repo/.git/hooks/post-commit": "#!/bin/sh\nfalse\n",
        "repo/pkg/.GIT/config": "[core]\n",
        "solution/pkg/code.py": "x = 'MARKER-OF-THE-SOLUTION'\n",
    }.items():
        path = tmp_path / "task" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    (tmp_path / "task/repo/run.sh").chmod(0o700)
    (tmp_path / "task/repo/pkg/code.py").chmod(0o666)
    return tmp_path / "task"


REPO = DirectorySource(kind="directory", path="repo")
SOLUTION = DirectorySource(kind="directory", path="solution")


def git(tree: Path, *args: str) -> str:
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", "-c", "safe.directory=*", *args]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True).stdout


def names(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if ".git" not in path.relative_to(tree).parts}


def build_elsewhere(state: State, task_folder: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(state.root), str(task_folder), str(state.uid), str(state.gid)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_snapshot_is_the_folder_as_a_repository_of_one_commit(state: State, task_folder: Path) -> None:
    tree = build_snapshot(REPO, task_folder, state).tree

    assert names(tree) == {".gitignore", ".gitattributes", "ignored.log", "pkg", "pkg/code.py", "run.sh", "windows.txt"}
    assert (tree / "windows.txt").read_bytes() == b"one\r\ntwo\n"
    assert (
        git(tree, "log", "--all", "--format=%an <%ae> %ct %cn %s")
        == f"Sea Trial <seatrial@localhost> {EPOCH_S} Sea Trial Snapshot\n"
    )
    assert git(tree, "branch", "--show-current") == "main\n"
    assert git(tree, "remote") == ""
    assert git(tree, "status", "--porcelain", "--ignored") == ""
    assert "ignored.log" in git(tree, "ls-files")
    assert git(tree, "rev-parse", "HEAD:windows.txt").strip() == hashlib.sha1(b"blob 9\0one\r\ntwo\n").hexdigest()
    assert not (tree / ".git/hooks").exists()
    assert not (tree / ".git/logs").exists()
    assert not (tree / ".git/objects/info/alternates").exists()


def test_modes_times_and_owner_are_the_same_everywhere(state: State, task_folder: Path) -> None:
    snapshot = build_snapshot(REPO, task_folder, state)

    for path in [snapshot.tree, *snapshot.tree.rglob("*")]:
        facts = path.lstat()
        assert (facts.st_uid, facts.st_gid) == (state.uid, state.gid)
        if ".git" not in path.relative_to(snapshot.tree).parts:
            executable = path.is_dir() or path.name == "run.sh"
            assert stat.S_IMODE(facts.st_mode) == (0o755 if executable else 0o644)
            assert facts.st_mtime == EPOCH_S


def test_a_snapshot_is_built_once_and_found_by_its_content(state: State, task_folder: Path) -> None:
    assert find_snapshot(REPO, task_folder, state) is None
    first = build_snapshot(REPO, task_folder, state)
    inode = first.tree.stat().st_ino

    assert build_snapshot(REPO, task_folder, state) == first == find_snapshot(REPO, task_folder, state)
    assert first.tree.stat().st_ino == inode

    (task_folder / "repo/pkg/code.py").write_text("x = 2\n")
    assert find_snapshot(REPO, task_folder, state) is None
    assert build_snapshot(REPO, task_folder, state).digest != first.digest


def test_nothing_of_the_users_git_gets_into_a_snapshot(state: State, task_folder: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "template/hooks").mkdir(parents=True)
    (home / "template/hooks/pre-commit").write_text("#!/bin/sh\nexit 1\n")
    (home / "template/hooks/pre-commit").chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[init]\n templateDir = {home}/template\n defaultBranch = other\n"
        f"[core]\n hooksPath = {home}/template/hooks\n autocrlf = true\n"
        f'[user]\n name = Somebody\n[commit]\n gpgSign = true\n[filter "evil"]\n clean = touch {home}/ran\n required = true\n'
    )
    plain = build_snapshot(REPO, task_folder, state).tree
    commit = git(plain, "rev-parse", "HEAD")
    other = Path(tempfile.mkdtemp(prefix="seatrial-test-", dir=state.root.parent))
    other.chmod(0o711)
    second = open_state(Settings(state=other / "state"))

    hostile = {"GIT_DIR": str(home), "GIT_INDEX_FILE": str(home / "index"), "GIT_CONFIG_COUNT": "1", "GIT_WORK_TREE": "/"}
    hostile |= {"GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "Env", "GIT_AUTHOR_NAME": "Env", "HOME": str(home)}
    answer, _ = build_elsewhere(second, task_folder, **hostile).communicate(timeout=60)

    tree = Path(answer.strip())
    assert git(tree, "rev-parse", "HEAD") == commit
    assert (tree / ".git/config").read_text() == (plain / ".git/config").read_text()
    assert str(home) not in (tree / ".git/config").read_text()
    assert not (home / "ran").exists() and not (tree / ".git/hooks").exists()


def test_a_truth_is_the_plain_tree_where_no_sandbox_looks(state: State, task_folder: Path) -> None:
    assert find_truth(SOLUTION, task_folder, state) is None

    tree = build_truth(SOLUTION, task_folder, state)

    assert tree == find_truth(SOLUTION, task_folder, state)
    assert names(tree) == {"pkg", "pkg/code.py"}
    assert not (tree / ".git").exists()
    assert tree.is_relative_to(state.private / "truth")
    assert stat.S_IMODE(state.private.stat().st_mode) == 0o700


def test_nothing_of_the_solution_lies_where_sandboxes_look(state: State, task_folder: Path) -> None:
    build_snapshot(REPO, task_folder, state)
    build_truth(SOLUTION, task_folder, state)

    for path in state.shared.rglob("*"):
        if path.is_file():
            assert b"MARKER-OF-THE-SOLUTION" not in path.read_bytes()


def test_two_builders_at_once_make_one_snapshot(state: State, task_folder: Path) -> None:
    builders = [build_elsewhere(state, task_folder) for _ in range(2)]
    first, second = (builder.communicate(timeout=60)[0].strip() for builder in builders)

    assert first == second
    assert git(Path(first), "fsck", "--strict") == ""
    assert os.listdir(state.shared / "snapshots") == [Path(first).parent.name]


def test_a_builder_that_is_killed_leaves_nothing_that_counts(state: State, task_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin/git"
    program.parent.mkdir()
    os.mkfifo(tmp_path / "started")
    program.write_text(
        f'#!/bin/sh\ncase "$1" in add) echo yes > {tmp_path}/started; exec sleep 600;; esac\nexec {shutil.which("git")} "$@"\n'
    )
    program.chmod(0o755)
    builder = build_elsewhere(state, task_folder, PATH=f"{program.parent}:{os.environ['PATH']}")
    assert (tmp_path / "started").read_text() == "yes\n"  # waits until it is in the middle of the work
    os.killpg(builder.pid, signal.SIGKILL)
    builder.communicate(timeout=60)

    assert find_snapshot(REPO, task_folder, state) is None
    snapshot = build_snapshot(REPO, task_folder, state)

    assert os.listdir(state.shared / "snapshots") == [snapshot.digest]
    assert git(snapshot.tree, "status", "--porcelain") == ""


def test_without_the_git_program_it_is_told_what_to_install(state: State, task_folder: Path, tmp_path: Path) -> None:
    answer, _ = build_elsewhere(state, task_folder, PATH=str(tmp_path)).communicate(timeout=60)

    assert answer.startswith(RepositoryError.__name__)
    assert "Install git" in answer
    assert find_snapshot(REPO, task_folder, state) is None


def info(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", mode: int = 0o644) -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size, member.mode = kind, link, len(data), mode
    return member, data


def sdist(place: Path, *members: Member) -> PypiSource:
    """Write an archive of ``members`` where pip looks and return what names it."""
    path = place / "small-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            if len(data) == member.size:
                tar.addfile(member, io.BytesIO(data))
            else:  # a header that promises what is not there
                tar.fileobj.write(member.tobuf())
    return PypiSource(kind="pypi", name="small", version="1.0", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the only place where pip is told to look."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def test_a_released_archive_comes_out_without_its_top_folder_and_without_gits(state: State, index: Path) -> None:
    source = sdist(
        index,
        info("small-1.0", tarfile.DIRTYPE, mode=0o700),
        info("small-1.0/code.py", data=b"x = 1\n", mode=0o600),
        info("small-1.0/run.sh", data=b"true\n", mode=0o4711),
        info("small-1.0/sub/link", tarfile.SYMTYPE, link="../code.py"),
        info("small-1.0/same.py", tarfile.LNKTYPE, link="small-1.0/code.py"),
        info("small-1.0/empty", tarfile.DIRTYPE),
        info("small-1.0/.git/config", data=b"[core]\n\thooksPath = /tmp\n"),
        info("small-1.0/sub/.Git", data=b"gitdir: /etc\n"),
        info("small-1.0/code.py", data=b"x = 2\n"),
    )

    tree = build_snapshot(source, Path("/nowhere"), state).tree

    assert names(tree) == {"code.py", "run.sh", "sub", "sub/link", "same.py", "empty"}
    assert (tree / "code.py").read_text() == "x = 2\n" and (tree / "same.py").read_text() == "x = 1\n"
    assert (tree / "sub/link").readlink() == Path("../code.py")
    assert stat.S_IMODE((tree / "run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((tree / "code.py").stat().st_mode) == 0o644
    assert "hooksPath" not in (tree / ".git/config").read_text()
    assert git(tree, "status", "--porcelain") == ""


def huge() -> Member:
    member, data = info("small-1.0/huge")
    member.size = 2 << 30
    return member, data


HOSTILE = {
    "absolute": [info("/tmp/evil", data=b"x")],
    "climbing": [info("small-1.0/../../evil", data=b"x")],
    "climbing inside": [info("small-1.0/a/../b", data=b"x")],
    "absolute link": [info("small-1.0/link", tarfile.SYMTYPE, link="/etc/passwd")],
    "climbing link": [info("small-1.0/link", tarfile.SYMTYPE, link="../../etc/passwd")],
    "link out of the top folder": [info("small-1.0/link", tarfile.SYMTYPE, link="../code.py")],
    "link over a link": [
        info("small-1.0/a/b/c", tarfile.DIRTYPE),
        info("small-1.0/a/up", tarfile.SYMTYPE, link="b/c"),
        info("small-1.0/out", tarfile.SYMTYPE, link="a/up/../../../../etc"),
    ],
    "link into git": [info("small-1.0/link", tarfile.SYMTYPE, link=".git/config")],
    "links in a circle": [
        info("small-1.0/a", tarfile.SYMTYPE, link="b/x"),
        info("small-1.0/b", tarfile.SYMTYPE, link="a/x"),
    ],
    "file through a link": [info("small-1.0/d", tarfile.SYMTYPE, link="e"), info("small-1.0/d/f", data=b"x")],
    "hard link outside": [info("small-1.0/link", tarfile.LNKTYPE, link="../../etc/passwd")],
    "hard link to nothing": [info("small-1.0/link", tarfile.LNKTYPE, link="small-1.0/none")],
    "hard link through a link": [
        info("small-1.0/d", tarfile.SYMTYPE, link="."),
        info("small-1.0/link", tarfile.LNKTYPE, link="small-1.0/d/x"),
    ],
    "pipe": [info("small-1.0/pipe", tarfile.FIFOTYPE)],
    "device": [info("small-1.0/null", tarfile.CHRTYPE)],
    "two top folders": [info("small-1.0/a", data=b"x"), info("other/b", data=b"x")],
    "no top folder": [info("setup.py", data=b"x")],
    "larger than allowed": [huge()],
    "a long name": [info("small-1.0/" + "a" * 300, data=b"x")],
    "an endless name": [info("small-1.0/" + "a/" * (1 << 20), data=b"x")],
    "a file as folder": [info("small-1.0/a", data=b"x"), info("small-1.0/a/b", data=b"x")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(
    state: State, index: Path, tmp_path: Path, members: list[Member]
) -> None:
    source = sdist(index, *members)

    with pytest.raises(ArchiveError, match=r"small-1\.0\.tar\.gz .*choose another release"):
        build_snapshot(source, tmp_path, state)
    with pytest.raises(ArchiveError):
        build_truth(source, tmp_path, state)

    assert os.listdir(state.shared / "snapshots") == []
    assert os.listdir(state.private / "truth") == []
    assert not Path("/tmp/evil").exists()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(_: bytes) -> bytes:
    return b"PK\x03\x04 not a tar"


@pytest.mark.parametrize("spoil", [cut, nothing])
def test_a_broken_archive_is_refused(state: State, index: Path, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    sdist(index, info("small-1.0/code.py", data=os.urandom(1 << 16)))
    path = index / "small-1.0.tar.gz"
    path.write_bytes(spoil(path.read_bytes()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    with pytest.raises(ArchiveError, match="is broken"):
        build_snapshot(PypiSource(kind="pypi", name="small", version="1.0", sha256=digest), tmp_path, state)


def test_bundled_tasks_start_from_what_their_release_holds(state: State) -> None:
    for task in load_catalog().tasks.values():
        try:
            tree = build_snapshot(task.facts.snapshot, task.folder, state).tree
            truth = build_truth(task.facts.solution, task.folder, state)
        except DownloadError as error:
            if "could not be fetched" in str(error):
                pytest.skip(str(error))
            raise
        verifier = task.facts.verifier
        assert all((truth / path).is_dir() for path in verifier.test_paths)
        assert all((tree / path).is_dir() for path in task.facts.environment.pythonpath)
        assert all((truth / test.partition("::")[0]).is_file() for test in (*task.fail_to_pass, *task.pass_to_pass))
        assert git(tree, "rev-list", "--all", "--count") == "1\n"
        assert task.facts.solution.kind == "pypi"
        for path in tree.rglob("*"):
            if path.is_file() and path.suffix in (".py", ".toml", ".cfg", ".txt"):
                assert f'__version__ = "{task.facts.solution.version}"' not in path.read_text(errors="replace")
