"""Translate a task's docker-compose.yaml into facts, as far as it says something of one container, ``main``.

Every key either ends up in `Compose`, or makes no difference here (``init``, ``tty`` and the like), or is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from tasks.compose_service import KEYS, MainService
from tasks.compose_variables import OWN_IMAGE, filled, kept
from tasks.container import Healthcheck, ImageFacts, Service
from tasks.errors import TaskError
from tasks.explain import explain
from tasks.folders import Folder
from tasks.yaml_text import load_yaml

NAMES = ("docker-compose.yaml", "docker-compose.yml")
_WITHOUT_EFFECT = ("services", "version", "name")


@dataclass(frozen=True)
class Compose:
    """What the file says. ``limits`` holds only what it sets; ``image`` is None where it names neither image nor build."""

    path: str
    several: bool = False
    """There are more services than ``main``; of ``main`` only what can be told is here."""
    image: ImageFacts | None = None
    service: Service = field(default_factory=Service)
    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    no_network: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    healthcheck: Healthcheck | None = None


def compose_path(files: Folder, folder: str) -> str:
    """Return the path of the compose file in ``folder``, empty if there is none.

    Raises:
        TaskError: there are two.
    """
    found = [path for name in NAMES if (path := f"{folder}/{name}") in files.files]
    if len(found) > 1:
        raise TaskError(f"{files.root / folder} holds {NAMES[0]} and {NAMES[1]}. Remove one of them.")
    return found[0] if found else ""


def read_compose(files: Folder, path: str, known: Mapping[str, str]) -> Compose:
    """Read the compose file at ``path`` of the task folder; ``known`` are the variables that Harbor sets.

    Raises:
        TaskError: it cannot be read, or says something that cannot be done here; the text names file, service and key.
    """
    where = files.root / path
    services, several = _services(where, load_yaml(files.text(path), where))
    main = services.get("main", {}) if several else services["main"]
    main = {} if main is None else main
    if not isinstance(main, dict):
        raise TaskError(f"{where}: services.main must be a table. Correct it.")
    if several:
        main = {key: value for key, value in main.items() if key in MainService.model_fields and key != "volumes"}
    fields = {
        str(key): filled(value, known, f"{where}: services.main.{key}") for key, value in main.items() if key != "environment"
    }
    env = _environment(main.get("environment"), known, f"{where}: services.main.environment")
    try:
        service = MainService.model_validate(fields)
    except ValidationError as error:
        raise TaskError(explain(where, error, "services.main", KEYS)) from None
    return Compose(
        path=path,
        several=several,
        image=_image(files, path, service),
        service=service.facts(),
        env=env,
        workdir=service.working_dir,
        no_network=service.network_mode == "none",
        limits=service.limits(),
        healthcheck=service.healthcheck.facts() if service.healthcheck else None,
    )


def _services(where: Path, document: object) -> tuple[dict[str, object], bool]:
    """Return the services by name, and whether there are others than ``main``."""
    services = document.get("services") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(services, dict) or not services:
        raise TaskError(f"{where} names no services. It needs a table 'services' with 'main' in it: add it.")
    several = any(name != "main" for name in services)
    if not several:
        for key, value in document.items():
            if value and key not in _WITHOUT_EFFECT and not str(key).startswith("x-"):
                raise TaskError(f"{where}: {str(key)[:80]} cannot be used with a single container. Remove it.")
    return {str(name): service for name, service in services.items()}, several


def _environment(value: object, known: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the variables of a list or a map; one without a value comes from where the server runs."""
    if isinstance(value, list):
        pairs: list[tuple[object, object]] = []
        for entry in value:
            entry_name, equals, text = str(entry).partition("=")
            pairs.append((entry_name, text if equals else None))
    elif isinstance(value, dict):
        pairs = list(value.items())
    elif value is None:
        pairs = []
    else:
        raise TaskError(f"{where} must be a list or a table. Correct it.")
    found: dict[str, str] = {}
    for key, given in pairs:
        name = str(key)
        if not name or "=" in name or "\0" in name or isinstance(given, dict | list):
            raise TaskError(f"{where}.{name[:80]} must be one NAME with one value. Correct it.")
        value_text = f"${{{name}}}" if given is None else str(given).lower() if isinstance(given, bool) else str(given)
        found[name] = kept(value_text, known, f"{where}.{name}")
    return found


def _image(files: Folder, path: str, service: MainService) -> ImageFacts | None:
    """Return where the image comes from. A build that leaves the environment's folder could put the tests into the image."""
    folder = PurePosixPath(path).parent
    build = service.build
    if build is None:
        if service.image and service.image != OWN_IMAGE:
            return ImageFacts(docker_image=service.image, platform=service.platform)
        return ImageFacts(context=str(folder), platform=service.platform) if service.platform else None
    context = _below(files, path, "build.context", folder, build.context)
    dockerfile = _below(files, path, "build.dockerfile", context, build.dockerfile)
    if str(dockerfile) not in files.files:
        raise TaskError(f"{files.root / path}: services.main.build: {files.root / dockerfile} is missing. Add it.")
    return ImageFacts(
        context=str(context),
        dockerfile=str(dockerfile.relative_to(context)),
        target=build.target,
        args=build.args,
        platform=service.platform,
    )


def _below(files: Folder, path: str, key: str, start: PurePosixPath, given: str) -> PurePosixPath:
    if given.startswith("/") or ".." in given.split("/") or ":" in given or "\\" in given:
        raise TaskError(
            f"{files.root / path}: services.main.{key} is {given[:200]!r}, which leaves {start}. Put what it needs there."
        )
    return start / given
