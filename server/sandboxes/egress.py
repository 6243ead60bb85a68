from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from server.sandboxes.daemon import Daemon


@asynccontextmanager
async def open_egress(
    daemon: Daemon, container: str, name: str, labels: Mapping[str, str], allowed: Sequence[str], image: str, network: str
) -> AsyncGenerator[Mapping[str, str]]:
    raise NotImplementedError
    yield {}
