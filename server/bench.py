"""What environments, places and verifications work with, in one value: it is made once per server."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from server.blobs import Blobs
from server.sandboxes.base import SandboxRefusedError
from server.sandboxes.recipe import Host
from server.settings import Settings
from server.state import State

if TYPE_CHECKING:
    from server.sandboxes.daemon import Daemon


class Docker:
    """The connection to the Docker daemon, made when it is first asked for: most servers never need one."""

    def __init__(self) -> None:
        self._daemon: Daemon | None = None
        self._connecting = anyio.Lock()

    async def daemon(self) -> "Daemon":
        """Return the connection.

        Raises:
            DockerError: no daemon answers; the text says what to do.
        """
        async with self._connecting:
            if self._daemon is None:
                from server.sandboxes.daemon import connect  # 200 ms of imports that only Docker tasks need

                self._daemon = await anyio.to_thread.run_sync(connect)
        return self._daemon

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._daemon is not None:
            self._daemon.close()
            self._daemon = None


@dataclass(frozen=True)
class Bench:
    """State folder, blobs, both backends, and the group that background work belongs to.

    ``local`` is None where this machine has no local sandbox; ``refused`` then says why.
    """

    settings: Settings
    state: State
    blobs: Blobs
    background: TaskGroup
    docker: Docker
    local: Host | None
    refused: str = ""

    @property
    def host(self) -> Host:
        """What local sandboxes are made from.

        Raises:
            SandboxRefusedError: there are none here.
        """
        if self.local is None:
            raise SandboxRefusedError(self.refused)
        return self.local
