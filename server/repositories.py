"""Everything that is done with git: fetch one commit of a repository as a plain tree, and make a tree a repository.

Nothing of a repository is ever executed: no hooks, no filters, no submodules, and the tree is written by plumbing commands
under a configuration of ours. Only fetching reads the user's own git configuration (proxies, credentials, keys).
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from server.archives import MAX_ENTRIES, MAX_TREE_BYTES
from server.locations import REV, check_url
from server.settings import inherited_environment
from server.state import remove_tree
from tasks.errors import SeaTrialError

TIMEOUT_S = 600.0
COMMIT = re.compile(r"[0-9a-f]{40}")
_ATTRIBUTES = "* -text -filter -ident -working-tree-encoding\n"
"""Wins over every .gitattributes of upstream: files are taken as they are, through no filter."""

_GUARDED = ("-c", "core.protectNTFS=true", "-c", "core.protectHFS=true", "-c", "core.symlinks=true")
"""No file of a commit may come to lie in something that any file system would take for `.git`."""

_NO_GIT = "The program `git` was not found on PATH. Install git, then run the command again."


class RepositoryError(SeaTrialError):
    """A repository cannot be used; the text says why and what to do."""


class UnknownRevisionError(RepositoryError):
    """The repository has no such branch, tag or commit."""


@dataclass(frozen=True)
class Checkout:
    """What came out of a repository. ``submodules`` are those that are absent from the tree: they are never fetched."""

    commit: str
    submodules: tuple[str, ...]


def check_out(url: str, rev: str, subfolder: str, tree: Path, *, timeout_s: float = TIMEOUT_S) -> Checkout:
    """Write ``subfolder`` ("": all) at ``rev`` ("": the default branch) into the empty folder ``tree``, without history.

    A scratch repository lies beside ``tree`` meanwhile and is removed.

    Raises:
        RepositoryError: it cannot be reached, has no such revision or subfolder, is too large, or git is missing.
    """
    check_url(url)
    scratch = tree.parent / f"{tree.name}.repository"
    try:
        git = _Git(scratch, tree, timeout_s)
        commit = _fetch(git, url, rev)
        try:
            found = git.text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}:{subfolder}")
            git.text("cat-file", "tree", found)  # fails on a file, and on a link
        except _GitFailedError:
            raise RepositoryError(f"{url} has no folder {subfolder!r} at {rev or commit}. Correct the subfolder.") from None
        submodules = _measure(git, url, found)
        git.text(*_GUARDED, "read-tree", found)
        git.text(*_GUARDED, "checkout-index", "--all", "--force", "--quiet")
        _set_modes(tree)
    except _GitFailedError as error:
        raise RepositoryError(f"git failed on {url} ({error.last}). It needs git 2.29.") from error
    finally:
        remove_tree(scratch)
    return Checkout(commit, submodules)


def commit_tree(tree: Path, identity: Mapping[str, str]) -> None:
    """Make ``tree`` a repository with one commit, the same whatever machine, user or git configuration makes it."""
    names = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in identity.items()}
    git = _Git(tree / ".git", tree, TIMEOUT_S, names)
    try:
        for key, value in _SNAPSHOT_CONFIG.items():
            git.text("config", key, value)
        git.text("add", "--all", "--force", ".")
        git.text("commit", "--quiet", "--allow-empty", "--no-verify", "--no-gpg-sign", "--message=Snapshot")
        git.text("gc", "--quiet", "--prune=now")
    except _GitFailedError as error:
        raise RepositoryError(f"git could not make the snapshot ({error.last}). It needs git 2.29.") from error
    for left in ("COMMIT_EDITMSG", "gc.log"):
        (tree / ".git" / left).unlink(missing_ok=True)


_SNAPSHOT_CONFIG = {
    "core.logAllRefUpdates": "false",
    "core.autocrlf": "false",
    "core.fileMode": "true",
    "core.trustctime": "false",  # an overlay gives other inodes and times of change than those in the index;
    "core.checkStat": "minimal",  # without this the first `git status` would read every file of a large tree
    "gc.auto": "0",
    "pack.threads": "1",
}


class _GitFailedError(Exception):
    """git ended with a failure; ``text`` is all it said."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        said = text.strip().removeprefix("stderr: '").removesuffix("'")  # GitPython's way to put it
        self.last = " ".join(said.split())[-300:]


