"""The trees that trials start from, and those that solve them: fetched once, digested, then only read.

A snapshot lies at ``shared/snapshots/<digest>/tree`` and is a git repository of one commit, the same for everybody: no
history, no remotes, nothing of this machine. The truth lies at ``private/truth/<digest>/tree``, where no sandbox looks.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from server.archives import copy_folder, unpack_sdist
from server.downloads import fetch_sdist
from server.state import State
from tasks.errors import SeaTrialError
from tasks.folders import read_folder
from tasks.model import DirectorySource, PypiSource

FORMAT = 1
"""Part of every digest: raise it when the same source would give another tree."""

EPOCH_S = 946_684_800
"""The modification time of everything in a tree: 2000-01-01, which every archive format can hold."""

IDENTITY = {"NAME": "Sea Trial", "EMAIL": "seatrial@localhost", "DATE": f"{EPOCH_S} +0000"}


class SnapshotError(SeaTrialError):
    """A snapshot cannot be made; the text says why."""


@dataclass(frozen=True)
class Snapshot:
    """A finished, read-only tree and the digest of what it was made from."""

    digest: str
    tree: Path


def build_snapshot(source: PypiSource | DirectorySource, task_folder: Path, state: State) -> Snapshot:
    """Return the snapshot of ``source``, building it if this state folder does not have it yet.

    Raises:
        DownloadError: the release cannot be fetched, or is not the one the task means.
        SnapshotError: git is missing or fails.
        ArchiveError, TaskError: what was fetched, or the task's own folder, cannot be used.
    """
    digest = source_digest(source, task_folder)

    def fill(folder: Path) -> None:
        tree = _plain_tree(source, task_folder, state, folder)
        _commit(tree)
        os.utime(tree, (EPOCH_S, EPOCH_S))
        state.own_tree(folder)

    state.make("snapshots")
    return Snapshot(digest, state.publish(state.shared / "snapshots" / digest, fill) / "tree")


def build_truth(source: PypiSource | DirectorySource, task_folder: Path, state: State) -> Path:
    """Return the tree of a solution, without a repository, in a folder that no sandbox mounts.

    Raises:
        DownloadError, ArchiveError, TaskError: as `build_snapshot`.
    """
    target = state.private / "truth" / source_digest(source, task_folder)
    return state.publish(target, lambda folder: _seal(_plain_tree(source, task_folder, state, folder), folder)) / "tree"


def find_snapshot(source: PypiSource | DirectorySource, task_folder: Path, state: State) -> Snapshot | None:
    """Return the snapshot of ``source`` if it was built."""
    digest = source_digest(source, task_folder)
    tree = state.shared / "snapshots" / digest / "tree"
    return Snapshot(digest, tree) if tree.exists() else None


def find_truth(source: PypiSource | DirectorySource, task_folder: Path, state: State) -> Path | None:
    """Return the tree of a solution if it was built."""
    tree = state.private / "truth" / source_digest(source, task_folder) / "tree"
    return tree if tree.exists() else None


def source_digest(source: PypiSource | DirectorySource, task_folder: Path) -> str:
    """Return the SHA-256 of what a tree is made from: the released archive, or a folder's names and contents."""
    facts = source.model_dump()
    if isinstance(source, DirectorySource):
        facts = {"kind": source.kind, "content": read_folder(task_folder / source.path).digest}
    return hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()


def _plain_tree(source: PypiSource | DirectorySource, task_folder: Path, state: State, folder: Path) -> Path:
    tree = folder / "tree"
    tree.mkdir()
    if isinstance(source, DirectorySource):
        copy_folder(task_folder / source.path, tree)
    else:
        unpack_sdist(fetch_sdist(source, state), tree)
    for parent, folders, files in os.walk(tree, topdown=False):
        for name in (*folders, *files):  # a link to a folder stands among the folders
            os.utime(Path(parent, name), (EPOCH_S, EPOCH_S), follow_symlinks=False)
        Path(parent).chmod(0o755)
    os.utime(tree, (EPOCH_S, EPOCH_S))
    return tree


def _seal(tree: Path, folder: Path) -> None:
    """Check that the truth is not empty and close its folder to other users."""
    if not any(tree.iterdir()):
        raise SnapshotError(f"{folder.name} would be empty. Check the task's solution source.")
    folder.chmod(0o700)


def _commit(tree: Path) -> None:
    """Make ``tree`` a repository with one commit, the same whatever machine, user or git configuration makes it."""
    try:
        from git import Git, GitCommandError, GitCommandNotFound  # looks for the program when it is imported
    except ImportError as error:
        raise SnapshotError("The program `git` was not found on PATH. Install git, then run the command again.") from error
    git = Git(tree)
    git.update_environment(**_git_environment(tree))
    try:
        git.init("--quiet", "--template=", "--initial-branch=main", "--object-format=sha1")
        for key, value in _GIT_CONFIG.items():
            git.config(key, value)
        info = tree / ".git" / "info"
        info.mkdir(exist_ok=True)
        # Wins over every .gitattributes of upstream: files are committed as they are, through no filter.
        (info / "attributes").write_text("* -text -filter -ident -working-tree-encoding\n")
        git.add("--all", "--force", ".")
        git.commit("--quiet", "--allow-empty", "--no-verify", "--no-gpg-sign", "--message=Snapshot")
        git.gc("--quiet", "--prune=now")
    except GitCommandNotFound as error:
        raise SnapshotError("The program `git` was not found on PATH. Install git, then run the command again.") from error
    except GitCommandError as error:
        raise SnapshotError(f"git could not make the snapshot ({error.stderr.strip()[-300:]}). It needs git 2.29.") from error
    for left in ("COMMIT_EDITMSG", "gc.log"):
        (tree / ".git" / left).unlink(missing_ok=True)


_GIT_CONFIG = {
    "core.logAllRefUpdates": "false",
    "core.autocrlf": "false",
    "core.fileMode": "true",
    "core.trustctime": "false",  # an overlay gives other inodes and times of change than those in the index;
    "core.checkStat": "minimal",  # without this the first `git status` would read every file of a large tree
    "gc.auto": "0",
    "pack.threads": "1",
}


def _git_environment(tree: Path) -> dict[str, str]:
    """Say where everything is, so that neither the user's configuration nor an inherited GIT_* variable matters."""
    folder = tree / ".git"
    names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in IDENTITY.items()}
    return names | {
        "GIT_DIR": str(folder),
        "GIT_COMMON_DIR": str(folder),
        "GIT_WORK_TREE": str(tree),
        "GIT_INDEX_FILE": str(folder / "index"),
        "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": "",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "0",
        "GIT_CONFIG_PARAMETERS": "",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TEMPLATE_DIR": "",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_TRACE": "0",
    }
