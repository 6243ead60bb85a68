"""The trees that trials start from, and those that solve them: fetched once, digested, then only read.

A snapshot lies at ``shared/snapshots/<digest>/tree`` and is a git repository of one commit, the same for everybody: no
history, no remotes, nothing of this machine. The truth lies at ``private/truth/<digest>/tree``, where no sandbox looks.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from server.archives import copy_folder, is_git, unpack_sdist
from server.downloads import fetch_sdist
from server.repositories import check_out, commit_tree
from server.state import State
from tasks.errors import SeaTrialError
from tasks.folders import read_folder
from tasks.model import DirectorySource, GitSource, Source

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


def build_snapshot(source: Source, task_folder: Path, state: State) -> Snapshot:
    """Return the snapshot of ``source``, building it if this state folder does not have it yet.

    Raises:
        DownloadError: the release cannot be fetched, or is not the one the task means.
        RepositoryError: git is missing or fails, or the commit cannot be fetched.
        SnapshotError, ArchiveError, TaskError: what was fetched, or the task's own folder, cannot be used.
    """
    digest = source_digest(source, task_folder)

    def fill(folder: Path) -> None:
        tree = _plain_tree(source, task_folder, state, folder)
        commit_tree(tree, IDENTITY)
        os.utime(tree, (EPOCH_S, EPOCH_S))
        state.own_tree(folder)

    state.make("snapshots")
    return Snapshot(digest, state.publish(state.shared / "snapshots" / digest, fill) / "tree")


def build_truth(source: Source, task_folder: Path, state: State) -> Path:
    """Return the tree of a solution, without a repository, in a folder that no sandbox mounts.

    Raises:
        SeaTrialError: as `build_snapshot`.
    """
    target = state.private / "truth" / source_digest(source, task_folder)
    return state.publish(target, lambda folder: _seal(_plain_tree(source, task_folder, state, folder), folder)) / "tree"


def find_snapshot(source: Source, task_folder: Path, state: State) -> Snapshot | None:
    """Return the snapshot of ``source`` if it was built."""
    digest = source_digest(source, task_folder)
    tree = state.shared / "snapshots" / digest / "tree"
    return Snapshot(digest, tree) if tree.exists() else None


def find_truth(source: Source, task_folder: Path, state: State) -> Path | None:
    """Return the tree of a solution if it was built."""
    tree = state.private / "truth" / source_digest(source, task_folder) / "tree"
    return tree if tree.exists() else None


def source_digest(source: Source, task_folder: Path) -> str:
    """Return the SHA-256 of what a tree is made from: the released archive, the commit, or a folder's names and contents.

    From where a commit is fetched does not matter: its id is the digest of all that is in it.
    """
    facts = source.model_dump()
    if isinstance(source, DirectorySource):
        facts = {"kind": source.kind, "content": read_folder(task_folder / source.path).digest}
    elif isinstance(source, GitSource):
        facts = {"kind": source.kind, "commit": source.commit, "subfolder": source.subfolder}
    return hashlib.sha256(json.dumps({"format": FORMAT, **facts}, sort_keys=True).encode()).hexdigest()


def _plain_tree(source: Source, task_folder: Path, state: State, folder: Path) -> Path:
    tree = folder / "tree"
    tree.mkdir()
    if isinstance(source, DirectorySource):
        copy_folder(task_folder / source.path, tree)
    elif isinstance(source, GitSource):
        _check_out(source, tree)
    else:
        unpack_sdist(fetch_sdist(source, state), tree)
    for parent, folders, files in os.walk(tree, topdown=False):
        for name in (*folders, *files):  # a link to a folder stands among the folders
            os.utime(Path(parent, name), (EPOCH_S, EPOCH_S), follow_symlinks=False)
        Path(parent).chmod(0o755)
    os.utime(tree, (EPOCH_S, EPOCH_S))
    return tree


def _check_out(source: GitSource, tree: Path) -> None:
    """Write the commit into ``tree``; what would be missing from it, or lead out of it, is refused."""
    found = check_out(source.url, source.commit, source.subfolder, tree)
    if found.submodules:
        raise SnapshotError(
            f"{source.url} has submodules at {source.commit[:12]} ({', '.join(found.submodules[:3])}). They are not fetched, so "
            "the tree would not be whole. Use a subfolder without them, or a directory snapshot."
        )
    for parent, folders, files in os.walk(tree):
        for name in (*folders, *files):
            link = Path(parent, name)
            if link.is_symlink() and not _stays_inside(tree, link):
                raise SnapshotError(
                    f"{source.url} has a link that leads outside, {ascii(str(link.relative_to(tree)))[-200:]}. Use a subfolder "
                    "without it, or a directory snapshot."
                )


def _stays_inside(tree: Path, link: Path) -> bool:
    target = os.readlink(link)  # noqa: PTH115 - a Path would tidy it up
    landed = os.path.normpath(os.path.join(link.parent.relative_to(tree), target))  # noqa: PTH118
    return not (target.startswith("/") or landed.split("/")[0] == ".." or any(is_git(part) for part in landed.split("/")))


def _seal(tree: Path, folder: Path) -> None:
    """Check that the truth is not empty and close its folder to other users."""
    if not any(tree.iterdir()):
        raise SnapshotError(f"{folder.name} would be empty. Check the task's solution source.")
    folder.chmod(0o700)
