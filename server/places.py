"""The protocols between trials and backends: an environment, and the place of one workspace made from it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from server.bench import Bench
from server.blobs import Blobs
from server.patches import Found, Patch
from server.sandboxes.base import Limits, Sandbox

NO_NETWORK = "There is no network, so nothing can be installed."

Report = Callable[[str], None]
"""Hears each stage of a build, as text for a person."""


@dataclass(frozen=True)
class Habits:
    """How commands are started in a workspace: where, with which shell, environment and grep; what its network is."""

    workdir: str
    shell: str
    env: Mapping[str, str]
    grep: str
    network: str
    """A sentence for the agent."""


class Place(Protocol):
    """The files of one workspace. They outlive its sandboxes and the server; `remove` ends them."""

    @property
    def habits(self) -> Habits:
        """As they are known now: a container tells its shell once it was opened."""
        ...

    def open(self) -> AbstractAsyncContextManager[Sandbox]:
        """Open a sandbox over the files; every process in it ends with the block.

        Raises:
            SandboxError: it cannot be opened.
        """
        ...

    async def patch(self, blobs: Blobs) -> Patch:
        """Return the whole change, kept; no sandbox is open.

        Raises:
            PatchError: it cannot be a patch.
        """
        ...

    def differences(self) -> Iterator[Found]:
        """Yield the change as it is now. Called in a worker thread, with or without a sandbox open."""
        ...

    async def begin_step(self, number: int) -> None:
        """Put into the files what a later step of the task brings; no sandbox is open."""
        ...

    async def remove(self) -> None:
        """Remove the files; fine if there are none."""
        ...


class Environment(Protocol):
    """A built environment: what workspaces and verifications of a task are made from."""

    @property
    def digest(self) -> str: ...

    @property
    def present(self) -> bool:
        """Whether it is still there, as far as can be seen without waiting."""
        ...

    def place(self, name: str, limits: Limits, bench: Bench) -> Place:
        """Return the place of the workspace ``name``: a new one, or the one that an earlier server left."""
        ...
