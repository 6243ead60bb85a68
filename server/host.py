"""What this machine gives to every local sandbox, prepared once per process and staged in the state folder."""

import hashlib
import py_compile
from importlib.util import MAGIC_NUMBER
from pathlib import Path

from server.sandboxes.bubblewrap import stage_bwrap
from server.sandboxes.hostview import etc_files, etc_options, usr_options
from server.sandboxes.recipe import INNER, Host
from server.settings import Settings
from server.state import State


def prepare_host(settings: Settings, state: State) -> Host:
    """Stage what sandboxes need and return where it lies. The first time copies a few files; later ones only look.

    Raises:
        SandboxRefusedError: there is no bubblewrap that would do.
    """
    etc = dict(etc_files())
    source = INNER.read_bytes()
    digest = hashlib.sha256(repr(sorted(etc.items())).encode() + source + MAGIC_NUMBER).hexdigest()

    def fill(folder: Path) -> None:
        for name, content in etc.items():
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o444)
        (folder / "inner.py").write_bytes(source)
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compiled = str(folder / "inner.pyc")
        py_compile.compile(str(folder / "inner.py"), compiled, "/.inner.py", doraise=True, invalidation_mode=unchecked)
        for name in ("inner.py", "inner.pyc"):
            (folder / name).chmod(0o444)
        state.own_tree(folder)

    state.make("host")
    staged = state.publish(state.shared / "host" / digest, fill)
    view = [*usr_options(), "--dir", "/etc"]
    for name in etc:
        view += ["--ro-bind", str(staged / name), f"/etc/{name}"]
    view += etc_options()
    return Host(
        bwrap=stage_bwrap(settings, state),
        view=view,
        inner=staged / "inner.py",
        compiled=staged / "inner.pyc",
        uid=state.uid,
        gid=state.gid,
        reserve_bytes=settings.host_reserve_bytes,
    )
