"""Values with ``${VAR}`` and ``${VAR:-default}`` in them, filled in when a container starts."""

import re
from collections.abc import Mapping

from tasks.errors import TaskError

TEMPLATE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def resolved(values: Mapping[str, str], environment: Mapping[str, str], where: str) -> dict[str, str]:
    """Return ``values`` with each template replaced from ``environment``; a value that it brings is not looked at again.

    ``where`` names the file and the table, as in ``task.toml: environment.env``.

    Raises:
        TaskError: a variable without a default is not set; the text names it and the field.
    """

    def filled(field: str, value: str) -> str:
        def one(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if (found := environment.get(name, default)) is None:
                raise TaskError(
                    f"{where}.{field} needs the environment variable {name}, which is not set. "
                    f"Set it where the server starts, or give a default: ${{{name}:-...}}."
                )
            return found

        return TEMPLATE.sub(one, value)

    return {field: filled(field, value) for field, value in values.items()}
