"""The local sandbox: bubblewrap, overlay layers, and one process inside for the sandbox's whole life."""

import logging
import os
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from server.sandboxes import seccomp
from server.sandboxes.base import (
    Limits,
    Machine,
    Sandbox,
    SandboxRefusedError,
)
from server.sandboxes.cgroups import Cgroup, cgroup
from server.sandboxes.channel import LocalSandbox
from server.sandboxes.recipe import Host, bwrap_options, inner_argv
from server.sandboxes.spawn import Process, spawn
from server.sandboxes.watchdog import BUSY_S, usage_of, watch

logger = logging.getLogger(__name__)

_START_S = 30.0
_LOG = "seatrial-log-"


@asynccontextmanager
async def open_sandbox(machine: Machine, host: Host, background: TaskGroup, name: str) -> AsyncGenerator[Sandbox]:
    """Start a sandbox over ``machine``; every process in it ends with the block, the files of ``upper`` stay.

    ``background`` outlives the block: it takes the tasks that listen and watch. ``name`` names the cgroup.

    Raises:
        SandboxRefusedError: this machine does not let us isolate; nothing has been run.
    """
    async with AsyncExitStack() as stack:
        limited = stack.enter_context(ExitStack())  # ends last: what is left in a group is killed
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)
        ours.setblocking(False)
        with theirs:
            monitor, log, information = _spawn(machine, host, theirs)
        stack.callback(os.close, log)
        inner = await _inner_pid(monitor, information)
        if inner is None:
            monitor.reap()
            raise SandboxRefusedError(_refusal(log))
        stack.push_async_callback(_end, monitor, inner)
        sandbox = LocalSandbox(ours)
        # The kernel takes as long to move a process as that takes to start: so both at once, and before it forks.
        group = await anyio.to_thread.run_sync(_grouped, limited, machine.limits, name, inner.pid)
        background.start_soon(_listen, sandbox, group)
        stack.callback(sandbox.died, "it was closed")
        sandbox.enforced, sandbox.memory_kills = _enforced(machine.limits, group), group.memory_kills
        with anyio.move_on_after(_START_S):
            await sandbox.ready.wait()
        if sandbox.dead or not sandbox.ready.is_set():
            raise SandboxRefusedError(_refusal(log))
        watching = anyio.CancelScope()
        background.start_soon(_watch, sandbox, watching, inner, machine, host.reserve_bytes)
        stack.callback(watching.cancel)
        yield sandbox


def _grouped(stack: ExitStack, limits: Limits, name: str, pid: int) -> Cgroup:
    """Put a process into a control group of its own, which ends with ``stack``."""
    group = stack.enter_context(cgroup(limits, name))
    group.add(pid)
    return group


def _spawn(machine: Machine, host: Host, channel: socket.socket) -> tuple[Process, int, int]:
    """Start bubblewrap from this thread (it dies with the thread that made it); return it, its log and its information pipe."""
    with ExitStack() as stack:

        def sealed(data: bytes) -> int:
            fd = os.memfd_create("seatrial", 0)
            stack.callback(os.close, fd)
            os.write(fd, data)
            os.lseek(fd, 0, os.SEEK_SET)
            return fd

        information, writing = os.pipe()
        stack.callback(os.close, writing)
        log = os.memfd_create(f"{_LOG}{os.getpid()}", os.MFD_CLOEXEC)
        syscalls = sealed(seccomp.filter_program(os.uname().machine))
        options = [*bwrap_options(machine, host), "--info-fd", str(writing), "--seccomp", str(syscalls)]
        arguments = sealed(b"".join(os.fsencode(option) + b"\0" for option in options))
        program = [str(host.bwrap), "--args", str(arguments), "--", *inner_argv(machine)]
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        stack.callback(os.close, nowhere)
        os.set_inheritable(writing, True)
        monitor = spawn(program, (channel.fileno(), nowhere, log), (writing, syscalls, arguments), host.uid, host.gid)
    return monitor, log, information


