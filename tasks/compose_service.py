"""The service ``main`` of a docker-compose.yaml, its variables already replaced: each key in all the ways to write it."""

import re
import shlex
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tasks.container import Healthcheck, Service
from tasks.facts import Facts
from tasks.harbor_file import refused

LOGS = ("/logs/verifier", "/logs/agent", "/logs/artifacts")

_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[kmgt]?)(ib|b)?", re.IGNORECASE)
_BYTES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>us|ms|s|m|h)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _scalar(value: object) -> object:
    """Return a number or a truth value as YAML's text of it; docker compose does, too."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _words(value: object) -> object:
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise ValueError(f"must be a command ({error})") from None
    return [_scalar(item) for item in value] if isinstance(value, list) else value


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else [] if value is None else value


def _size(value: object) -> object:
    match = _SIZE.fullmatch(str(value).strip())
    if isinstance(value, bool) or not match:
        raise ValueError("must be a size such as '4g' or '512m'")
    return int(float(match["number"]) * _BYTES[match["unit"].lower()])


def _seconds(value: object) -> float:
    text = str(value).strip()
    parts = list(_DURATION.finditer(text))
    if not parts or "".join(part[0] for part in parts) != text:
        raise ValueError("must be a time such as '5s' or '1m30s'")
    return sum(float(part["number"]) * _SECONDS[part["unit"]] for part in parts)


def _map(separators: str) -> Callable[[object], object]:
    """Return a reader of ``{key: value}`` and of ``["key=value"]``, whichever of ``separators`` comes first."""

    def read(value: object) -> object:
        if isinstance(value, dict):
            pairs = {str(key): _scalar(item) for key, item in value.items()}
        elif isinstance(value, list):
            parts = [re.split(f"[{separators}]", str(item), maxsplit=1) for item in value]
            if any(len(part) != 2 for part in parts):
                raise ValueError("must have a value behind each name")
            pairs = {part[0]: part[1] for part in parts}
        else:
            return {} if value is None else value
        if any(item is None for item in pairs.values()):
            raise ValueError("must have a value behind each name")
        return pairs

    return read


def _build(value: object) -> object:
    return {"context": value} if isinstance(value, str) else value


def _log_folder(value: object) -> str:
    """Return the target of a volume of one of Harbor's log folders: it needs no volume here."""
    if isinstance(value, str):
        source, _, rest = value.partition(":")
        target, _, mode = rest.partition(":")
        plain = mode in ("", "rw")
    elif isinstance(value, dict) and set(value) <= {"type", "source", "target"}:
        source, target, plain = str(value.get("source", "")), str(value.get("target", "")), True
    else:
        source, target, plain = "", "", False
    folder = target.rstrip("/")
    in_logs = any(folder == log or folder.startswith(f"{log}/") for log in (*LOGS, "/logs")) and ".." not in folder.split("/")
    if not (plain and in_logs and source and not source.startswith((".", "~"))):
        raise refused("can only mount Harbor's log folders (below /logs). COPY other files in the Dockerfile instead.")
    return folder


def _harmless(value: object) -> object:
    if str(value).replace(" ", "") not in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
        raise refused("can only hold 'no-new-privileges:true'. Remove the rest.")
    return value


Text = Annotated[str, BeforeValidator(_scalar), Field(pattern=r"^[^\x00-\x1f\x7f]*$")]
Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
Bytes = Annotated[int, BeforeValidator(_size)]
Time = Annotated[float, BeforeValidator(_seconds)]
Tmpfs = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f]*$")]
Capability = Annotated[str, Field(pattern=r"^[A-Za-z_]+$")]
Count = Annotated[int, Field(ge=1)]


class _Build(Facts):
    context: Text = "."
    dockerfile: Text = "Dockerfile"
    args: Annotated[dict[str, str], BeforeValidator(_map("="))] = Field(default_factory=dict)
    target: Text = ""


class _Check(Facts):
    test: tuple[str, ...] | str = ()
    interval: Time = 30
    timeout: Time = 30
    start_period: Time = 0
    start_interval: Time = 5
    retries: Count = 3
    disable: bool = False

    def facts(self) -> Healthcheck | None:
        """Return it as a shell command; None if it says that there is none."""
        kind, *words = ("CMD-SHELL", self.test) if isinstance(self.test, str) else self.test or ("NONE",)
        if self.disable or kind == "NONE" or not any(words):
            return None
        return Healthcheck(
            command=words[0] if kind == "CMD-SHELL" else shlex.join(words),
            interval_s=self.interval,
            timeout_s=self.timeout,
            start_period_s=self.start_period,
            start_interval_s=self.start_interval,
            retries=self.retries,
        )


class _Limits(Facts):
    cpus: float | None = None
    memory: Bytes | None = None
    pids: int | None = None


class _Resources(Facts):
    limits: _Limits = _Limits()


class _Deploy(Facts):
    resources: _Resources = _Resources()


class MainService(Facts):
    """What ``services.main`` may say beside ``environment``; a key that is not here is refused."""

    build: Annotated[_Build | None, BeforeValidator(_build)] = None
    image: Text = ""
    platform: Text = ""
    command: Annotated[Words | None, Field()] = None
    entrypoint: Words | None = None
    user: Text = ""
    working_dir: Annotated[Text, Field(pattern=r"^(/.*)?$")] = ""
    volumes: Annotated[tuple[Annotated[str, BeforeValidator(_log_folder)], ...], BeforeValidator(_listed)] = ()
    deploy: _Deploy | None = None
    cpus: float | None = None
    mem_limit: Bytes | None = None
    pids_limit: int | None = None
    shm_size: Bytes = 0
    tmpfs: Annotated[tuple[Tmpfs, ...], BeforeValidator(_listed)] = ()
    cap_add: Annotated[tuple[Capability, ...], BeforeValidator(_listed)] = ()
    privileged: bool = False
    extra_hosts: Annotated[dict[str, str], BeforeValidator(_map(":="))] = Field(default_factory=dict)
    hostname: Text = ""
    network_mode: Literal["none", "bridge", "default", ""] = ""
    healthcheck: _Check | None = None
    security_opt: Annotated[tuple[Annotated[object, BeforeValidator(_harmless)], ...], BeforeValidator(_listed)] = ()
    init: object = None
    tty: object = None
    stdin_open: object = None
    container_name: object = None
    restart: object = None
    pull_policy: object = None

    def facts(self) -> Service:
        """Return what is more than the image."""
        return Service(
            command=self.command or (),
            entrypoint=self.entrypoint,
            user=self.user,
            privileged=self.privileged,
            cap_add=self.cap_add,
            tmpfs=self.tmpfs,
            folders=self.volumes,
            shm_bytes=self.shm_size,
            extra_hosts=self.extra_hosts,
            hostname=self.hostname,
        )

    def limits(self) -> dict[str, float]:
        """Return the limits that are set, named as in `ResourceLimits`; the old keys count where ``deploy`` is silent."""
        deployed = self.deploy.resources.limits if self.deploy else _Limits()
        cpus = deployed.cpus if deployed.cpus is not None else self.cpus
        memory = deployed.memory if deployed.memory is not None else self.mem_limit
        pids = deployed.pids if deployed.pids is not None else self.pids_limit
        found = {"cpus": cpus, "memory_mb": None if memory is None else memory >> 20, "processes": pids}
        return {name: value for name, value in found.items() if value is not None}


KEYS = sorted({"environment", *MainService.model_fields, *_Build.model_fields, *_Check.model_fields, *_Limits.model_fields})
