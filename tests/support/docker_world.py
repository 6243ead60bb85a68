"""What tests that need Docker share: whether they can run here, the image they start from, and that they leave nothing behind.

`tests/conftest.py` offers its fixtures to every test; one that asks for ``docker_image`` needs Docker, and is checked for leaks.
"""

import os
import socket
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException, ImageNotFound

STATE_LABEL = "seatrial.state"
"""On every container, volume and network that a server makes; its value says whose state folder it belongs to."""

FIXTURES = Path(__file__).parents[1] / "fixtures" / "harbor"


def image_name() -> str:
    """Return the name of the image that tests and fixture tasks start from."""
    return os.environ.get("SEATRIAL_TEST_IMAGE") or "seatrial-test-base:latest"


@contextmanager
def daemon() -> Generator[docker.DockerClient]:
    """A client of the daemon that answers here, as the user's environment names it."""
    # The library leaves its socket open when nothing answers, and tests fail for that.
    address = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if address.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(address.removeprefix("unix://"))
    with closing(docker.DockerClient.from_env(version="1.24", timeout=60)) as first:
        spoken = first.api.version(api_version=False)["ApiVersion"]
    client = docker.DockerClient.from_env(version=spoken, timeout=60)
    try:
        yield client
    finally:
        client.close()


@cache
def docker_reason() -> str | None:
    """Say why tests that need Docker cannot run here; None if they can."""
    try:
        with daemon() as client:
            client.images.get(image_name())
    except ImageNotFound:
        return f"the image {image_name()} is missing: run tests/support/base_image.sh as root"
    except (DockerException, OSError) as error:
        return f"no Docker daemon answers: {error}"
    return None


def need_docker() -> None:
    """Skip the test where Docker is not there; fail it where ``.ci/run`` has made sure that it is."""
    reason = docker_reason()
    if reason is None:
        return
    if os.environ.get("CI") == "true" and os.environ.get("SEATRIAL_DOCKER_REQUIRED") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def docker_image() -> str:
    """The name of a small image with bash, Python and git; a test that asks for it needs Docker."""
    need_docker()
    return image_name()


Things = Mapping[str, str]
"""Ids of what carries our label, each with what it is and whose."""


def labelled(*, owner: str = "") -> Things:
    """Return what Docker holds of seatrial servers: all, or only that whose label is ``owner``."""
    only = {"label": f"{STATE_LABEL}={owner}" if owner else STATE_LABEL}
    with daemon() as client:
        containers = client.api.containers(all=True, filters=only)
        networks = client.api.networks(filters=only)
        volumes = client.api.volumes(filters=only)["Volumes"] or []
    found = {one["Id"]: f"container {one['Names']} of {one['Labels'][STATE_LABEL]}" for one in containers}
    found |= {one["Id"]: f"network {one['Name']} of {one['Labels'][STATE_LABEL]}" for one in networks}
    return found | {one["Name"]: f"volume {one['Name']} of {one['Labels'][STATE_LABEL]}" for one in volumes}


def remove(things: Things) -> None:
    """Remove containers, networks and volumes, by force."""
    with daemon() as client:
        for id, what in sorted(things.items(), key=lambda item: item[1]):
            kind = what.partition(" ")[0]
            if kind == "container":
                client.api.remove_container(id, force=True, v=True)
            elif kind == "network":
                client.api.remove_network(id)
            else:
                client.api.remove_volume(id, force=True)


def owner_of(state: Path) -> str:
    """Return the value of our label on what servers with this state folder make; of one that made nothing, that of nobody."""
    identity = state / "private" / "identity"
    return identity.read_text() if identity.exists() else "nobody"


@contextmanager
def leaving_nothing(state: Path) -> Generator[None]:
    """Assert that nothing of this state folder remains after the block; what does is removed, so that it fails one test only."""
    try:
        yield
    finally:
        left = labelled(owner=owner_of(state))
        remove(left)
    assert not left, "left behind: " + ", ".join(sorted(left.values()))


@pytest.fixture(autouse=True)
def no_docker_leaks(request: pytest.FixtureRequest) -> Generator[None]:
    """Check every test that has both Docker and a state folder of its own."""
    if not {"docker_image", "state_folder"} <= {*request.fixturenames}:
        yield
        return
    request.getfixturevalue("docker_image")
    with leaving_nothing(request.getfixturevalue("state_folder")):
        yield
