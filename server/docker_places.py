"""The place of one workspace on docker: a container that outlives its sandboxes, and its change as the daemon sees it."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from anyio import from_thread

from server.bench import Bench
from server.blobs import Blobs
from server.container_life import healthy, networked
from server.patches import MAX_FILE_BYTES, Before, Found, Kind, Patch, PatchError, keep, left_out
from server.places import NO_NETWORK, Habits
from server.sandboxes import containers
from server.sandboxes.base import Sandbox, SandboxError, SandboxRefusedError
from server.sandboxes.containers import ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.docker import open_sandbox
from server.tars import Member, packed, unpacked
from tasks.container import Collect, Healthcheck, Network

_FOLDER, _LINK = 1 << 31, 1 << 27
"""Bits of Go's os.FileMode, in which Docker tells what a path is."""
_SINGLY = 60
"""Up to so many changed paths are fetched one by one; of more, whole folders."""
_KINDS = {0: "changed", 1: "added", 2: "deleted"}
_ENV = {"TERM": "dumb", "PAGER": "cat", "GIT_PAGER": "cat"}


@dataclass(frozen=True)
class Plan:
    """What a workspace's container is: ``roots`` are the absolute paths that a submission consists of."""

    spec: ContainerSpec
    network: Network
    roots: Sequence[str]
    folders: Sequence[str] = ()
    """Made for everybody to write in before the container starts."""
    uploads: Mapping[int, bytes] = field(default_factory=dict)
    """By step: a tar put into the workdir before the step begins."""
    healthcheck: Healthcheck | None = None
    base: str = "/"
    """What the paths of patches are relative to; every root lies below it."""
    user: str = ""
    """Whom commands run as; empty: the container's own."""
    collect: Sequence[Collect] = ()
    """Run in the container when the agent is done, before its change is read."""
    shell: str = "/bin/bash"


