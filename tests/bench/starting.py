"""From the start of a server to its answer to `initialize`."""

import time
from collections.abc import Sequence

from tests.bench.kit import BARE, OURS, Kit, joined
from tests.bench.measure import Row, interleaved


async def measure_start(kit: Kit) -> Sequence[Row]:
    async def start(words: Sequence[str]) -> float:
        started = time.perf_counter()
        async with joined(kit, words):
            return time.perf_counter() - started

    mine, theirs = await interleaved(kit.scale.starts, lambda: start(OURS), lambda: start(BARE), warm_up=kit.scale.warm_up)
    what = "from spawning `python -I -m server` to the answer to initialize"
    return [Row("initialize", what, "the same for a bare SDK server with one tool", 1.3, "ms", mine, theirs)]
