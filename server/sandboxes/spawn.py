"""Starting a program as another user without a fork, which costs a large process milliseconds (subprocess forks for that)."""

import ctypes
import os
import signal
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_NUMBERS = {
    "x86_64": {"setgroups": 116, "setresuid": 117, "setresgid": 119},
    "aarch64": {"setgroups": 159, "setresuid": 147, "setresgid": 149},
}
"""System calls by architecture; `server.sandboxes.seccomp` refuses all others."""

_KEEP = -1


@dataclass(frozen=True)
class Process:
    """A process by a descriptor that cannot come to mean another one."""

    pid: int
    pidfd: int

    def kill(self) -> None:
        """Send SIGKILL.

        Raises:
            ProcessLookupError: it has ended.
        """
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> None:
        """Wait for the end of a child of ours, and let go of it."""
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def spawn(program: Sequence[str], files: Sequence[int], keep: Collection[int], uid: int, gid: int) -> Process:
    """Start a program from this thread, in a session of its own, with an empty environment, as ``uid`` and ``gid`` alone.

    ``files`` become its descriptors 0, 1 and 2; it also has those of ``keep``, and no others.
    """
    actions: list[tuple[int, ...]] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)]
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in keep]
    defaults = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores these, and a program would inherit that
    with _real_user(uid, gid):
        pid = os.posix_spawn(
            program[0], list(program), {}, file_actions=actions, resetids=True, setsid=True, setsigmask=(), setsigdef=defaults
        )
    return Process(pid, os.pidfd_open(pid))


@contextmanager
def _real_user(uid: int, gid: int) -> Generator[None]:
    """Let these be the real user and group of this thread: ``resetids`` makes them a child's only ones.

    What we may do does not change. The kernel knows credentials by thread; libc's functions (and so `os`) change them in
    every thread in turn, which takes ten times as long and would reach what other threads start meanwhile.
    """
    if (uid, gid) == (os.geteuid(), os.getegid()):
        yield
        return
    user, group, groups = os.getuid(), os.getgid(), os.getgroups()
    try:
        _call("setgroups", 0, None)
        _call("setresgid", gid, _KEEP, _KEEP)
        _call("setresuid", uid, _KEEP, _KEEP)
        yield
    finally:
        _call("setresuid", user, _KEEP, _KEEP)
        _call("setresgid", group, _KEEP, _KEEP)
        _call("setgroups", len(groups), (ctypes.c_uint32 * len(groups))(*groups))


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_NUMBERS[os.uname().machine][name], *arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _inheritable() -> Generator[int]:
    """Yield our descriptors that a child would get: those that whoever started us left open."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # such as the one that listed them
            if int(name) > 2 and os.get_inheritable(int(name)):
                yield int(name)
