"""From the runner's records to outcomes per expected test: exact ids, every phase, nothing believed that does not fit."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from server.records import Outcome

_MAX_LINE = 64 << 10
_MAX_BYTES = 64 << 20
_PHASES = ("setup", "call", "teardown")


@dataclass
class Records:
    """What came over the private channel of one run. Records with another nonce or number than the next are refused."""

    nonce: str
    started: bool = False
    ended: bool = False
    exit_code: int | None = None
    refused: bool = False
    _next: int = 0
    _received: int = 0
    _rest: bytes = b""
    _phases: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def take(self, data: bytes) -> None:
        """Take in what the channel brought."""
        self._received += len(data)
        if self._received > _MAX_BYTES:
            self.refused = True
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._rest) > _MAX_LINE:
            self.refused, self._rest = True, b""

    def _line(self, line: bytes) -> None:
        record = _parsed(line)
        if record is None or record.get("nonce") != self.nonce or record.get("number") != self._next or self.ended:
            self.refused = True
            return
        self._next += 1
        match record:
            case {"kind": "start"}:
                self.started = True
            case {"kind": "end", "exit_code": int(code)}:
                self.ended, self.exit_code = True, code
            case {"kind": "phase", "id": str(test), "when": str(when), "outcome": str(outcome)}:
                self._phases.setdefault(test, []).append((when, outcome))
            case _:
                self.refused = True

    def outcomes(self, expected: Iterable[str]) -> dict[str, Outcome]:
        """Return the outcome of each expected function: it passed if it had cases and every case passed every phase once."""
        cases: dict[str, list[Outcome]] = {}
        for test, phases in self._phases.items():
            cases.setdefault(test.partition("[")[0], []).append(_case(phases))
        return {test: _function(cases.get(test, [])) for test in expected}


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    if len(line) > _MAX_LINE:
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _case(phases: list[tuple[str, str]]) -> Outcome:
    whens = [when for when, _ in phases]
    if any(outcome == "failed" for _, outcome in phases):
        return "failed" if all(outcome != "failed" for when, outcome in phases if when in ("setup", "teardown")) else "error"
    if any(whens.count(when) > 1 for when in _PHASES):
        return "duplicated"
    if any(outcome == "skipped" for _, outcome in phases):
        return "skipped"
    return "passed" if tuple(whens) == _PHASES and all(outcome == "passed" for _, outcome in phases) else "missing"


def _function(cases: list[Outcome]) -> Outcome:
    if not cases:
        return "missing"
    return next((outcome for outcome in cases if outcome != "passed"), "passed")
