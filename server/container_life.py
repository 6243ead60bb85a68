"""From what a Harbor task says of a container to a container of ours: specification, labels, network, health."""

import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio

from server.bench import Bench
from server.images import Image
from server.sandboxes import containers
from server.sandboxes.base import Limits, SandboxError
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon
from server.sandboxes.egress import open_egress
from tasks.container import ContainerFacts, Healthcheck, Network
from tasks.errors import SeaTrialError
from tasks.templates import resolved

STATE_LABEL, ROLE_LABEL, LOCK_LABEL = "seatrial.state", "seatrial.role", "seatrial.lock"
"""Labels of everything we make: whose it is, what for, and the lock that its owner holds."""

MARK = "docker"
"""A file of the state folder that says that containers were made: without it nobody asks a daemon what is left of them."""

REFUSED_CAPABILITIES = frozenset(
    {
        "ALL",
        "SYS_ADMIN",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_BOOT",
        "SYS_TIME",
        "DAC_READ_SEARCH",
        "BPF",
        "PERFMON",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
    }
)
"""With these a container is no wall any more; task folders come from strangers."""

LOGS = ("/logs/agent", "/logs/verifier", "/logs/artifacts")


class UnhealthyError(SandboxError):
    """A container's health check did not pass."""


class ComposeError(SeaTrialError):
    """A task asks for containers that we do not start."""


@dataclass(frozen=True)
class Role:
    """What a container is made for: its name and labels, the network of its phase, and whose fault it is named in."""

    name: str
    labels: Mapping[str, str]
    network: Network
    where: str


def labels_of(bench: Bench, role: str, lock: str) -> dict[str, str]:
    """Return the labels of what belongs to this state folder; whoever reaps looks at the lock named in them."""
    (bench.state.private / MARK).touch()
    return {STATE_LABEL: bench.state.identity, ROLE_LABEL: role, LOCK_LABEL: lock}


def spec_of(facts: ContainerFacts, image: Image, role: Role, bench: Bench) -> ContainerSpec:
    """Return the container that ``facts`` describe, for a role.

    Raises:
        TaskError: a variable that its ``env`` needs is not set.
        ComposeError: it consists of several services.
    """
    if facts.compose:
        raise ComposeError(
            f"{role.where}: {facts.compose} has more services than main, which this version cannot start. "
            "Put what the others do into main's image, or run the task with Harbor."
        )
    service, limits = facts.service, facts.limits
    if service.privileged or (asked := REFUSED_CAPABILITIES.intersection(one.removeprefix("CAP_") for one in service.cap_add)):
        what = "privileged" if service.privileged else f"cap_add {', '.join(sorted(asked))}"
        raise ComposeError(
            f"{role.where}: {what} would let the task take over this machine. Remove it, or run it in a machine of its own."
        )
    return ContainerSpec(
        image=image.id,
        name=role.name,
        labels=role.labels,
        workdir=facts.workdir or image.workdir,
        user=service.user,
        env=resolved(facts.env, bench.settings.variables, role.where),
        limits=Limits(
            cpus=limits.cpus,
            memory_bytes=limits.memory_mb << 20,
            processes=limits.processes,
            disk_bytes=limits.storage_mb << 20,
        ),
        network=bench.settings.docker_network if role.network.mode == "public" else "none",
        command=service.command,
        entrypoint=service.entrypoint,
        tmpfs=service.tmpfs,
        cap_add=service.cap_add,
        privileged=service.privileged,
        shm_bytes=service.shm_bytes,
        extra_hosts=service.extra_hosts,
        hostname=service.hostname or "box",
        platform=facts.image.platform,
    )


@asynccontextmanager
async def networked(network: Network, container: str, spec: ContainerSpec, bench: Bench) -> AsyncGenerator[Mapping[str, str]]:
    """Give a running container the allowed part of the network; yields the variables that lead programs there.

    Raises:
        SandboxError: an allow-list needs a helper image, and there is none.
    """
    if network.mode != "allowlist":
        yield {}
        return
    if not bench.settings.docker_base:
        raise SandboxError(
            "This task's network is an allow-list of hosts, which is held by a filtering proxy in a container of its own. "
            "Set SEATRIAL_DOCKER_BASE to an image with Python 3.11 or newer, say python:3.12-slim."
        )
    daemon, settings = await bench.docker.daemon(), bench.settings
    labels = {**spec.labels, ROLE_LABEL: "egress"}
    for left in ("filter", "forward"):  # of a server that was killed
        await containers.remove(daemon, f"{spec.name}-egress-{left}")
    async with open_egress(
        daemon, container, spec.name, labels, network.allowed_hosts, settings.docker_base, settings.docker_network
    ) as variables:
        yield variables


async def healthy(daemon: Daemon, container: str, check: Healthcheck, workdir: str) -> None:
    """Wait until a health check passes, as Docker's HEALTHCHECK counts.

    Raises:
        UnhealthyError: it failed ``retries`` times in a row after its start period.
    """
    started, failures = time.monotonic(), 0
    said = bytearray()
    while True:
        said.clear()
        result = await containers.execute(
            daemon,
            container,
            ["sh", "-c", check.command],
            env={},
            user="",
            cwd=workdir,
            timeout_s=check.timeout_s,
            on_output=lambda _, data: said.extend(data[:2000]),
        )
        if result.exit_code == 0 and not result.timed_out:
            return
        starting = time.monotonic() - started < check.start_period_s
        failures += not starting
        if failures >= check.retries:
            last = said.decode(errors="replace").strip()[-300:] or "it printed nothing"
            raise UnhealthyError(f"The health check `{check.command[:200]}` failed {failures} times in a row: {last}")
        await anyio.sleep(check.start_interval_s if starting else check.interval_s)


async def reap(bench: Bench, over: Callable[[str], bool]) -> None:
    """Remove what dead servers of this state folder left; the container of a trial that is not ``over`` (asked by its id) is
    only stopped. What a living process holds the lock of is left alone.
    """
    if not (bench.state.private / MARK).exists():
        return
    daemon = await bench.docker.daemon()
    ours = {"label": f"{STATE_LABEL}={bench.state.identity}"}
    for found in await daemon.call(lambda api: api.containers(all=True, filters=ours)):
        labels = found["Labels"]
        lock, role = labels.get(LOCK_LABEL, ""), labels.get(ROLE_LABEL, "")
        kept = role == "workspace" and not over(lock.removeprefix("trial-"))
        if kept and found["State"] != "running":
            continue
        held = bench.state.try_lock(lock) if lock else None
        if lock and held is None:
            continue
        try:
            await (containers.kill if kept else containers.remove)(daemon, found["Id"])
        finally:
            if held is not None:
                os.close(held)
    for volume in (await daemon.call(lambda api: api.volumes(filters=ours)))["Volumes"] or ():
        held = bench.state.try_lock(volume["Labels"].get(LOCK_LABEL, "volume"))
        if held is not None:
            os.close(held)
            name = volume["Name"]
            await daemon.find(partial(_remove_volume, name))


def _remove_volume(name: str, api: Any) -> None:
    api.remove_volume(name, force=True)
