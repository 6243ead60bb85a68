"""The reward files of a Harbor verifier, read as data: bounded, range-checked, nothing guessed."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_BYTES = 64 << 10
_MAX_NAMES = 100


@dataclass(frozen=True)
class Rewards:
    """What a verifier left: numbers by name, or why there are none. ``reward`` is None without them."""

    values: Mapping[str, float]
    fault: str = ""

    @property
    def reward(self) -> float | None:
        """The number named ``reward``; of several without that name the smallest, so that all must hold."""
        if not self.values:
            return None
        return self.values.get("reward", min(self.values.values()))


def read_rewards(files: Mapping[str, bytes | None]) -> Rewards:
    """Return the rewards that ``reward.json`` (numbers by name) or else ``reward.txt`` (one number) holds.

    ``files`` has the content of regular files by name; None stands for something else of that name. As in Harbor the
    first wins where both are there. A number outside 0..1, NaN or no number at all makes the whole file unusable.
    """
    for name, read in (("reward.json", _json), ("reward.txt", _text)):
        if name in files:
            data = files[name]
            if data is None or len(data) > _MAX_BYTES:
                return Rewards({}, f"{name} is no regular file of at most {_MAX_BYTES >> 10} KiB")
            try:
                values = read(data)
            except (ValueError, TypeError, RecursionError):
                return Rewards({}, f"{name} holds no number: {data[:80]!r}")
            if any(not math.isfinite(value) or not 0 <= value <= 1 for value in values.values()):
                return Rewards({}, f"{name} holds a number outside 0..1: {data[:80]!r}")
            return Rewards(values) if values else Rewards({}, f"{name} is empty")
    return Rewards({}, "the verifier left neither reward.json nor reward.txt")


def _text(data: bytes) -> dict[str, float]:
    text = data.decode().strip()
    return {"reward": float(text)} if text else {}


def _json(data: bytes) -> dict[str, float]:
    found = json.loads(data)
    if isinstance(found, dict) and len(found) <= _MAX_NAMES:
        return {str(name): _number(value) for name, value in found.items()}
    return {"reward": _number(found)}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)
