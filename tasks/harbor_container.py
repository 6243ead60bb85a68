"""One container of a plain Harbor task: a table ``environment`` of task.toml and the folder with its Dockerfile."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from tasks.compose import Compose, compose_path, read_compose
from tasks.compose_variables import harbor_variables
from tasks.container import ContainerFacts, Healthcheck, ImageFacts, Network
from tasks.errors import TaskError
from tasks.explain import explain
from tasks.facts import ResourceLimits
from tasks.folders import Folder
from tasks.harbor_file import KEYS, EnvironmentTable, HealthcheckTable


def container_facts(files: Folder, table: EnvironmentTable, folder: str, field: str) -> ContainerFacts:
    """Return the container that ``table`` (at ``field`` of task.toml) and the files in ``folder`` describe.

    Where both say something, task.toml counts, as in Harbor; what they cannot both mean is refused.

    Raises:
        TaskError: there is no image, or something cannot be done here.
    """
    where = files.root / "task.toml"
    limits = _limits(table)
    path = compose_path(files, folder)
    compose = Compose(path="")
    if path:
        default = _checked(limits, where, field)
        known = harbor_variables(default.cpus, default.memory_mb, table.docker_image or "")
        compose = read_compose(files, path, known)
        _checked(compose.limits, files.root / path, "services.main")
    return ContainerFacts(
        image=_image(files, table, folder, compose),
        service=compose.service,
        env={**compose.env, **table.env},
        workdir=table.workdir or compose.workdir,
        network=_network(table, compose, files.root / path),
        limits=_checked({**compose.limits, **limits}, where, field),
        healthcheck=_healthcheck(table, compose, files.root / path),
        compose=compose.path if compose.several else "",
    )


def healthcheck_facts(table: HealthcheckTable | None) -> Healthcheck | None:
    """Return the same with our names of the units."""
    if table is None:
        return None
    return Healthcheck(
        command=table.command,
        interval_s=table.interval_sec,
        timeout_s=table.timeout_sec,
        start_period_s=table.start_period_sec,
        start_interval_s=table.start_interval_sec,
        retries=table.retries,
    )


def _limits(table: EnvironmentTable) -> dict[str, float]:
    """Return the limits that are set, those with deprecated keys included."""
    found = {
        "cpus": table.cpus,
        "memory_mb": table.memory_mb if table.memory_mb is not None else table.memory,
        "storage_mb": table.storage_mb if table.storage_mb is not None else table.storage,
    }
    return {name: value for name, value in found.items() if value is not None}


def _checked(limits: Mapping[str, float], where: Path, field: str) -> ResourceLimits:
    try:
        return ResourceLimits.model_validate(limits)
    except ValidationError as error:
        raise TaskError(explain(where, error, field, KEYS)) from None


def _image(files: Folder, table: EnvironmentTable, folder: str, compose: Compose) -> ImageFacts:
    image = compose.image or ImageFacts(context=folder)
    if table.docker_image and image.docker_image not in ("", table.docker_image):
        raise TaskError(
            f"{files.root / compose.path}: services.main.image is {image.docker_image!r}, but docker_image of task.toml is "
            f"{table.docker_image!r}. Remove one of them."
        )
    docker_image = table.docker_image or image.docker_image
    if not docker_image and f"{image.context}/{image.dockerfile}" not in files.files:
        raise TaskError(
            f"{files.root / folder} says nothing of an image: there is no Dockerfile and no docker_image in task.toml. "
            "Add one of them."
        )
    return image.model_copy(update={"docker_image": docker_image, "build_timeout_s": table.build_timeout_sec})


def _network(table: EnvironmentTable, compose: Compose, path: Path) -> Network:
    mode = table.network_mode
    if mode is None:
        mode = "no-network" if table.allow_internet is False else "public"
    if not compose.no_network:
        return Network(mode=mode, allowed_hosts=table.allowed_hosts or ())
    if mode == "allowlist":
        raise TaskError(f"{path}: services.main.network_mode is 'none', but task.toml has an allowlist. Remove one of them.")
    return Network(mode="no-network")


def _healthcheck(table: EnvironmentTable, compose: Compose, path: Path) -> Healthcheck | None:
    if table.healthcheck and compose.healthcheck:
        raise TaskError(f"{path}: services.main.healthcheck also stands in task.toml. Remove one of them.")
    return healthcheck_facts(table.healthcheck) or compose.healthcheck
