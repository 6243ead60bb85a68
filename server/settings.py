"""Every option with its default and unit. The environment of the process is read here and nowhere else."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from tasks.errors import SeaTrialError

Containment = Literal["open", "sealed"]
Reveal = Literal["counts", "none"]
Backend = Literal["local", "docker", "auto"]


class SettingsError(SeaTrialError):
    """A setting has a value that means nothing; the text names it and what it can be."""


@dataclass(frozen=True)
class Assignment:
    """What whoever started this server fixed for its one trial; all empty for a server that an agent joined freely."""

    task: str = ""
    job: str = ""
    group: str = ""
    repetition: int = 0
    agent: str = ""
    model: str = ""


@dataclass(frozen=True)
class Settings:
    """The options of one process. Sizes in bytes, times in seconds."""

    state: Path
    tasks: tuple[Path, ...] = ()
    reveal: Reveal = "counts"
    containment: Containment = "open"
    assignment: Assignment = Assignment()
    sandbox_uid: int = 61_001
    """The uid and gid that sandboxes run as when we are root; otherwise they run as the user."""
    bwrap: Path | None = None
    """A bubblewrap to use in place of the system's and the packaged one."""
    pythons: tuple[Path, ...] = ()
    """Interpreters to offer to tasks before those found on PATH."""
    search_path: tuple[Path, ...] = ()
    """The folders of PATH, for finding interpreters."""
    temp: Path = Path("/tmp")  # noqa: S108 - only the default; `from_environment` asks the platform
    sandbox: Backend = "auto"
    """Where tasks of ours run; ``auto``: locally on Linux. Plain Harbor tasks run on docker only."""
    docker_base: str = ""
    """The image with Python >= 3.11, git and bash that our tasks on docker, and allow-lists of hosts, are made from."""
    docker_network: str = "bridge"
    """The Docker network that a task's ``public`` means."""
    on_linux: bool = sys.platform == "linux"
    variables: Mapping[str, str] = field(default_factory=dict, compare=False)
    """This process's environment: what ``${VAR}`` in a Harbor task's ``env`` is resolved from."""
    host_reserve_bytes: int = 1 << 30
    """Free bytes of the state folder's disk below which no sandbox may go on writing."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read ``SEATRIAL_STATE``, ``_TASKS``, ``_BWRAP``, ``_PYTHONS``, ``_REVEAL``, ``_CONTAINMENT``, ``_SANDBOX``,
        ``_DOCKER_BASE``, ``_DOCKER_NETWORK``.

        Raises:
            SettingsError: one of them has a value that means nothing.
        """
        env = os.environ if environment is None else environment
        return cls(
            state=Path(env.get("SEATRIAL_STATE") or default_state(env)).expanduser().absolute(),
            tasks=_paths(env.get("SEATRIAL_TASKS", "")),
            reveal="none" if _choice(env, "SEATRIAL_REVEAL", "counts", "none") == "none" else "counts",
            containment="sealed" if _choice(env, "SEATRIAL_CONTAINMENT", "open", "sealed") == "sealed" else "open",
            bwrap=Path(env["SEATRIAL_BWRAP"]).expanduser().absolute() if env.get("SEATRIAL_BWRAP") else None,
            pythons=_paths(env.get("SEATRIAL_PYTHONS", "")),
            search_path=_paths(env.get("PATH", "")),
            sandbox=as_backend(env.get("SEATRIAL_SANDBOX") or "auto"),
            docker_base=env.get("SEATRIAL_DOCKER_BASE", ""),
            docker_network=env.get("SEATRIAL_DOCKER_NETWORK") or "bridge",
            variables=dict(env),
            temp=Path(tempfile.gettempdir()),
        )

    def with_tasks(self, folders: Sequence[str] | None) -> "Settings":
        """Return settings with these folders of tasks in place of those of the environment; without any, the same."""
        found = tuple(path for folder in folders or () for path in _paths(folder))
        return replace(self, tasks=found) if found else self


def with_sandbox(settings: Settings, value: str) -> Settings:
    """Return ``settings`` with another backend, where an option names one."""
    return replace(settings, sandbox=as_backend(value)) if value else settings


def as_backend(value: str) -> Backend:
    """Return ``value`` as a backend.

    Raises:
        SettingsError: it is none.
    """
    for known in ("local", "docker", "auto"):
        if value == known:
            return known
    raise SettingsError(f"SEATRIAL_SANDBOX is {value[:50]!r}; it can be 'local', 'docker' or 'auto'.")


def inherited_environment() -> dict[str, str]:
    """Return this process's environment, for a server that we start and for the entry of a client's settings."""
    return dict(os.environ)


def default_state(env: Mapping[str, str]) -> Path:
    """Return ``/var/lib/seatrial`` for root (root's home is closed to the sandboxes' uid), else the user's data folder."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/seatrial")
    base = env.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "seatrial"


def _choice(env: Mapping[str, str], name: str, default: str, other: str) -> str:
    """Return which of two values a variable has; a slip of the pen must not quietly mean the default."""
    value = env.get(name) or default
    if value not in (default, other):
        raise SettingsError(f"{name} is {value[:50]!r}; it can be {default!r} or {other!r}.")
    return value


def _paths(value: str) -> tuple[Path, ...]:
    return tuple(Path(part).expanduser().absolute() for part in value.split(os.pathsep) if part)
