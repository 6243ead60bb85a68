"""Where the pytest verifier runs things: fresh sandboxes over an environment, a patch and hidden tests. One module a backend."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from server.patches import Patch
from server.sandboxes.base import Command, CommandResult, OnOutput

Died = Callable[[str], None]
"""Is told why a sandbox ended under a command."""


class Arena(Protocol):
    """The fresh sandboxes of one verification. Everything that it makes is gone when it is closed by whoever opened it."""

    @property
    def enforced(self) -> Mapping[str, str]:
        """What held in the last sandbox."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """What the verdict depends on beside task, patch and server."""
        ...

    async def prepare(self, patch: Patch) -> None:
        """Take in the submission and the hidden tests. Nothing of the submission runs."""
        ...

    async def build(self, command: Command, take: OnOutput, *, patched: bool) -> CommandResult | None:
        """Run the task's build step in a sandbox of its own; if it succeeds over the patch, later runs see what it made.

        None if the sandbox died under it.
        """
        ...

    async def run(
        self, command: Command, kit: Mapping[str, bytes], take: OnOutput, died: Died, *, patched: bool
    ) -> CommandResult | None:
        """Run a command over the hidden tests in a sandbox of its own, with ``kit`` (by file name) at `INSIDE`, read-only.

        None if the sandbox died under it.

        Raises:
            VerifierError: there is no sandbox.
        """
        ...

    @property
    def python(self) -> str:
        """The interpreter of the environment, as a path inside."""
        ...

    @property
    def env(self) -> Mapping[str, str]:
        """The clean environment of every command."""
        ...

    @property
    def shell(self) -> str: ...


INSIDE = "/opt/verify"


def runner_source() -> bytes:
    """Return the program that runs the hidden tests inside."""
    return Path(__file__).with_name("runner.py").read_bytes()