class DockerPlace:
    """See `server.places.Place`. The container is named after the trial, so that a later server finds it."""

    def __init__(self, plan: Plan, bench: Bench) -> None:
        self._plan, self._bench = plan, bench
        self._shell = plan.shell
        self._egress: Mapping[str, str] = {}

    @property
    def habits(self) -> Habits:
        """See `Place.habits`."""
        return Habits(self._plan.spec.workdir, self._shell, {**_ENV, **self._egress}, "grep", told(self._plan.network))

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Sandbox]:
        """See `Place.open`."""
        daemon = await self._bench.docker.daemon()
        async with AsyncExitStack() as stack:
            container = await self._container(daemon)
            spec = replace(self._plan.spec, user=self._plan.user or self._plan.spec.user)
            sandbox = await stack.enter_async_context(open_sandbox(daemon, container, spec, self._bench.background))
            self._egress = await stack.enter_async_context(networked(self._plan.network, container, self._plan.spec, self._bench))
            self._shell = sandbox.shell
            if sandbox.workdir.rstrip("/") != self._plan.spec.workdir.rstrip("/"):
                raise SandboxRefusedError(
                    f"The workdir {self._plan.spec.workdir} is a link to {sandbox.workdir}, so what changes there would not be "
                    f'seen. Set environment.workdir = "{sandbox.workdir}" in task.toml.'
                )
            if self._plan.healthcheck is not None:
                await healthy(daemon, container, self._plan.healthcheck, self._plan.spec.workdir)
            yield sandbox

    async def _container(self, daemon: Daemon) -> str:
        """Return the container, made if it is not there; it may be running, left by a dead server."""
        if found := await _find(daemon, self._plan.spec.name):
            return found
        container = await containers.create(daemon, self._plan.spec)
        try:
            if self._plan.folders:
                tar = packed((), folders=[path.strip("/") for path in self._plan.folders], folder_mode=0o777)
                await containers.put(daemon, container, "/", tar)
            if upload := self._plan.uploads.get(0):
                await containers.put(daemon, container, self._plan.spec.workdir, upload)
        except BaseException:
            await containers.remove(daemon, container)
            raise
        return container

    async def patch(self, blobs: Blobs) -> Patch:
        """See `Place.patch`."""
        daemon = await self._bench.docker.daemon()
        container = await _find(daemon, self._plan.spec.name)
        if container is None:
            raise SandboxError("The workspace's container is gone: somebody removed it from outside. Open another workspace.")
        await containers.kill(daemon, container)
        if self._plan.collect:
            await self._collected(daemon, container)
        dropped: list[str] = []
        base = self._plan.base.strip("/")
        found = await self._found(daemon, container, dropped)
        if await _find(daemon, self._plan.spec.name) is None:
            raise SandboxError("The workspace's container was removed from outside while its change was read.")
        return keep([replace(one, path=one.path.removeprefix(base).lstrip("/")) for one in found], dropped, blobs)

    async def _collected(self, daemon: Daemon, container: str) -> None:
        """Run the task's collect commands; one that fails leaves its artifact as it is, as with Harbor."""
        await containers.start(daemon, container)
        for one in self._plan.collect:
            argv, cwd = ["sh", "-c", one.command], self._plan.spec.workdir
            await containers.execute(
                daemon, container, argv, env={}, user=one.user, cwd=cwd, timeout_s=one.timeout_s, on_output=lambda *_: None
            )
        await containers.kill(daemon, container)

    def differences(self) -> Iterator[Found]:
        """See `Place.differences`."""
        yield from from_thread.run(self._differences)

    async def _differences(self) -> list[Found]:
        daemon = await self._bench.docker.daemon()
        container = await _find(daemon, self._plan.spec.name)
        if container is None:
            return []
        found = await self._found(daemon, container, [])
        modified = [one for one in found if one.before is not None and not one.before.size][:_SINGLY]
        reference = await containers.create(daemon, replace(self._plan.spec, name=f"{self._plan.spec.name}-ref"))
        try:
            before = await _contents(daemon, reference, ["/" + one.path for one in modified], [])
        finally:
            await containers.remove(daemon, reference)
        prefix = self._plan.spec.workdir.strip("/") + "/"
        return [shown for one in found if (shown := _compared(one, before.get("/" + one.path), prefix)) is not None]

    async def _found(self, daemon: Daemon, container: str, dropped: list[str]) -> list[Found]:
        """Return the change below the roots, paths relative to ``/``, sorted."""
        changed = {
            path: _KINDS[kind]
            for path, kind in await containers.changes(daemon, container)
            if any(path == root or path.startswith(root.rstrip("/") + "/") for root in self._plan.roots) and not _ignored(path)
        }
        parents = {path.rpartition("/")[0] for path in changed}
        present = [path for path, kind in changed.items() if kind != "deleted" and path not in parents]
        members = await _contents(daemon, container, present, dropped)
        found = [
            Found(path.lstrip("/"), "deleted", False, 0, Before(0, lambda: b""), lambda: b"")
            for path, kind in changed.items()
            if kind == "deleted"
        ]
        for path, member in members.items():
            now: Kind = "link" if member.link else "file"
            before = Before(0, lambda: b"") if changed.get(path) == "changed" else None
            found.append(Found(path.lstrip("/"), now, member.executable, len(member.data), before, partial(_data, member)))
        return sorted(found, key=lambda one: one.path)

    async def begin_step(self, number: int) -> None:
        """See `Place.begin_step`."""
        if upload := self._plan.uploads.get(number):
            daemon = await self._bench.docker.daemon()
            await containers.put(daemon, self._plan.spec.name, self._plan.spec.workdir, upload)

    async def remove(self) -> None:
        """See `Place.remove`."""
        daemon = await self._bench.docker.daemon()
        await containers.remove(daemon, self._plan.spec.name)


