"""What this machine can enforce, found by trying; and for what it cannot, why not and what to do."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.host import prepare_host
from server.interpreters import find_interpreters, named
from server.sandboxes.base import Limits, Machine, SandboxRefusedError
from server.sandboxes.bubblewrap import stage_bwrap, version_of
from server.sandboxes.cgroups import cgroup
from server.sandboxes.hostview import usr_options
from server.sandboxes.recipe import bwrap_options
from server.sandboxes.seccomp import filter_program
from server.sandboxes.watchdog import free_bytes
from server.settings import Settings
from server.state import State, StateError, open_state, remove_tree

Status = Literal["enforced", "best effort", "refused", "missing"]

TRY_S = 20

TRUE = "/usr/bin/true"


@dataclass(frozen=True)
class Finding:
    """One thing a sandbox rests on: how it is had here, or why not and the ``remedy``."""

    feature: str
    status: Status
    how: str
    remedy: str = ""


@dataclass(frozen=True)
class Kernel:
    """What of this system's set-up is known to forbid user namespaces; None: this kernel has no such switch."""

    userns_clone: int | None = None
    max_user_namespaces: int | None = None
    apparmor_restricts: int | None = None
    container: bool = False


def diagnose(settings: Settings) -> tuple[Finding, ...]:
    """Try everything the local sandbox rests on. Takes about a second; makes the state folder if it is missing."""
    return (*_essentials(settings), *_limits(), _interpreters(settings), *_unusable_pythons(settings), _git(settings), _docker())


def refusal(settings: Settings) -> str | None:
    """Return the one text to show where the local sandbox cannot work, with its remedy; None where it can."""
    for finding in _essentials(settings):
        if finding.status in ("refused", "missing"):
            return f"The local sandbox cannot work here: {finding.feature}: {finding.how} {finding.remedy}".strip()
    return None


def _essentials(settings: Settings) -> Iterator[Finding]:
    """Yield what no sandbox can do without, up to the first that fails: the others rest on it."""
    if sys.platform != "linux":
        yield Finding("platform", "refused", f"It needs Linux; this is {sys.platform}.", "Use Docker tasks, or WSL2 on Windows.")
        return
    yield (calls := _system_calls())
    if calls.status == "refused":
        return
    try:
        state = open_state(settings)
    except StateError as error:
        yield Finding("state folder", "refused", str(error))
        return
    yield _space(settings, state)
    try:
        bwrap = stage_bwrap(settings, state)
    except SandboxRefusedError as error:
        yield Finding("bubblewrap", "missing", str(error))
        return
    yield Finding("bubblewrap", "enforced", f"{bwrap}, version {'.'.join(map(str, version_of(bwrap)))}")
    yield (namespaces := _namespaces(bwrap, state))
    if namespaces.status == "enforced":
        yield _overlay(settings, state)


def _system_calls() -> Finding:
    machine = os.uname().machine
    try:
        filter_program(machine)
    except SandboxRefusedError as error:
        return Finding("system calls", "refused", str(error))
    return Finding("system calls", "enforced", f"seccomp filter for {machine}")


def _space(settings: Settings, state: State) -> Finding:
    free, reserve = free_bytes(state.root), settings.host_reserve_bytes
    how = f"{state.root}, {free >> 20:,} MiB free; sandboxes run as uid {state.uid}"
    if free > reserve:
        return Finding("state folder", "enforced", how)
    remedy = f"Free some space, or set SEATRIAL_STATE to a folder on another disk: {reserve >> 20:,} MiB are kept for the host."
    return Finding("state folder", "refused", f"{how}.", remedy)


def _namespaces(bwrap: Path, state: State) -> Finding:
    flags = ("user", "pid", "net", "ipc", "uts", "cgroup")
    options = [*(f"--unshare-{flag}" for flag in flags), "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL"]
    said = _try([str(bwrap), *options, "--disable-userns", *usr_options(), "--proc", "/proc", "--dev", "/dev", TRUE], state)
    if said is None:
        return Finding("namespaces", "enforced", "user, pid, net, ipc, uts, cgroup, mount: tried with bubblewrap")
    cause, remedy = explain(said, read_kernel(), bwrap)
    return Finding("namespaces", "refused", f"{cause} (bubblewrap said: {said})", remedy)


def _overlay(settings: Settings, state: State) -> Finding:
    """Start what sandboxes are started with, whole, on a folder of the state."""
    folder = Path(tempfile.mkdtemp(prefix="doctor-", dir=state.shared))
    try:
        for name in ("lower", "upper", "work"):
            (folder / name).mkdir()
        folder.chmod(0o755)
        state.own_tree(folder)
        machine = Machine((folder / "lower",), folder / "upper", folder / "work", {}, python="")
        host = prepare_host(settings, state)
        said = _try([str(host.bwrap), *bwrap_options(machine, host), "/usr/bin/touch", "/workspace/x"], state)
        if said is None and not (folder / "upper" / "x").exists():
            said = "the file written inside did not arrive"
    finally:
        remove_tree(folder)
    if said is None:
        return Finding("overlay", "enforced", "mounted over a folder of the state, and written to")
    return Finding(
        "overlay",
        "refused",
        f"An overlay on {state.root} cannot be mounted ({said}).",
        "It needs Linux 5.11 or newer and a state folder on a local disk with extended attributes (ext4, xfs, btrfs, tmpfs; "
        "not NFS, not another overlay as in a container's own file system): set SEATRIAL_STATE to such a folder.",
    )


