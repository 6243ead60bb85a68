"""Finding, choosing and staging the interpreters that this machine has."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from server.elf import ElfError, read_dynamic, set_runpath
from server.interpreters import (
    Interpreter,
    InterpreterError,
    choose_interpreter,
    find_interpreters,
    stage_interpreter,
)
from server.sandboxes.bubblewrap import stage_bwrap
from server.sandboxes.hostview import usr_options
from server.settings import Settings
from server.state import open_state

OWN = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"


def host_settings() -> Settings:
    path = os.environ.get("PATH", "").split(":")
    return Settings(state=Path("/nonexistent"), search_path=tuple(map(Path, path)))


def test_our_own_version_is_preferred_when_it_fits() -> None:
    assert choose_interpreter("", host_settings()).version_text == OWN
    assert choose_interpreter(f"=={OWN}", host_settings()).version == sys.version_info[:3]


def test_a_version_that_is_not_there_is_an_error_that_says_what_to_install() -> None:
    with pytest.raises(InterpreterError, match=r"No Python >=3\.99 .*found: .*SEATRIAL_PYTHONS"):
        choose_interpreter(">=3.99", host_settings())


def test_a_specifier_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(InterpreterError, match="specifier"):
        choose_interpreter("three", host_settings())


def test_every_interpreter_is_itself_and_named_once() -> None:
    found = find_interpreters(host_settings())

    assert len({one.path for one in found}) == len(found)
    assert len({one.digest for one in found}) == len(found)
    for one in found:
        assert one.path.read_bytes()[:4] == b"\x7fELF"
        assert one.path.is_relative_to(one.prefix)


def test_a_virtual_environment_stands_for_its_base(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", symlinks=False)
    (chosen,) = {one for one in find_interpreters(Settings(Path("/x"), pythons=(tmp_path / "env",))) if one.version_text == OWN}

    assert not chosen.path.is_relative_to(tmp_path)


def test_what_is_named_in_the_settings_comes_first_and_scripts_are_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "shims"
    folder.mkdir()
    shim = folder / "python3.98"
    shim.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    shim.chmod(0o755)
    bases = [one for one in find_interpreters(host_settings()) if one.version_text != OWN]

    found = find_interpreters(Settings(Path("/x"), pythons=(shim, *(one.path for one in bases[:1])), search_path=(folder,)))

    assert not (tmp_path / "ran").exists()
    if bases:
        assert found[0] == bases[0]


def test_what_hides_behind_pyenv_shims_is_found(tmp_path: Path) -> None:
    own = choose_interpreter("", host_settings())
    (tmp_path / "shims").mkdir()
    (tmp_path / "shims" / own.name).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "versions" / "x").mkdir(parents=True)
    (tmp_path / "versions" / "x" / "bin").symlink_to(own.path.parent)

    assert own in find_interpreters(Settings(Path("/x"), search_path=(tmp_path / "shims",)))


MODULES = "ssl, ctypes, sqlite3, hashlib, zlib, lzma, bz2, socket, json, multiprocessing, asyncio"

CHECK = f"""
import {MODULES}, os, sys
assert sys.prefix == sys.base_prefix == "/opt/python", sys.prefix
assert os.path.exists(json.__cached__) and json.loads.__code__.co_filename == json.__file__
assert not [path for path in sys.path if "packages" in path], sys.path
libraries = {{line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}}
print(sys.version_info[:3], sorted(path for path in libraries if not path.startswith(("/usr/lib", "/opt/python/", "/lib"))))
"""


def interpreters_here() -> list[Interpreter]:
    return [one for one in find_interpreters(host_settings()) if one.version >= (3, 11, 0)]


@pytest.mark.parametrize("interpreter", interpreters_here(), ids=lambda one: f"{one.version_text} in {one.prefix}")
def test_a_staged_interpreter_runs_in_a_sandbox_without_its_prefix(interpreter: Interpreter, state_folder: Path) -> None:
    settings = Settings(state=state_folder / "state")
    state = open_state(settings)
    staged = stage_interpreter(interpreter, state)
    flags = ("--unshare-user", "--unshare-pid", "--unshare-net", "--uid", "1000", "--gid", "1000", "--clearenv")
    ended = subprocess.run(
        [
            *(str(stage_bwrap(settings, state)), *flags, *usr_options(), "--proc", "/proc", "--dev", "/dev"),
            *("--ro-bind", str(staged), "/opt/python", interpreter.inside, "-I", "-c", CHECK),
        ],
        env={},
        user=state.uid if state.drops_user else None,
        group=state.gid if state.drops_user else None,
        extra_groups=[] if state.drops_user else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (ended.stdout, ended.stderr) == (f"{interpreter.version} []\n", "")
    names = {path.name for path in staged.rglob("*")}
    assert {"python", "python3", interpreter.name, "include" if "include" in names else "lib"} <= names
    assert not {"site-packages", "dist-packages", "test", "idlelib", "_bundled", "EXTERNALLY-MANAGED"} & names
    assert {path.lstat().st_uid for path in staged.rglob("*")} == {state.uid}
    assert stage_interpreter(interpreter, state) == staged


def test_an_interpreter_that_cannot_be_copied_is_an_error_and_leaves_nothing(state_folder: Path, tmp_path: Path) -> None:
    own = choose_interpreter("", host_settings())
    broken = Interpreter(own.path, own.version, own.prefix, tmp_path, "0" * 64)
    state = open_state(Settings(state=state_folder / "state"))

    with pytest.raises(InterpreterError, match="SEATRIAL_PYTHONS"):
        stage_interpreter(broken, state)
    assert list((state.shared / "interpreters").iterdir()) == []


def test_a_library_path_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    own = choose_interpreter("", host_settings())
    copy = tmp_path / "python"
    copy.write_bytes(own.path.read_bytes())

    with pytest.raises(ElfError, match="no room"):
        set_runpath(copy, "x" * 500)
    with pytest.raises(ElfError, match="not a 64-bit"):
        read_dynamic(Path(__file__))
