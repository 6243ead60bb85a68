"""``python -m tests.bench``, from the source folder: measure everything beside its floor; exit code 1 if a bar fails."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio

from tests.bench.commands import measure_command, measure_sandbox, measure_view
from tests.bench.containers import measure_docker
from tests.bench.kit import FULL, QUICK, BenchError, Kit, kit_in
from tests.bench.many import measure_many
from tests.bench.measure import Row, table
from tests.bench.opening import measure_open, measure_trees
from tests.bench.starting import measure_start
from tests.bench.submitting import measure_submit
from tests.support.front_door import CACHETOOLS, H11, reachable_folder, seatrial

GROUPS: Mapping[str, Callable[[Kit], Awaitable[Sequence[Row]]]] = {
    "open": measure_open,
    "open-large": measure_trees,
    "bash": measure_sandbox,
    "run_command": measure_command,
    "view_file": measure_view,
    "initialize": measure_start,
    "many": measure_many,
    "submit": measure_submit,
    "docker": measure_docker,
}


def main(arguments: Sequence[str]) -> int:
    """Measure what was asked for and print it; 1 if a bar fails."""
    given = _parser().parse_args(arguments)
    with _kit(given.state, quick=given.quick) as kit:
        rows = anyio.run(_measured, kit, list(dict.fromkeys(given.only or GROUPS)))
    sys.stdout.write(table(rows) + "\n")
    if given.json:
        given.json.write_text(json.dumps({"machine": _machine(), "rows": [row.as_data() for row in rows]}, indent=1) + "\n")
    return 0 if all(row.passed for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    rows = f"a row, or rows that are measured together: {', '.join(GROUPS)}"
    parser.add_argument("--only", action="append", type=_group_of, metavar="ROW", help=rows)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="a state folder with the bundled tasks built, to use again")
    parser.add_argument("--quick", action="store_true", help="a few rounds of little: shows that it runs, measures nothing")
    return parser


def _group_of(row: str) -> str:
    """Return what measures a row; rows that are measured together begin with its name."""
    fitting = [group for group in GROUPS if row == group or row.startswith(f"{group}-")]
    if not fitting:
        raise argparse.ArgumentTypeError(f"there is no row {row!r}; there are {', '.join(GROUPS)}")
    return max(fitting, key=len)


@contextmanager
def _kit(state: Path | None, *, quick: bool) -> Generator[Kit]:
    """Yield a kit whose bundled tasks are built; what was generated goes at the end."""
    with reachable_folder() as folder:
        _say("building the bundled tasks")
        kit = kit_in(folder, state or folder / "state", QUICK if quick else FULL)
        built = seatrial(kit.settings.state, "tasks", "build", H11, CACHETOOLS)
        if built.returncode:
            raise BenchError(f"The bundled tasks could not be built: {built.stdout}{built.stderr}")
        yield kit


async def _measured(kit: Kit, groups: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for group in groups:
        _say(f"measuring {group}")
        rows += await GROUPS[group](kit)
    return rows


def _machine() -> Mapping[str, object]:
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load_1min": os.getloadavg()[0],
        "root": os.geteuid() == 0,
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{text} ...\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
