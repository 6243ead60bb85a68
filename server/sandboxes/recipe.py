"""The bubblewrap options of a local sandbox, in the order that matters, and the command line of the process inside."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from server.sandboxes.base import WORKDIR, Machine

_OUR_PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}" if sys.version_info[3] == "final" else ""
"""The Python that reads our bytecode: compiling the inner process's source would take a quarter of its start."""
_INSIDE = "/.inner.py"
"""Source or bytecode: Python looks at what is in it."""
INNER = Path(__file__).with_name("inner.py")


@dataclass(frozen=True)
class Host:
    """What this machine gives to every sandbox, found once per process.

    ``view`` are the bubblewrap options that show the allowed part of ``/usr`` and ``/etc``; ``inner`` is a copy of the inner
    process's source that the sandboxes' user can read, and ``compiled`` its bytecode for the Python that runs us.
    """

    bwrap: Path
    view: Sequence[str]
    inner: Path
    compiled: Path
    uid: int
    gid: int
    reserve_bytes: int


def inner_argv(machine: Machine) -> list[str]:
    """Return the command line of the inner process, with the limits that it puts on itself and so on its commands."""
    limits = machine.limits
    rlimits = (f"nproc={limits.processes}", "nofile=8192", "core=0", f"fsize={limits.disk_bytes}")
    return [machine.python, "-I", "-S", "-E", "-B", "-X", "utf8", _INSIDE, *rlimits]


def bwrap_options(machine: Machine, host: Host) -> list[str]:
    """Return the options of the recipe, in the order that matters: see bwrap(1)."""
    options = [
        *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"),
        *("--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--disable-userns", "--hostname", "box"),
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
        *host.view,
        *("--proc", "/proc", "--dev", "/dev"),
        *_hidden_proc(),
        *("--size", str(machine.limits.tmp_bytes), "--perms", "1777", "--tmpfs", "/tmp"),  # noqa: S108 - inside
        *("--size", str(machine.limits.tmp_bytes), "--perms", "1777", "--tmpfs", "/dev/shm"),  # noqa: S108 - inside
        *("--size", str(machine.limits.tmp_bytes), "--perms", "0700", "--tmpfs", "/home/agent"),
    ]
    for inside, outside in machine.read_only.items():
        options += ["--ro-bind", str(outside), inside]
    for inside, outside in machine.writable.items():
        options += ["--bind", str(outside), inside]
    for lower in machine.lowers:
        options += ["--overlay-src", str(lower)]
    options += ["--overlay", str(machine.upper), str(machine.work), WORKDIR]
    for inside, outside in machine.covered.items():
        options += ["--ro-bind", str(outside), inside]
    for path in machine.masked:
        options += _mask(path)
    ours = PurePosixPath(machine.python).name == _OUR_PYTHON
    options += ["--ro-bind", str(host.compiled if ours else host.inner), _INSIDE, "--chdir", WORKDIR]
    return [*options, "--remount-ro", "/dev", "--remount-ro", "/"]


def _mask(path: str) -> list[str]:
    """Hide a folder (its path ends in ``/``) or a file."""
    if path.endswith("/"):
        return ["--size", "4096", "--perms", "0555", "--tmpfs", path, "--remount-ro", path]
    return ["--ro-bind", "/dev/null", path]


def _hidden_proc() -> list[str]:
    options = []
    for name in ("kcore", "keys", "timer_list", "sched_debug", "sysrq-trigger"):
        if Path("/proc", name).exists():
            options += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in ("acpi", "scsi", "fs", "irq", "bus"):
        if Path("/proc", name).is_dir():
            options += _mask(f"/proc/{name}/")
    return options
