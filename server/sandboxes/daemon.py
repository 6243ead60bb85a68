"""The Docker daemon: the one module that knows the library `docker`. Import it late: nothing else of the server needs it."""

import socket
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound
from docker.utils import kwargs_from_env

from server.sandboxes.base import SandboxError

T = TypeVar("T")

_TIMEOUT_S = 300
_THREADS = 64
_DEFAULT = "unix:///var/run/docker.sock"


class DockerError(SandboxError):
    """Docker could not do what was asked; ``status`` is its HTTP status, or 0 if there was no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Daemon:
    """A connection to a Docker daemon; made by `connect`, ended by `close`."""

    def __init__(self, client: APIClient, address: str) -> None:
        self._client = client
        self._threads = anyio.CapacityLimiter(_THREADS)
        self.address = address
        self.limits_storage = True
        """Whether containers may be made with a size; `containers.create` notes it when the daemon refuses."""

    async def call(self, work: Callable[[Any], T]) -> T:
        """Run ``work`` in a thread; if we are cancelled it is left alone to end by itself.

        Raises:
            DockerError: whatever Docker, or the way to it, refused.
        """
        return await anyio.to_thread.run_sync(self._guarded, work, abandon_on_cancel=True, limiter=self._threads)

    @property
    def api_version(self) -> str:
        """The version of Docker's API that is spoken."""
        return str(self._client.api_version)

    async def find(self, work: Callable[[Any], T]) -> T | None:
        """Do as `call`; None where what is asked for does not exist."""
        try:
            return await self.call(work)
        except DockerError as error:
            if error.status == 404:
                return None
            raise

    def _guarded(self, work: Callable[[Any], T]) -> T:
        try:
            return work(self._client)
        except (DockerException, requests.RequestException) as error:
            if (response := getattr(error, "response", None)) is not None:
                response.close()  # the library leaves that of a refused exec open
            raise _explained(error, self.address) from error

    def close(self) -> None:
        self._client.close()


def connect() -> Daemon:
    """Connect as the ``docker`` command does: ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY``, ``DOCKER_CERT_PATH``.

    Raises:
        DockerError: no daemon that we can use.
    """
    address = _DEFAULT
    try:
        options = kwargs_from_env()
        address = str(options.get("base_url") or _DEFAULT)
        if address.startswith("ssh://"):
            raise DockerError(
                f"DOCKER_HOST is {address}: Docker over ssh cannot be used here. Forward its socket instead"
                " (ssh -L /tmp/docker.sock:/var/run/docker.sock HOST) and set DOCKER_HOST=unix:///tmp/docker.sock."
            )
        _knock(address)
        with closing(_client("1.24", options)) as first:
            spoken = first.version(api_version=False)["ApiVersion"]
        return Daemon(_client(spoken, options), address)
    except (DockerException, requests.RequestException, OSError) as error:
        raise _explained(error, address) from error


def _knock(address: str) -> None:
    """See whether a daemon's Unix socket lets us in: the library forgets to close one that does not."""
    scheme, _, path = address.partition("://")
    if scheme in ("unix", "http+unix"):
        with socket.socket(socket.AF_UNIX) as knocking:
            knocking.connect(path)


def _client(version: str, options: Mapping[str, Any]) -> APIClient:
    client = APIClient(version=version, timeout=_TIMEOUT_S, max_pool_size=_THREADS, **options)
    client.trust_env = False  # else REQUESTS_CA_BUNDLE takes the place of the daemon's own certificate, and proxies get in
    return client


@contextmanager
def archive(client: APIClient, container: str, path: str) -> Generator[Iterator[bytes]]:
    """Read a path of a container as a tar, in pieces.

    The library's own call cannot be broken off, and Docker then holds the container.
    """
    address = f"{client.base_url}/v{client.api_version}/containers/{quote(container, safe='')}/archive"
    with closing(client.get(address, params={"path": path}, stream=True, timeout=_TIMEOUT_S)) as response:
        if response.status_code != 200:
            raise DockerError(f"Docker refused: {response.text.strip()[:500]}", response.status_code)
        yield response.iter_content(1 << 20)


def _explained(error: Exception, address: str) -> DockerError:
    """Say what happened and what to do, in our words where we know more than the library."""
    text = str(error)
    if isinstance(error, ImageNotFound) or "No such image" in text:
        return DockerError(f"{_said(error)}. Build, load or pull the image on {address} first (docker image ls).", 404)
    if isinstance(error, APIError):
        return DockerError(f"Docker refused: {_said(error)}", error.status_code or 0)
    if "Permission denied" in text:
        return DockerError(
            f"No permission to use the Docker daemon at {address}. Add your user to the group `docker` and log in again."
        )
    if isinstance(error, requests.Timeout):
        return DockerError(f"The Docker daemon at {address} did not answer within {_TIMEOUT_S} s. See whether it is well.")
    if isinstance(error, requests.exceptions.SSLError) or "TLS" in text:
        return DockerError(
            f"The Docker daemon at {address} could not be trusted: {text[:300]}. See DOCKER_TLS_VERIFY and DOCKER_CERT_PATH."
        )
    return DockerError(
        f"No Docker daemon answers at {address}: {text[:300]}. Start Docker, or set DOCKER_HOST to where it listens."
    )


def _said(error: Exception) -> str:
    return str(getattr(error, "explanation", "") or error).strip().rstrip(".")[:500]
