"""Real git repositories, made for one test."""

import os
import subprocess
from pathlib import Path


def new_repository(folder: Path) -> Path:
    """Make an empty repository with the branch main."""
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    return folder


def commit(folder: Path, *, tag: str = "") -> str:
    """Commit everything in the folder if anything changed, and return the commit's id."""
    git(folder, "add", "--all", "--force")
    if git(folder, "status", "--porcelain"):
        git(folder, "commit", "--quiet", "--message=More")
    if tag:
        git(folder, "tag", tag)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    """Run git without the user's configuration and return what it prints."""
    names = {f"GIT_{role}_{key}": "tests@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, **names}
    ran = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.strip()