async def _inner_pid(monitor: Process, information: int) -> Process | None:
    """Read the inner process's pid as bubblewrap tells it, and close the pipe; None if bubblewrap gave up."""
    os.set_blocking(information, False)
    text = b""
    try:
        with anyio.fail_after(_START_S):
            while b"}" not in text:
                await anyio.wait_readable(information)
                piece = os.read(information, 4096)
                if not piece:
                    return None
                text += piece
        digits = text.partition(b'"child-pid":')[2].strip(b" }\n").split(b",")[0]
        return Process(int(digits), os.pidfd_open(int(digits)))
    except (ProcessLookupError, ValueError):
        return None
    except BaseException:
        monitor.kill()
        monitor.reap()
        raise
    finally:
        os.close(information)


def reap_orphans(uid: int) -> None:
    """Kill what servers that were killed left of sandboxes that they were just starting.

    If bubblewrap dies before it lets its child go on, the child waits for ever; it is known by its log.
    """
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and Path("/proc", name).stat().st_uid == uid:
                orphan = Process(int(name), os.pidfd_open(int(name)))
                try:
                    found = re.fullmatch(rf"/memfd:{_LOG}(\d+) \(deleted\)", str(Path("/proc", name, "fd", "2").readlink()))
                    if found and not Path("/proc", found[1]).exists():
                        orphan.kill()
                finally:
                    os.close(orphan.pidfd)


def _refusal(log: int) -> str:
    said = os.pread(log, 4096, 0).decode(errors="replace").strip() or "it ended without a word"
    return f"This machine did not let bubblewrap make a sandbox: {said}. Run `seatrial doctor` to see why and what to do."


def _enforced(limits: Limits, group: Cgroup) -> dict[str, str]:
    best = {
        "memory": "best effort: watchdog",
        "processes": "rlimit",
        "cpu": "not limited",
        "disk": "best effort: watchdog",
        "files": "best effort: watchdog",
        "tmp": f"tmpfs of {limits.tmp_bytes >> 20} MiB",
        "network": "none: empty namespace",
        "system calls": "seccomp",
    }
    return best | dict(group.enforced)


async def _listen(sandbox: LocalSandbox, group: Cgroup) -> None:
    try:
        await sandbox.listen()
    except Exception:
        logger.exception("Listening to a sandbox failed")
    finally:  # also when the server stops: nobody must wait for an answer that nobody would take in
        sandbox.died(group.kill_reason() or "its first process ended")


async def _watch(sandbox: LocalSandbox, scope: anyio.CancelScope, inner: Process, machine: Machine, reserve: int) -> None:
    """Watch a sandbox. One that is opened again over its limits of disk and files may not grow, but must be let to tidy up."""

    def breach(reason: str) -> None:
        sandbox.died(reason)
        inner.kill()

    with scope:
        try:
            limits = machine.limits
            size, files = await anyio.to_thread.run_sync(usage_of, machine.upper, abandon_on_cancel=True)
            limits = replace(limits, disk_bytes=max(limits.disk_bytes, size), files=max(limits.files, files))
            await anyio.sleep(BUSY_S)  # nothing can have grown yet, and whoever opened it waits for an answer
            await watch(inner.pid, machine.upper, limits, reserve, breach)
        except Exception:
            logger.exception("Watching a sandbox failed")
            breach("its limits could not be watched")


async def _end(monitor: Process, inner: Process) -> None:
    """Kill the inner process, with it its whole PID namespace, and wait until all of it is gone."""
    with anyio.CancelScope(shield=True):
        try:
            inner.kill()
        except ProcessLookupError:
            pass
        finally:
            os.close(inner.pidfd)
        await _exited(monitor)


async def _exited(monitor: Process) -> None:
    with anyio.move_on_after(_START_S) as scope:
        await anyio.wait_readable(monitor.pidfd)
    if scope.cancelled_caught:
        monitor.kill()
    monitor.reap()
