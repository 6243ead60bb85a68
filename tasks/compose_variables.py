"""The ``$VARIABLES`` of a docker-compose.yaml: those that Harbor sets are known, the others need a default.

Only values of ``environment`` may keep a variable, as text: `tasks.templates` fills it in when a container starts.
"""

import re
from collections.abc import Mapping

from tasks.errors import TaskError

OWN_IMAGE = "seatrial-own-image"
"""What `MAIN_IMAGE_NAME` is here: the image that is built from the Dockerfile, whatever its name."""

_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)(?:(?P<op>:?[-?+])(?P<rest>[^}$]*))?\}|)", re.ASCII
)


def harbor_variables(cpus: float, memory_mb: int, docker_image: str) -> Mapping[str, str]:
    """Return what Harbor sets, or once set, for a docker-compose.yaml. The log folders are the container's own on both sides."""
    logs = {
        f"{side}_{name}_PATH": f"/logs/{folder}"
        for side in ("HOST", "ENV")
        for name, folder in (
            ("VERIFIER_LOGS", "verifier"),
            ("AGENT_LOGS", "agent"),
            ("ARTIFACTS", "artifacts"),
            ("ARTIFACTS_LOGS", "artifacts"),
        )
    }
    image = {"PREBUILT_IMAGE_NAME": docker_image} if docker_image else {}
    fixed = {"CONTEXT_DIR": ".", "TEST_DIR": "/tests", "MAIN_IMAGE_NAME": OWN_IMAGE, "NETWORK_MODE": "bridge"}
    return {**logs, **fixed, "CPUS": f"{cpus:g}", "MEMORY": f"{memory_mb}M", **image}


def filled(value: object, known: Mapping[str, str], where: str) -> object:
    """Return ``value`` with the variables replaced in every string of it; ``where`` names the file and the field.

    Raises:
        TaskError: a variable is not known and has no default.
    """
    if isinstance(value, dict):
        return {key: filled(item, known, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, known, where) for item in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name = _name(match, value, where)
        if not name:
            return "$"
        if name in known:
            return known[name]
        if match["op"] in ("-", ":-"):
            return match["rest"]
        raise TaskError(f"{where} needs the variable {name}, which is not set here. Write the value itself, or give a default.")

    return _VARIABLE.sub(one, value)


def kept(value: str, known: Mapping[str, str], where: str) -> str:
    """Return ``value`` with what is `known` replaced and every other variable as ``${VAR}`` or ``${VAR:-default}``.

    Raises:
        TaskError: it cannot be told in these two forms.
    """

    def one(match: re.Match[str]) -> str:
        name = _name(match, value, where)
        if not name:
            if value[match.end() :].startswith("{"):
                raise TaskError(f"{where} has a literal '${{', which cannot be kept apart from a variable. Set it in the image.")
            return "$"
        if name in known:
            return known[name]
        return f"${{{name}:-{match['rest']}}}" if match["op"] in ("-", ":-") else f"${{{name}}}"

    return _VARIABLE.sub(one, value)


def _name(match: re.Match[str], value: str, where: str) -> str:
    """Return the variable's name, empty for ``$$``."""
    if match["dollar"]:
        return ""
    name = match["plain"] or match["braced"]
    if not name or match["op"] in ("+", ":+"):
        raise TaskError(f"{where} is {value[:80]!r}: only ${{VAR}} and ${{VAR:-default}} are understood. Write '$$' for a '$'.")
    return name