def told(network: Network) -> str:
    """Return what an agent is told of its network."""
    if network.mode == "no-network":
        return NO_NETWORK
    if network.mode == "public":
        return "There is a network."
    return f"The network reaches only these hosts, through an HTTP proxy: {', '.join(network.allowed_hosts)}."


def _data(member: Member) -> bytes:
    return member.data


def _ignored(path: str) -> bool:
    return any(left_out(part) for part in path.split("/") if part)


def _compared(found: Found, before: Member | None, prefix: str) -> Found | None:
    """Return a difference with what was there before, by its path in the workdir; None if it is none after all."""
    now = found.read()
    if before is not None:
        if found.kind != "deleted" and (before.data, before.executable) == (now, found.executable):
            return None
        found = replace(found, before=Before(len(before.data), partial(_data, before)))
    path = found.path.removeprefix(prefix) if found.path.startswith(prefix) else "/" + found.path
    return replace(found, path=path)


async def _find(daemon: Daemon, name: str) -> str | None:
    found = await daemon.find(lambda api: api.inspect_container(name))
    return str(found["Id"]) if found is not None else None


async def _contents(daemon: Daemon, container: str, paths: Sequence[str], dropped: list[str]) -> dict[str, Member]:
    """Return the files and symlinks at ``paths`` (absolute); what is neither goes into ``dropped``, folders into nothing."""
    if len(paths) <= _SINGLY:
        return await _singly(daemon, container, paths, dropped)
    wanted, members = set(paths), dict[str, Member]()
    for folder in _folders(paths):
        try:
            data = await containers.get(daemon, container, folder, 8 * MAX_FILE_BYTES)
        except DockerError:  # what did not change in it is too large, or something in it cannot be read
            below = [path for path in paths if path.startswith(folder.rstrip("/") + "/")]
            members |= await _singly(daemon, container, below, dropped)
            continue
        above = folder.rpartition("/")[0]
        for path, member in unpacked(data or packed(())):
            whole = f"{above}/{path}"
            if whole in wanted and member is not None:
                members[whole] = replace(member, path=whole)
            elif whole in wanted:
                dropped.append(whole.lstrip("/"))
    return members


async def _singly(daemon: Daemon, container: str, paths: Sequence[str], dropped: list[str]) -> dict[str, Member]:
    members = {}
    for path in paths:
        try:
            found = await daemon.find(partial(_taken, container, path))
        except DockerError as error:
            if not error.status:
                raise
            shown = path if len(path) < 200 else f"{path[:200]}..."
            raise PatchError(
                f"{shown!r} cannot be read: a symlink that leads to itself, or too long a path? Remove it."
            ) from error
        if isinstance(found, Member):
            members[path] = found
        elif found == "special":
            dropped.append(path.lstrip("/"))
    return members


def _folders(paths: Sequence[str]) -> list[str]:
    """Return folders that hold all of ``paths``: few, and none inside another."""
    tops = {path.rpartition("/")[0] or "/" for path in paths}
    return sorted(top for top in tops if not any(top != other and top.startswith(other.rstrip("/") + "/") for other in tops))


def _taken(container: str, path: str, api: Any) -> Member | str:
    """Return one path's file or symlink, else what it is: ``folder`` or ``special``."""
    stream, status = api.get_archive(container, path)
    mode, size = int(status["mode"]), int(status["size"])
    if mode & _FOLDER:
        stream.close()
        return "folder"
    if size > MAX_FILE_BYTES:
        stream.close()
        raise PatchError(f"The change is too large at {path!r} ({size:,} bytes). Remove what does not belong to it.")
    data = bytearray()
    for piece in stream:
        data += piece
        if len(data) > MAX_FILE_BYTES + (1 << 20):
            raise PatchError(f"The change is too large at {path!r}. Remove what does not belong to it.")
    for _, member in unpacked(bytes(data)):
        return replace(member, path=path) if member is not None else "special"
    return "special"