def _try(command: Sequence[str], state: State) -> str | None:
    """Run as the sandboxes' user; return None if it went well, else the last line of what it said."""
    drop = {"user": state.uid, "group": state.gid, "extra_groups": ()} if state.drops_user else {}
    try:
        ended = subprocess.run(  # type: ignore[call-overload]
            command, env={}, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=TRY_S, check=False, **drop
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if ended.returncode == 0:
        return None
    lines = ended.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {ended.returncode}"


def read_kernel(root: Path = Path("/")) -> Kernel:
    """Read the switches below ``root``; nothing is tried."""
    switches = root / "proc" / "sys"
    return Kernel(
        userns_clone=_number(switches / "kernel" / "unprivileged_userns_clone"),
        max_user_namespaces=_number(switches / "user" / "max_user_namespaces"),
        apparmor_restricts=_number(switches / "kernel" / "apparmor_restrict_unprivileged_userns"),
        container=any((root / name).exists() for name in (".dockerenv", "run/.containerenv")),
    )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def explain(said: str, kernel: Kernel, bwrap: Path) -> tuple[str, str]:
    """Return the likely cause and the remedy when bubblewrap, having ``said`` that, may not make namespaces."""
    if kernel.userns_clone == 0:
        return (
            "This kernel keeps user namespaces for root (kernel.unprivileged_userns_clone=0).",
            "Run: sudo sysctl -w kernel.unprivileged_userns_clone=1",
        )
    if kernel.max_user_namespaces == 0:
        return (
            "User namespaces are switched off (user.max_user_namespaces=0).",
            "Run: sudo sysctl -w user.max_user_namespaces=15000",
        )
    if kernel.apparmor_restricts:
        return (
            "AppArmor keeps user namespaces for programs with a profile (as Ubuntu 24.04 does).",
            "Give bubblewrap one; run:\n"
            f"sudo tee /etc/apparmor.d/seatrial-bwrap <<'END'\n{_profile(bwrap)}END\n"
            "sudo apparmor_parser -r /etc/apparmor.d/seatrial-bwrap\n"
            "or, for all programs: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        )
    if kernel.container:
        return (
            "This is a container whose engine does not let programs in it make namespaces.",
            "Run seatrial outside, or start the container with: docker run --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined (plus a volume for SEATRIAL_STATE)",
        )
    if "xecvp" in said or ("ermission denied" in said and str(bwrap) in said):
        return (
            f"{bwrap} may not be executed by the sandboxes' user.",
            "Set SEATRIAL_STATE to a folder on a disk that is not mounted noexec, or SEATRIAL_BWRAP to a bubblewrap elsewhere.",
        )
    return (
        "The kernel or a security module refused to make namespaces.",
        "Look into `dmesg` or the audit log for what refused it; SELinux: sudo setsebool -P deny_userns off; a container or a "
        "service manager: allow user namespaces (RestrictNamespaces=no).",
    )


def _profile(bwrap: Path) -> str:
    return f"abi <abi/4.0>,\ninclude <tunables/global>\nprofile seatrial-bwrap {bwrap} flags=(unconfined) {{\n  userns,\n}}\n"


def _limits() -> Iterator[Finding]:
    limits = Limits()
    with cgroup(limits, "doctor") as group:
        enforced = dict(group.enforced)
    instead = {"memory": "watchdog", "processes": "rlimit", "cpu": "not limited"}
    remedy = "Start it in a group of its own, `systemd-run --user --scope seatrial serve`, or as root outside a container."
    for limit, otherwise in instead.items():
        if limit in enforced:
            yield Finding(limit, "enforced", enforced[limit])
        else:
            yield Finding(limit, "best effort", f"{otherwise}: no control group can be made here", remedy)
    yield Finding("disk and files", "best effort", "watchdog and a limit per file; the host's reserve is kept free")


def _interpreters(settings: Settings) -> Finding:
    found = find_interpreters(settings)
    if found:
        return Finding("interpreters", "enforced", ", ".join(f"{one.version_text} ({one.path})" for one in found))
    remedy = "Install one (`uv python install` or the system's packages), or name its executable in SEATRIAL_PYTHONS."
    return Finding("interpreters", "missing", "no CPython 3.9 or newer on PATH", remedy)


def _unusable_pythons(settings: Settings) -> Iterator[Finding]:
    unusable = [str(path) for path in settings.pythons if named(path) is None]
    if unusable:
        remedy = "Name executables of CPython 3.9 or newer, or the folders above their bin, separated by colons."
        yield Finding("SEATRIAL_PYTHONS", "best effort", f"no usable interpreter: {', '.join(unusable)}", remedy)


def _git(settings: Settings) -> Finding:
    path = shutil.which("git", path=os.pathsep.join(map(str, settings.search_path)))
    if path:
        return Finding("git", "enforced", path)
    return Finding("git", "missing", "no git on PATH", "Install git with the system's packages; snapshots are made with it.")


def _docker() -> Finding:
    """Ask the daemon; nothing is started in it."""
    from server.sandboxes.daemon import DockerError, connect  # 200 ms of imports that nothing else here needs

    try:
        daemon = connect()
    except DockerError as error:
        return Finding("docker", "best effort", str(error), "Only tasks that bring a container image need it.")
    daemon.close()
    return Finding("docker", "enforced", f"{daemon.address}, API {daemon.api_version}: for tasks that bring a container image")
