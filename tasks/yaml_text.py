"""YAML from a task folder: bounded, plain values only, every key once."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import TaskError

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 256 << 10
MAX_VALUES = 20_000
"""With every alias counted as often as it is used."""


def load_yaml(text: str, where: Path) -> object:
    """Return the one document in ``text``.

    Raises:
        TaskError: it is too large, no YAML, more than one document, or it repeats a key; the text names ``where`` and the line.
    """
    import yaml  # here, since few tasks have such a file and the first list_tasks waits for this

    if len(text.encode()) > MAX_BYTES:
        raise TaskError(f"{where} is longer than {MAX_BYTES:,} bytes. Shorten it.")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise TaskError(f"{where}{line} is not valid YAML: {error.problem or error.context}. Correct that line.") from None
    except yaml.YAMLError as error:
        raise TaskError(f"{where} is not valid YAML: {str(error).splitlines()[0]}. Correct it.") from None
    except RecursionError:
        raise TaskError(f"{where} is nested too deeply. Simplify it.") from None
    except ValueError as error:  # a date or a number that is none
        raise TaskError(f"{where} holds a value that is none: {str(error)[:200]}. Put it in quotes.") from None


def _count(node: "yaml.Node", sizes: dict[int, int], where: Path) -> int:
    """Return how many values ``node`` stands for once its aliases are written out; refuse what repeats a key or has no end."""
    if id(node) in sizes:
        if not (size := sizes[id(node)]):
            raise TaskError(f"{where} line {node.start_mark.line + 1} holds itself. Remove that alias.")
        return size
    sizes[id(node)] = 0
    keys: set[str] = set()
    size = 1
    for item in node.value if isinstance(node.value, list) else ():
        for part in item if isinstance(item, tuple) else (item,):
            size += _count(part, sizes, where)
        if isinstance(item, tuple):
            key = str(item[0].value)
            if key in keys and key != "<<":
                raise TaskError(f"{where} line {item[0].start_mark.line + 1} has the key {key[:80]!r} again. Remove one of them.")
            keys.add(key)
    if size > MAX_VALUES:
        raise TaskError(f"{where} holds more than {MAX_VALUES:,} values, aliases written out. Simplify it.")
    sizes[id(node)] = size
    return size
