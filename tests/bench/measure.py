"""Figures beside their floors: taken in turns in one run, so that both see the same machine, and compared pair by pair."""

import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Measured = Callable[[], Awaitable[float]]
"""Does a thing once and returns how many seconds it took (or how many bytes)."""

Unit = Literal["ms", "s", "MiB"]

_PER_UNIT = {"ms": 1e-3, "s": 1.0, "MiB": float(1 << 20)}
_RESAMPLES = 4_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One figure and its floor, one pair per round.

    What the bar bounds is ``(ours - allowance) / floor`` of each pair, or ``ours`` itself where the bar is ``absolute``: then
    the floor is only there to compare with.
    """

    name: str
    what: str
    floor_is: str
    bar: float
    unit: Unit
    ours: Sequence[float]
    floor: Sequence[float]
    allowance: float = 0.0
    absolute: bool = False
    note: str = ""

    @property
    def judged(self) -> Sequence[float]:
        """What is compared with the bar, of every round."""
        if self.absolute:
            return [value / _PER_UNIT[self.unit] for value in self.ours]
        return [(value - self.allowance) / floor for value, floor in zip(self.ours, self.floor, strict=True)]

    @property
    def interval(self) -> tuple[float, float]:
        return interval_of_median(self.judged)

    @property
    def passed(self) -> bool:
        """A bar fails only where the whole interval lies above it."""
        return self.interval[0] <= self.bar

    def as_data(self) -> dict[str, Any]:
        """Return the row for JSON: seconds and bytes, and how they were judged."""
        return {
            "name": self.name,
            "what": self.what,
            "floor_is": self.floor_is,
            "unit": "bytes" if self.unit == "MiB" else "s",
            "rounds": len(self.ours),
            "ours": {"median": statistics.median(self.ours), "quartiles": quartiles(self.ours), "all": list(self.ours)},
            "floor": {"median": statistics.median(self.floor), "quartiles": quartiles(self.floor), "all": list(self.floor)},
            "bar": self.bar,
            "bar_is": f"{self.unit} of ours" if self.absolute else "ours / floor, pair by pair",
            "allowance_s": self.allowance,
            "judged": {"median": statistics.median(self.judged), "interval": self.interval},
            "passed": self.passed,
            "note": self.note,
        }


async def interleaved(rounds: int, *measured: Measured, warm_up: int = 1) -> list[list[float]]:
    """Do each of ``measured`` in turn, ``rounds`` times over, after ``warm_up`` rounds that do not count."""
    series: list[list[float]] = [[] for _ in measured]
    for number in range(-warm_up, rounds):
        for values, one in zip(series, measured, strict=True):
            value = await one()
            if number >= 0:
                values.append(value)
    return series


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return how many seconds ``work`` takes."""
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


def interval_of_median(values: Sequence[float]) -> tuple[float, float]:
    """Return where the median lies with a confidence of 95 %: percentiles of the medians of resamples, always the same."""
    if len(values) == 1:
        return values[0], values[0]
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    left_out = int(_RESAMPLES * (1 - _CONFIDENCE) / 2)
    return medians[left_out], medians[-1 - left_out]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the first and the third quartile: half of all values lie between them."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


HEAD = ("row", "n", "ours", "(half of them)", "floor", "(half of them)", "judged", "(95 %)", "bar", "")


def table(rows: Sequence[Row]) -> str:
    """Return all rows as aligned text, then what each figure and each floor is."""
    lines = [HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    width = max(len(row.name) for row in rows)
    legend = []
    for row in rows:
        legend.append(f"{row.name.ljust(width)}  {row.what}")
        legend.append(f"{' ' * width}  floor: {row.floor_is}")
        legend += [f"{' ' * width}  {row.note}"] if row.note else []
    return text + "\n\n" + "\n".join(legend)


def _cells(row: Row) -> tuple[str, ...]:
    unit = "" if row.absolute else "x"
    low, high = row.interval
    allowed = f" + {row.allowance:g} s" if row.allowance else ""
    return (
        row.name,
        str(len(row.ours)),
        *_spread(row.ours, row.unit),
        *_spread(row.floor, row.unit),
        f"{statistics.median(row.judged):.2f}{unit}",
        f"{low:.2f}-{high:.2f}",
        f"<= {row.bar:g} {row.unit if row.absolute else 'x'}{allowed}",
        "ok" if row.passed else "FAILED",
    )


def _spread(values: Sequence[float], unit: Unit) -> tuple[str, str]:
    scale = _PER_UNIT[unit]
    first, third = quartiles(values)
    return f"{statistics.median(values) / scale:.2f} {unit}", f"{first / scale:.2f}-{third / scale:.2f}"
