"""What every sandbox offers, and the values that go in and come out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tasks.errors import SeaTrialError

STDOUT, STDERR, CHANNEL = 1, 2, 3
"""Where a piece of output came from. `CHANNEL` is the private pipe that only a verifier's runner is given (its fd 3)."""

WORKDIR = "/workspace"

OnOutput = Callable[[int, bytes], None]


class SandboxError(SeaTrialError):
    """A fault of the sandbox, never of what ran in it."""


class SandboxRefusedError(SandboxError):
    """This machine cannot isolate; the text says why and what to do."""


class SandboxDiedError(SandboxError):
    """The sandbox ended under a command; its files are kept and it can be opened again."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The sandbox was stopped: {reason}. Its files are kept: call again to go on in a new one.")
        self.reason = reason


class PathError(SeaTrialError):
    """A path that names nothing usable inside the sandbox; the text says which and why."""


@dataclass(frozen=True)
class Limits:
    """What one sandbox may use; ``disk_bytes`` and ``files`` bound what it adds to its workspace."""

    cpus: float = 2
    memory_bytes: int = 4 << 30
    processes: int = 1024
    disk_bytes: int = 4 << 30
    files: int = 200_000
    tmp_bytes: int = 512 << 20


@dataclass(frozen=True)
class Machine:
    """What a local sandbox is made of.

    ``lowers`` are read-only layers of the workspace, bottom first; ``upper`` takes the change and ``work`` is the
    overlay's own scratch folder beside it. ``read_only`` and ``writable`` map paths inside to paths of the host;
    ``covered`` are mounted read-only over parts of the workspace. ``masked`` are paths inside that are hidden.
    ``python`` is the path inside of the interpreter that runs the inner process.
    """

    lowers: Sequence[Path]
    upper: Path
    work: Path
    read_only: Mapping[str, Path]
    python: str
    writable: Mapping[str, Path] = field(default_factory=dict)
    covered: Mapping[str, Path] = field(default_factory=dict)
    masked: Sequence[str] = ()
    limits: Limits = Limits()


@dataclass(frozen=True)
class Command:
    """One program to start. ``channel`` opens the private pipe (see `CHANNEL`); ``stdin`` is given whole (at most 48 KiB)."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str = WORKDIR
    timeout_s: float = 600
    stdin: bytes = b""
    channel: bool = False


@dataclass(frozen=True)
class CommandResult:
    """How a command ended. A non-zero exit code is a result, not an error.

    ``exit_code`` is negative for a signal; ``timed_out`` says that we ended it, ``out_of_memory`` that the
    kernel killed something for memory meanwhile.
    """

    exit_code: int
    duration_s: float
    timed_out: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class FileData:
    """A piece of a regular file and the size of the whole."""

    data: bytes
    size: int


@dataclass(frozen=True)
class Entry:
    """One name in a listing: ``kind`` is ``file``, ``dir``, ``link`` or ``other``; ``path`` is relative to the listed folder."""

    path: str
    kind: str
    size: int


@dataclass(frozen=True)
class Listing:
    """The first entries of a folder, and how many were seen in all the folders that were looked into."""

    entries: Sequence[Entry]
    seen: int


class Sandbox(Protocol):
    """A disposable machine that holds one workspace. Paths are strings inside it, relative ones from `WORKDIR`."""

    @property
    def enforced(self) -> Mapping[str, str]:
        """Which limits and walls hold here, and how."""
        ...

    @property
    def dead(self) -> str:
        """Why the sandbox is over, or nothing while it lives."""
        ...

    async def run(self, command: Command, on_output: OnOutput) -> CommandResult:
        """Run to the end of the process itself (not of its children). Cancelling it kills what it started.

        Raises:
            SandboxDiedError: the sandbox ended first.
            PathError: ``cwd`` or the program does not exist.
        """
        ...

    async def read(self, path: str, start: int, size: int) -> FileData:
        """Read up to ``size`` bytes of a regular file inside the workspace from offset ``start``."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Create or replace a regular file inside the workspace, atomically, with its parent folders."""
        ...

    async def list(self, path: str, depth: int, limit: int) -> Listing:
        """List a folder of the workspace, ``depth`` levels, at most ``limit`` entries, by name (as bytes) within each folder."""
        ...

    async def sweep(self) -> None:
        """Kill every process that no running command owns: what ended commands left behind."""
        ...
