"""The tables of Harbor's own task.toml, schema 1.0 to 1.4: every key is known here, and is read, free to ignore, or refused."""

import re
from collections.abc import Callable
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from tasks.container import NetworkMode
from tasks.facts import Facts, Seconds
from tasks.hosts import host

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMG])B?", re.IGNORECASE)
_MIB = {"K": 1 / 1024, "M": 1, "G": 1024}
_STEP_NAME = re.compile(r"[^<>:\"/\\|?*\x00-\x1f\x7f]{0,79}[^<>:\"/\\|?*\x00-\x1f\x7f. ]")


def refused(what: str) -> PydanticCustomError:
    """Return an error whose text `tasks.explain` shows as it is, behind the file and the field."""
    return PydanticCustomError("refused", "{what}", {"what": what})


def _unsupported(why: str) -> BeforeValidator:
    """Let a field be there only while it says nothing: unset, 0, or empty."""

    def check(value: object) -> object:
        if value:
            raise refused(f"is not supported: {why}")
        return value

    return BeforeValidator(check)


def _text_of_number(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _mib(value: object) -> int:
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        raise ValueError("must be a size such as '4G' or '512M'")
    return int(float(match["number"]) * _MIB[match["unit"].upper()])


def _source_table(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


def _reward_table(value: object) -> object:
    return {"reward": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _only_main(value: str) -> str:
    if value != "main":
        raise refused(f"names the service {value[:80]!r}; only 'main' can be used here. Remove it, or take it from main.")
    return value


def _linux(value: str) -> str:
    if value != "linux":
        raise refused(f"is {value[:80]!r}; only 'linux' can be run here. Use a task made for linux.")
    return value


def no_climbing(what: str) -> Callable[[str], str]:
    """Return a check that a path has no ``..`` and no control characters."""

    def check(path: str) -> str:
        if not path.strip() or ".." in path.split("/") or re.search(r"[\x00-\x1f\x7f\\]", path):
            raise ValueError(f"must be {what}, without '..', control characters or backslashes")
        return path

    return check


User = Annotated[str, BeforeValidator(_text_of_number), Field(max_length=80, pattern=r"^[A-Za-z0-9_.:-]*$")]
Env = dict[Annotated[str, Field(pattern=r"^[^=\x00]+$")], Annotated[str, Field(pattern=r"^[^\x00]*$")]]
Size = Annotated[int, BeforeValidator(_mib)]
Main = Annotated[Literal["main"], BeforeValidator(lambda value: _only_main(value) if isinstance(value, str) else value)]
Linux = Annotated[Literal["linux"], BeforeValidator(lambda value: _linux(value.lower()) if isinstance(value, str) else value)]


class _Table(Facts):
    """Base of Harbor's tables."""


class _NetworkTable(_Table):
    network_mode: Annotated[NetworkMode, BeforeValidator(_lower)] | None = None
    allowed_hosts: tuple[str, ...] | None = None

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if hosts is None else tuple(host(entry) for entry in hosts)

    @model_validator(mode="after")
    def _hosts_fit_the_mode(self) -> Self:
        if self.allowed_hosts and self.network_mode != "allowlist":
            raise refused('has allowed_hosts, which needs network_mode = "allowlist". Set it, or remove allowed_hosts.')
        if self.network_mode == "allowlist" and not self.allowed_hosts:
            raise refused('has network_mode = "allowlist" without allowed_hosts. List some, or set it to "no-network".')
        return self


class PackageTable(_Table):
    """Describes, changes nothing."""

    name: str = ""
    version: object = None
    description: str = ""
    authors: tuple[object, ...] = ()
    keywords: tuple[str, ...] = ()


class AgentTable(_NetworkTable):
    timeout_sec: Seconds | None = None
    user: User | None = None


class HealthcheckTable(_Table):
    command: str = Field(min_length=1)
    interval_sec: float = Field(default=5, ge=0, le=86_400)
    timeout_sec: Seconds = 30
    start_period_sec: float = Field(default=0, ge=0, le=86_400)
    start_interval_sec: float = Field(default=5, ge=0, le=86_400)
    retries: int = Field(default=3, ge=1, le=10_000)


class EnvironmentTable(_NetworkTable):
    build_timeout_sec: Seconds = 600
    docker_image: str | None = Field(default=None, pattern=r"^[^\s\x00-\x1f\x7f-][^\s\x00-\x1f\x7f]*$", max_length=500)
    os: Linux = "linux"
    cpus: float | None = None
    memory_mb: int | None = None
    memory: Size | None = None
    storage_mb: int | None = None
    storage: Size | None = None
    gpus: Annotated[object, _unsupported("there are no GPUs here. Remove it if the task can do without.")] = None
    gpu_types: Annotated[object, _unsupported("there are no GPUs here. Remove it if the task can do without.")] = None
    tpu: Annotated[object, _unsupported("there are no TPUs here. Remove it if the task can do without.")] = None
    mcp_servers: Annotated[object, _unsupported("the agent brings its own tools. Remove it if the task can do without.")] = None
    skills_dir: Annotated[object, _unsupported("the agent brings its own skills. Remove it if the task can do without.")] = None
    env: Env = Field(default_factory=dict)
    healthcheck: HealthcheckTable | None = None
    workdir: str | None = Field(default=None, pattern=r"^/[^\x00-\x1f\x7f]*$")
    allow_internet: bool | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for name, old, new in (("memory", self.memory, self.memory_mb), ("storage", self.storage, self.storage_mb)):
            if old is not None and new is not None and old != new:
                raise refused(f"says {name} = {old} MiB and {name}_mb = {new}. Remove the old key {name!r}.")
        return self


class CollectTable(_Table):
    command: str = Field(min_length=1)
    service: Main = "main"
    timeout_sec: Seconds = 60
    user: User | None = None


class VerifierTable(_NetworkTable):
    timeout_sec: Seconds = 600
    env: Env = Field(default_factory=dict)
    user: User | None = None
    environment_mode: Annotated[Literal["shared", "separate"], BeforeValidator(_lower)] | None = None
    environment: EnvironmentTable | None = None
    collect: tuple[CollectTable, ...] = ()

    @model_validator(mode="after")
    def _one_mode(self) -> Self:
        if self.environment_mode == "shared" and self.environment is not None:
            raise refused('has environment_mode = "shared" and a table environment. Remove one of them.')
        return self

    @property
    def mode(self) -> Literal["shared", "separate"] | None:
        """What this table says of the mode: a table ``environment`` means ``separate``; None if it says nothing."""
        return self.environment_mode or ("separate" if self.environment is not None else None)


class SolutionTable(_Table):
    env: Env = Field(default_factory=dict)


class ArtifactTable(_Table):
    source: str
    destination: str = ""
    exclude: tuple[str, ...] = ()
    service: Main = "main"

    @field_validator("source")
    @classmethod
    def _source(cls, source: str) -> str:
        return no_climbing("a path in the container")(source)

    @field_validator("destination")
    @classmethod
    def _destination(cls, destination: str) -> str:
        if destination.startswith("/") or destination.rstrip("/") in ("manifest.json", "."):
            raise ValueError("must be a relative path that names a file or folder other than manifest.json")
        return no_climbing("a relative path")(destination) if destination else ""


ArtifactEntry = Annotated[ArtifactTable, BeforeValidator(_source_table)]


class StepTable(_Table):
    name: str
    agent: AgentTable = AgentTable()
    verifier: VerifierTable = VerifierTable()
    min_reward: Annotated[dict[str, float], BeforeValidator(_reward_table)] = Field(default_factory=dict)
    healthcheck: HealthcheckTable | None = None
    artifacts: tuple[ArtifactEntry, ...] = ()

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not name.strip() or not _STEP_NAME.fullmatch(name):
            raise ValueError("must be the plain name of a folder in steps/, at most 80 characters")
        return name


class HarborFile(_Table):
    """A whole task.toml; what of ``metadata`` is ours is read apart."""

    schema_version: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)] = ""
    version: Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)] = ""
    source: object = None
    multi_step_reward_strategy: Annotated[Literal["mean", "final"], BeforeValidator(_lower)] = "mean"
    artifacts: tuple[ArtifactEntry, ...] = ()
    steps: tuple[StepTable, ...] = Field(default=(), max_length=100)
    task: PackageTable = PackageTable()
    metadata: dict[str, object] = Field(default_factory=dict)
    agent: AgentTable = AgentTable()
    verifier: VerifierTable = VerifierTable()
    environment: EnvironmentTable = EnvironmentTable()
    solution: SolutionTable = SolutionTable()

    @field_validator("schema_version", "version")
    @classmethod
    def _understood(cls, version: str) -> str:
        if not re.fullmatch(r"1(\.\d+){0,2}", version):
            raise refused(f"is {version[:40]!r}; only 1.x is understood. Convert the task to 1.4.")
        return version

    @field_validator("steps")
    @classmethod
    def _unique(cls, steps: tuple[StepTable, ...]) -> tuple[StepTable, ...]:
        names = [step.name.casefold() for step in steps]
        if twice := [name for name in names if names.count(name) > 1]:
            raise refused(f"has the name {twice[0]!r} twice. Rename one step and its folder.")
        return steps


_TABLES = (HarborFile, PackageTable, AgentTable, HealthcheckTable, EnvironmentTable, CollectTable, VerifierTable, SolutionTable)
KEYS = sorted({key for table in (*_TABLES, ArtifactTable, StepTable) for key in table.model_fields})
"""Every key of every table, to guess what somebody meant."""
