"""Fixtures of the tools' tests: one server and one workspace per module, since most tests only add files to it."""

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from desk import Desk, desk_at
from front_door import H11


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def desk(built_state: Path) -> AsyncGenerator[Desk]:
    """A workspace that all tests of a module share."""
    async with desk_at(built_state, H11) as desk:
        yield desk
