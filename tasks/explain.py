"""Say in plain words what pydantic found wrong in a task file."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tasks.model import DirectorySource, EnvironmentFacts, GitSource, PypiSource, SeaTrialFacts, VerifierFacts

HINTS = {
    "sha256": "must be 64 lower-case hexadecimal digits, the SHA-256 of the released archive",
    "name": "must be the project's name on the package index",
    "version": "must be one exact version",
    "python": "must be a version specifier such as '>=3.11,<3.14'",
    "url": "must be the URL of a repository, git@host:path or an absolute path",
    "commit": "must be the whole id of a commit, 40 lower-case hexadecimal digits",
    "subfolder": "must be a plain path below the repository's top",
    "title": "must be one line of at most 300 characters",
    "language": "must be one line of at most 300 characters",
    "difficulty": "must be one line of at most 300 characters",
    "workdir": "must be an absolute path",
    "working_dir": "must be an absolute path",
    "docker_image": "must be the name of an image, without spaces",
    "user": "must be a user's name or number",
    "string_pattern_mismatch": "must be without control characters and whatever else has no place there",
}
MAX_SHOWN = 5

_TABLES = (SeaTrialFacts, PypiSource, DirectorySource, GitSource, EnvironmentFacts, VerifierFacts)
_KEYS = sorted({key for table in _TABLES for key in table.model_fields})


def explain(where: Path, error: ValidationError, prefix: str = "", keys: Sequence[str] = _KEYS) -> str:
    """Return one line per field that is wrong (at most `MAX_SHOWN`): the file, the field, and what to do.

    ``keys`` are those that a misspelled one is compared with.
    """
    problems = error.errors(include_url=False)
    lines = [f"{where}: {_field(problem, prefix)} {_what(problem, keys)}" for problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        lines.append(f"{where}: and {len(problems) - MAX_SHOWN} more.")
    return "\n".join(lines)


def _field(problem: ErrorDetails, prefix: str) -> str:
    """Return the dotted path as it stands in the file; pydantic adds the source's kind to it."""
    loc = [str(part)[:80] for part in problem["loc"]]
    if len(loc) > 1 and loc[0] in ("snapshot", "solution") and loc[1] in ("pypi", "directory", "git"):
        del loc[1]
    return ".".join([prefix, *loc] if prefix else loc) or "the file"


def _what(problem: ErrorDetails, keys: Sequence[str]) -> str:
    key, kind = str(problem["loc"][-1]) if problem["loc"] else "", problem["type"]
    if kind == "refused":
        return problem["msg"]
    if kind == "missing":
        return "is missing. Add it."
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key, keys, 1)
        return f"is not a key we know. {f'Did you mean {close[0]!r}?' if close else 'Remove it.'}"
    if kind == "union_tag_not_found":
        return "needs a key 'kind': 'pypi', 'git' or 'directory'. Add it."
    if kind == "union_tag_invalid":
        return f"has kind {_shown((problem.get('ctx') or {}).get('tag'))}; it can be 'pypi', 'git' or 'directory'. Correct it."
    hint = HINTS.get(key, HINTS.get(kind, "")) if kind in ("string_pattern_mismatch", "string_too_long") else ""
    rule = hint or problem["msg"].removeprefix("Value error, ")
    rule = re.sub(r"^\w+ should", "must", rule, count=1).replace("must be a valid", "must be a", 1)
    return f"{rule}, but is {_shown(problem['input'])}. Correct it."


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
