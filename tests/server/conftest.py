"""Folders that the sandboxes' user can reach, also where the tests run as root."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.state import remove_tree


@contextmanager
def reachable_folder() -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="seatrial-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        remove_tree(folder)


@pytest.fixture
def state_folder() -> Generator[Path]:
    """An empty folder for a state folder, removed afterwards."""
    with reachable_folder() as folder:
        yield folder


@pytest.fixture(scope="session")
def shared_state_folder() -> Generator[Path]:
    """A folder for what is slow to stage and harmless to share between tests."""
    with reachable_folder() as folder:
        yield folder
