"""A stand-in for the connection to Docker, only as much as the tests of `egress.py` need; the real one replaces it."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import anyio.to_thread
import requests
from docker import APIClient
from docker.errors import APIError, DockerException
from docker.utils import kwargs_from_env

from server.sandboxes.base import SandboxError

T = TypeVar("T")


class DockerError(SandboxError):
    """Docker could not do what was asked; ``status`` is its HTTP status, or 0."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Daemon:
    """A connection to a Docker daemon; made by `connect`, ended by `close`."""

    def __init__(self, client: APIClient) -> None:
        self._client = client

    async def call(self, work: Callable[[APIClient], T]) -> T:
        """Run ``work`` in a thread."""
        return await anyio.to_thread.run_sync(partial(self._guarded, work), abandon_on_cancel=True)

    def _guarded(self, work: Callable[[APIClient], T]) -> T:
        try:
            return work(self._client)
        except (DockerException, requests.RequestException) as error:
            status = error.status_code if isinstance(error, APIError) else None
            raise DockerError(f"Docker refused: {error}", status or 0) from error

    def close(self) -> None:
        self._client.close()


def connect() -> Daemon:
    """Connect as the ``docker`` command does."""
    try:
        client = APIClient(version="1.41", max_pool_size=64, **kwargs_from_env())
        client.version()
        return Daemon(client)
    except (DockerException, requests.RequestException) as error:
        raise DockerError(f"No Docker daemon answers: {error}") from error