class _Git:
    """git on a new repository at ``folder`` with its files in ``tree``, deaf to every configuration but ours."""

    def __init__(self, folder: Path, tree: Path, timeout_s: float, environment: Mapping[str, str] | None = None) -> None:
        try:
            from git import Git, GitCommandError, GitCommandNotFound  # looks for the program when it is imported
        except ImportError as error:
            raise RepositoryError(_NO_GIT) from error
        self._failed, self._not_found, self._timeout_s = GitCommandError, GitCommandNotFound, timeout_s
        self._git = Git(tree)
        self._own = {**_environment(folder, tree), **(environment or {})}
        try:
            self.text("init", "--quiet", "--template=", "--initial-branch=main", "--object-format=sha1")
        except _GitFailedError as error:
            raise RepositoryError(f"git could not make a repository ({error.last}). It needs git 2.29.") from error
        (folder / "info").mkdir(exist_ok=True)
        (folder / "info" / "attributes").write_text(_ATTRIBUTES)

    def text(self, *arguments: str, users: Mapping[str, str] | None = None) -> str:
        """Run git and return what it printed; ``users`` replaces our configuration by the user's, with these overrides."""
        return self.data(*arguments, users=users).decode(errors="replace").strip()

    def data(self, *arguments: str, users: Mapping[str, str] | None = None) -> bytes:
        environment = self._own if users is None else {**_without_config(self._own), **users}
        try:
            with self._git.custom_environment(**environment):
                output = self._git.execute(
                    ["git", *arguments], stdout_as_string=False, strip_newline_in_stdout=False, kill_after_timeout=self._timeout_s
                )
        except self._not_found as error:
            raise RepositoryError(_NO_GIT) from error
        except self._failed as error:
            raise _GitFailedError(str(error.stderr)) from error
        assert isinstance(output, bytes)
        return output


def _fetch(git: _Git, url: str, rev: str) -> str:
    """Fetch ``rev`` alone where the server allows it, else everything, and return its commit."""
    if rev and not REV.fullmatch(rev):
        raise UnknownRevisionError(f"{rev[:200]!r} is no revision. Name a branch, a tag or a commit.")
    settings = _fetch_environment(url)
    fetch = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-commit-graph", "--no-auto-gc")
    like_commit = re.fullmatch(r"[0-9a-f]{4,40}", rev) is not None
    try:
        git.text(*fetch, "--depth=1", "--", url, rev or "HEAD", users=settings)
        commit = git.text("rev-parse", "--verify", "FETCH_HEAD^{commit}")
    except _GitFailedError as error:
        if not (like_commit and _says(error, *_UNKNOWN)):
            raise _explained(url, rev, error) from error
        commit = _fetch_all(git, fetch, url, rev, settings)
    if COMMIT.fullmatch(rev) and commit != rev:
        raise RepositoryError(f"{url} answered {commit} for {rev}. It is not used: name the commit that is meant.")
    return commit


def _fetch_all(git: _Git, fetch: Sequence[str], url: str, rev: str, settings: Mapping[str, str]) -> str:
    """Fetch every branch and tag, for a commit that the server does not hand out alone or that was abbreviated."""
    try:
        git.text(*fetch, "--", url, "+refs/heads/*:refs/all/heads/*", "+refs/tags/*:refs/all/tags/*", users=settings)
    except _GitFailedError as error:
        raise _explained(url, rev, error) from error
    try:
        return git.text("rev-parse", "--verify", "--quiet", "--end-of-options", f"{rev}^{{commit}}")
    except _GitFailedError:
        raise _unknown(url, rev) from None


_UNKNOWN = ("couldn't find remote ref", "not our ref", "unadvertised object", "no such remote ref", "expected object name")
_CLOSED = (
    *("could not read username", "could not read password", "authentication failed", "terminal prompts disabled"),
    *("permission denied", "publickey", "host key verification", "error: 401", "error: 403"),
)
_UNREACHED = (
    *("could not resolve", "name resolution", "unable to connect", "failed to connect", "couldn't connect"),
    *("connection refused", "connection reset", "timed out", "network is unreachable", "no route to host", "unable to access"),
)
_ABSENT = ("not appear to be a git repository", "repository not found", "error: 404", "does not exist", "' not found")


