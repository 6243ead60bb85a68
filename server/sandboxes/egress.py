"""Named hosts, and nothing else, for a container without a network: two more containers carry its HTTP.

The task's container has only a loopback. Beside it, in its network namespace, a *forwarder* listens on 127.0.0.1 and
hands every connection on through a Unix socket on a volume; at the other end a *filter*, which has a network but shares
nothing else with the task, decides (`egress_rules.py`). All of it lives at the daemon, so the daemon may be remote; the
image of the task needs nothing.
"""

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from ipaddress import ip_network
from typing import Any

import anyio

from server.sandboxes.base import SandboxError
from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.egress_proxy import READY
from server.sandboxes.egress_rules import Rules

PORT = 13_128
"""Where the proxy listens on the loopback of the task."""

_UID = 64_998
_MEMORY = 128 << 20
_START_S = 60
_LOOK_S = 0.02
_REMOVAL_S = 60
_FOLDER = "/egress"
_SOCKET = f"{_FOLDER}/filter"
_VOLUME = {"type": "tmpfs", "device": "tmpfs", "o": f"size=64k,nr_inodes=16,mode=0700,uid={_UID},gid={_UID}"}
"""A tiny memory file system: with the driver `local`, the way to give a fresh volume an owner who is not root."""
_MODULES = ("egress_rules", "egress_http", "egress_proxy")
_BOOT = """
import asyncio, json, sys, types
for name, text in json.loads(sys.argv[1]):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
asyncio.run(module.main(*sys.argv[2:]))
"""


class EgressError(SandboxError):
    """The hosts of a task cannot be allowed; the text says why and what to do."""


@asynccontextmanager
async def open_egress(  # noqa: PLR0913 - the task's side, then the operator's side
    daemon: Daemon,
    container_id: str,
    name: str,
    labels: Mapping[str, str],
    allowed_hosts: Sequence[str],
    image: str,
    network: str = "bridge",
    allow_private: bool = False,
) -> AsyncGenerator[Mapping[str, str]]:
    """Let the running container reach ``allowed_hosts`` and yield the environment that tells its programs how.

    It must have been started with the network mode ``none``; after a restart of it, open anew. What is made here is named
    ``name``-something and has ``labels``. ``image`` needs a ``python3`` (3.11 or later); ``network`` is where the filter
    is; for ``allow_private`` see `Rules`.

    Raises:
        EgressError: a host is malformed, or a sidecar did not start.
        DockerError: the daemon refused.
    """
    try:
        Rules(allowed_hosts)
    except ValueError as error:
        raise EgressError(f"Allowed hosts of the task: {error}. Correct its task.toml.") from error
    rules = {"allowed": list(allowed_hosts), "gateways": await _gateways(daemon, network), "allow_private": allow_private}
    volume = f"{name}-egress"
    sidecars = (
        _Sidecar(f"{volume}-filter", network, ("filter", _SOCKET, json.dumps(rules))),
        _Sidecar(f"{volume}-forward", f"container:{container_id}", ("forward", _SOCKET, str(PORT))),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_remove, daemon, lambda api: api.remove_volume(volume, force=True))
        with anyio.CancelScope(shield=True):
            await daemon.call(lambda api: api.create_volume(volume, "local", _VOLUME, dict(labels)))
        for sidecar in sidecars:
            stack.push_async_callback(_remove, daemon, sidecar.remove)
            with anyio.CancelScope(shield=True):
                await daemon.call(partial(sidecar.create, image=image, volume=volume, labels=labels))
            await _start(daemon, sidecar.name)
        proxy, here = f"http://127.0.0.1:{PORT}", "localhost,127.0.0.1"
        yield {
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), proxy),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), here),
        }


@dataclass(frozen=True)
class _Sidecar:
    """A container of ours: no user of the image, no capability, nothing to write to but the volume."""

    name: str
    network: str
    arguments: Sequence[str]

    def create(self, api: Any, image: str, volume: str, labels: Mapping[str, str]) -> None:
        folder = files("server.sandboxes")
        sources = [(f"server.sandboxes.{name}", folder.joinpath(f"{name}.py").read_text("utf-8")) for name in _MODULES]
        api.create_container(
            image,
            name=self.name,
            entrypoint=["python3", "-I", "-B", "-c", _BOOT],
            command=[json.dumps(sources), *self.arguments],
            user=f"{_UID}:{_UID}",
            working_dir="/",
            labels=dict(labels),
            healthcheck={"test": ["NONE"]},
            use_config_proxy=False,
            host_config=api.create_host_config(
                network_mode=self.network,
                binds={volume: {"bind": _FOLDER, "mode": "rw,nocopy"}},
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                mem_limit=_MEMORY,
                pids_limit=64,
                ulimits=[{"name": "nofile", "soft": 1024, "hard": 1024}],
                log_config={"type": "json-file", "config": {"max-size": "64k", "max-file": "1"}},
            ),
        )

    def remove(self, api: Any) -> None:
        api.remove_container(self.name, force=True, v=True)


async def _gateways(daemon: Daemon, network: str) -> list[str]:
    """Return the addresses at which the daemon's own machine is on a network: on its services the task has no claim."""
    found: Mapping[str, Any] = await daemon.call(lambda api: api.inspect_network(network))
    pools: Sequence[Mapping[str, str]] = (found.get("IPAM") or {}).get("Config") or []
    given = [pool["Gateway"].partition("/")[0] for pool in pools if pool.get("Gateway")]
    return given + [_first_of(subnet) for pool in pools if (subnet := pool.get("Subnet"))]


def _first_of(subnet: str) -> str:
    """Where Docker puts its gateway if nobody says otherwise; networks made long ago do not tell theirs."""
    return str(ip_network(subnet, strict=False)[1])


async def _start(daemon: Daemon, name: str) -> None:
    """Start a sidecar and wait until it says that it listens."""
    with anyio.CancelScope(shield=True):  # else it could still be starting when it is removed
        await daemon.call(lambda api: api.start(name))
    said, running = "", True
    with anyio.move_on_after(_START_S):
        while running and said != READY:
            await anyio.sleep(_LOOK_S)
            state = await daemon.call(lambda api: api.inspect_container(name)["State"])
            running = state["Running"]
            said = (await daemon.call(lambda api: api.logs(name, tail=20))).decode(errors="replace").strip()
    if said != READY:
        raise EgressError(
            f"The way out for the allowed hosts did not start ({name}): {said[-500:] or 'it said nothing'}."
            f" Its image needs python3, 3.11 or later, and port {PORT} on the task's loopback must be free."
        )


async def _remove(daemon: Daemon, removal: Callable[[Any], None]) -> None:
    """Remove also when we are being cancelled. What is not there is fine."""
    with anyio.move_on_after(_REMOVAL_S, shield=True):
        try:
            await daemon.call(removal)
        except DockerError as error:
            if error.status != 404:
                raise
