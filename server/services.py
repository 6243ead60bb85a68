"""What trials need of this machine, opened together: state folder, store, blobs, host. Imported late: SQLAlchemy is heavy."""

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import to_thread
from anyio.abc import TaskGroup

from server.bench import Bench, Docker
from server.blobs import Blobs
from server.host import prepare_host
from server.sandboxes.base import SandboxRefusedError
from server.sandboxes.cgroups import reap_cgroups
from server.sandboxes.local import reap_orphans
from server.settings import Settings
from server.state import State, open_state, remove_tree

if TYPE_CHECKING:
    from server.store import Store


@dataclass(frozen=True)
class Services:
    """The opened services of one process."""

    store: "Store"
    bench: Bench

    @property
    def state(self) -> State:
        return self.bench.state

    @property
    def blobs(self) -> Blobs:
        return self.bench.blobs

    async def reap_containers(self) -> None:
        """Do as `reap` for what is left on docker, if this state folder ever had containers."""
        if (self.state.private / "docker").exists():
            from server.container_life import reap  # loads the Docker SDK, which only Docker tasks need

            await reap(self.bench, self.is_over)

    def is_over(self, trial: str) -> bool:
        """Say whether a trial has ended, or never was."""
        record = self.store.find_trial(trial)
        return record is None or record.state in ("done", "error")

    def reap(self) -> None:
        """Remove what dead processes left: files of trials that are over, unfinished verifications, half sandboxes, cgroups."""
        for kind, lock in (("workspaces", "trial-"), ("verify", "")):
            folder = self.state.shared / kind
            for left in folder.iterdir() if folder.exists() else ():
                self._reap(kind, left.name, f"{lock}{left.name}")
        reap_orphans(self.state.uid)
        reap_cgroups()

    def _reap(self, kind: str, name: str, lock: str) -> None:
        record = self.store.find_trial(name) if kind == "workspaces" else None
        if record is not None and record.state not in ("done", "error"):
            return  # without a look at its lock: whoever wants to go on with the trial now would find it held
        held = self.state.try_lock(lock)
        if held is None:
            return
        try:
            remove_tree(self.state.shared / kind / name)
            (self.state.private / "locks" / lock).unlink(missing_ok=True)
        finally:
            os.close(held)


def open_bench(settings: Settings, state: State, background: TaskGroup, stack: AsyncExitStack) -> Bench:
    """Return what environments and places are made with; ``stack`` closes it."""
    docker = Docker()
    stack.callback(docker.close)
    host, refused = None, ""
    try:
        host = prepare_host(settings, state)
    except SandboxRefusedError as error:
        refused = str(error)
    return Bench(settings, state, Blobs(state.private / "blobs"), background, docker, host, refused)


async def open_services(settings: Settings, background: TaskGroup, stack: AsyncExitStack) -> Services:
    """Open everything; ``stack`` closes it.

    Raises:
        StateError, StoreError: it cannot be had; the text says why.
    """

    def open_store_and_host() -> Services:
        from server.store import open_store  # 150 ms of imports that a server's first answer must not wait for

        state = open_state(settings)
        store = stack.enter_context(open_store(state.private / "store.db"))
        return Services(store, open_bench(settings, state, background, stack))

    return await to_thread.run_sync(open_store_and_host)