def _explained(url: str, rev: str, error: _GitFailedError) -> RepositoryError:
    """Return what git's failure means to the user; what it said goes along, since we cannot know every server's words."""
    if _says(error, "timeout: the command"):
        return RepositoryError(f"{url} was not fetched within the time limit. Try again, or name a smaller repository.")
    if _says(error, *_UNKNOWN):
        return _unknown(url, rev)
    said = f"git says: {error.last}"
    if _says(error, "dubious ownership"):
        return RepositoryError(f"{url} belongs to another user. Tell git that it is safe (safe.directory). {said}")
    if _says(error, "not allowed"):
        return RepositoryError(f"{url} leads to another kind of URL, which is not followed. Name that one itself. {said}")
    if _says(error, *_CLOSED):
        return RepositoryError(
            f"{url} asks who you are, or does not let you in. Set up git's credential helper or an ssh key, try "
            f"`git ls-remote` on it, then run the command again. {said}"
        )
    if _says(error, *_ABSENT):
        return RepositoryError(f"There is no git repository at {url}, or it is closed to you. Check the address. {said}")
    if _says(error, *_UNREACHED):
        return RepositoryError(f"{url} cannot be reached. Check the network and the address, then run it again. {said}")
    return RepositoryError(f"{url} could not be fetched. {said}")


def _unknown(url: str, rev: str) -> UnknownRevisionError:
    if not rev:
        return UnknownRevisionError(f"{url} has no commit yet. Name another repository, or a branch that has one.")
    return UnknownRevisionError(f"{url} has no branch, tag or commit {rev!r}. `git ls-remote` on it lists what there is.")


def _says(error: _GitFailedError, *texts: str) -> bool:
    return any(text in error.text.lower() for text in texts)


def _measure(git: _Git, url: str, tree: str) -> tuple[str, ...]:
    """Refuse a tree that is too large before a byte of it is written; return its submodules."""
    entries = [entry for entry in git.data("ls-tree", "-r", "-l", "-z", tree).split(b"\0") if entry]
    facts = [(entry.partition(b"\t")[0].split(), entry.partition(b"\t")[2]) for entry in entries]
    size = sum(int(fields[3]) for fields, _ in facts if fields[3] != b"-")
    if len(facts) > MAX_ENTRIES or size > MAX_TREE_BYTES:
        raise RepositoryError(
            f"{url} holds {len(facts):,} files of {size >> 20} MiB; at most {MAX_ENTRIES:,} and {MAX_TREE_BYTES >> 20} MiB "
            "are taken. Name a subfolder."
        )
    return tuple(os.fsdecode(path) for fields, path in facts if fields[0] == b"160000")


def _set_modes(tree: Path) -> None:
    """Give every file the mode that its commit means, whatever our umask."""
    for parent, _, files in os.walk(tree):
        Path(parent).chmod(0o755)
        for path in (Path(parent, name) for name in files):
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                path.chmod(0o755 if mode & 0o100 else 0o644)


def _environment(folder: Path, tree: Path) -> dict[str, str]:
    """Say where everything is, so that neither the user's configuration nor an inherited GIT_* variable matters."""
    return {
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
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "LC_ALL": "C",
        "LANGUAGE": "C",
    }


def _without_config(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(("GIT_CONFIG_", "GIT_ATTR_"))}


def _fetch_environment(url: str) -> dict[str, str]:
    """Let git fetch as the user would, but never through a program that a URL or a repository names."""
    own = url.startswith(("/", "file://"))
    fixed = {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "protocol.ext.allow": "never",
        "protocol.file.allow": "always" if own else "never",
        "fetch.recurseSubmodules": "false",
        "submodule.recurse": "false",
        "fetch.fsckObjects": "false",
    }
    count = inherited_environment().get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isdecimal() else 0  # ours come after the user's, and so win
    variables = {"GIT_ALLOW_PROTOCOL": "file" if own else "https:http:ssh", "GIT_CONFIG_COUNT": str(first + len(fixed))}
    for number, (key, value) in enumerate(fixed.items(), first):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables
