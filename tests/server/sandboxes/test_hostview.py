"""What a sandbox sees of the host, looked at from inside."""

import os
import subprocess
from pathlib import Path

import pytest

from server.sandboxes.bubblewrap import stage_bwrap
from server.sandboxes.hostview import etc_files, etc_options, usr_options
from server.settings import Settings
from server.state import State, open_state

FLAGS = ("--unshare-user", "--unshare-pid", "--unshare-net", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--clearenv")


@pytest.fixture
def settings(state_folder: Path) -> Settings:
    return Settings(state=state_folder / "state")


@pytest.fixture
def state(settings: Settings) -> State:
    return open_state(settings)


def inside(script: str, settings: Settings, state: State) -> str:
    """Run ``script`` in a sandbox of nothing but the view, and return what it prints."""
    command = [str(stage_bwrap(settings, state)), *FLAGS, *usr_options(), *etc_options(), "--proc", "/proc", "--dev", "/dev"]
    ended = subprocess.run(
        [*command, "/bin/sh", "-c", script],
        env={},
        user=state.uid if state.drops_user else None,
        group=state.gid if state.drops_user else None,
        extra_groups=[] if state.drops_user else None,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return ended.stdout


def test_the_usual_tools_work(settings: Settings, state: State) -> None:
    script = "PATH=/usr/bin:/bin; set -e; ls / >/dev/null; grep -c . /proc/mounts >/dev/null; sed --version; tar --version"

    assert "GNU" in inside(script, settings, state)


def test_no_place_where_packages_are_installed_can_be_seen(settings: Settings, state: State) -> None:
    names = ("site-packages", "dist-packages", "node_modules", "nodejs", "python-wheels", "google-cloud-sdk", "jvm", "_bundled")
    tests = " -o ".join(f"-name {name}" for name in names)

    seen = inside(f"find / -xdev -type d \\( {tests} \\) -not -path '/proc/*' -not -empty 2>/dev/null; true", settings, state)

    assert seen == ""


def test_local_sources_and_vendors_are_not_shown(settings: Settings, state: State) -> None:
    shown = inside("ls /usr /usr/share /usr/lib", settings, state).split()

    assert {"bin", "lib", "share"} <= set(shown)
    assert not {"local", "src", "doc", "games", "python3", "jvm", "node_modules", "google-cloud-sdk", "python-wheels"} & set(
        shown
    )


def test_nothing_shown_can_be_written(settings: Settings, state: State) -> None:
    script = "for path in $(ls -d /usr/*/ /usr/lib/*/ /usr/share/*/); do test -w $path && ! test -L ${path%/} && echo $path; done"

    # The folders that hold the mounts belong to the tmpfs of `/`, which the recipe remounts read-only at the end.
    holders = {"/usr/lib/", "/usr/share/", "/usr/lib64/", "/usr/libexec/", "/usr/lib/ssl/"}
    assert set(inside(f"{script}; true", settings, state).split()) <= holders


def test_the_folders_are_few_for_each_mount_costs_every_sandbox() -> None:
    options = usr_options()

    assert options.count("--ro-bind") + options.count("--tmpfs") <= 30


def test_etc_knows_the_agent_and_nobody_of_this_host() -> None:
    files = etc_files()

    assert b"agent:x:1000:1000:agent:/home/agent:/bin/bash\n" in files["passwd"]
    assert files["resolv.conf"] == b""
    assert os.uname().nodename.encode() not in b"".join(files.values())
