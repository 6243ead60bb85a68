"""What a task is, once its folder was read and checked: frozen facts, no behaviour."""

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.container import HarborFacts
from tasks.facts import Facts, ResourceLimits

VERSIONS = r"^\s*(~=|==|!=|<=|>=|<|>)\s*\d+(\.\d+)*(\.\*)?(\s*,\s*(~=|==|!=|<=|>=|<|>)\s*\d+(\.\d+)*(\.\*)?)*\s*$"
"""A version specifier such as `>=3.11,<3.14`."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PypiSource(Facts):
    """A released source distribution, named exactly; its archive must have this digest."""

    kind: Literal["pypi"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.!+_-]*$")
    sha256: Sha256


class DirectorySource(Facts):
    """A folder inside the task folder (relative, without `..`)."""

    kind: Literal["directory"]
    path: str


class GitSource(Facts):
    """One commit of a repository, or a folder in it. Only ``commit`` says what it is; ``url`` is where to fetch it."""

    kind: Literal["git"]
    url: str = Field(pattern=r"^((https?|ssh|file)://|/|[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:)[^\x00-\x20\x7f]+$")
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    subfolder: str = Field(default="", pattern=r"^([^/\\\x00-\x1f\x7f]+(/[^/\\\x00-\x1f\x7f]+)*)?$")

    @field_validator("subfolder")
    @classmethod
    def _plain(cls, subfolder: str) -> str:
        if any(part in (".", "..") or part.lower() == ".git" for part in subfolder.split("/")):
            raise ValueError("must be a plain path below the repository's top")
        return subfolder


Source = Annotated[PypiSource | DirectorySource | GitSource, Field(discriminator="kind")]


class EnvironmentFacts(Facts):
    """What is installed beside the snapshot. Paths are relative to the task folder."""

    python: str = Field(default=">=3.11", pattern=VERSIONS)
    requirements: str = ""
    setup: str = ""
    pythonpath: tuple[str, ...] = ()


class VerifierFacts(Facts):
    """How a submission is judged; `tasks.pytest_task` has checked that the files exist and are not empty."""

    kind: Literal["pytest"]
    test_paths: tuple[PurePosixPath, ...] = Field(min_length=1)
    pythonpath: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(default=300, gt=0, le=7200)
    build: str = ""
    fail_to_pass: str = "tests/fail_to_pass.txt"
    pass_to_pass: str = "tests/pass_to_pass.txt"
    protected: tuple[PurePosixPath, ...] = ()


class SeaTrialFacts(Facts):
    """The table `[metadata.seatrial]` of task.toml."""

    snapshot: Source
    environment: EnvironmentFacts = EnvironmentFacts()
    solution: Source
    verifier: VerifierFacts


class Task(BaseModel):
    """One task: what the agent is told, and the limits of the workspace. How it is judged its subclasses say.

    ``digest`` is the SHA-256 (hex) of every file of the folder, names and contents.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    folder: Path
    digest: Sha256
    title: str
    language: str
    difficulty: str
    keywords: tuple[str, ...]
    instruction: str
    agent_timeout_s: float
    limits: ResourceLimits


class PytestTask(Task):
    """A task of ours: a snapshot, and hidden pytest suites. Runs on every backend.

    ``fail_to_pass`` and ``pass_to_pass`` are function-level pytest ids, sorted, disjoint, the first not empty.
    """

    facts: SeaTrialFacts
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]


class HarborTask(Task):
    """A plain Harbor task: an image, and a ``test.sh`` that writes the reward. Runs on docker only.

    ``instruction`` and ``agent_timeout_s`` are those of the first step.
    """

    harbor: HarborFacts
