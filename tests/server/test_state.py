"""The state folder: builders that race and die, locks, and folders that cannot be used."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.settings import Settings
from server.state import StateError, open_state, opened, remove_tree

BUILDER = """
import os, signal, sys, time
from pathlib import Path
from server.settings import Settings
from server.state import open_state
state = open_state(Settings(Path(sys.argv[1])))

def fill(folder):
    (folder / "builder").write_text(sys.argv[2])
    with open(sys.argv[3], "a") as log:
        log.write(sys.argv[2] + "\\n")
    if sys.argv[2] == "dies":
        print("halfway", flush=True)
        time.sleep(600)

state.make("things")
print(state.publish(state.shared / "things" / "one", fill) / "builder", flush=True)
"""


def builder(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(folder / "state"), name, str(folder / "log")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_builders_at_once_build_once(state_folder: Path) -> None:
    builders = [builder(state_folder, name) for name in ("a", "b", "c")]
    answers = {one.communicate(timeout=60)[0] for one in builders}

    assert len(answers) == 1
    assert len((state_folder / "log").read_text().split()) == 1
    assert Path(answers.pop().strip()).read_text() in ("a", "b", "c")


def test_what_a_killed_builder_left_is_removed_and_built_again(state_folder: Path) -> None:
    with builder(state_folder, "dies") as dying:
        assert dying.stdout is not None
        assert dying.stdout.readline() == "halfway\n"
        dying.send_signal(signal.SIGKILL)
    things = state_folder / "state" / "shared" / "things"
    assert [path.name for path in things.iterdir()] != ["one"]

    with builder(state_folder, "lives") as living:
        living.communicate(timeout=60)

    assert [path.name for path in things.iterdir()] == ["one"]
    assert (things / "one" / "builder").read_text() == "lives"


def test_a_builder_that_fails_leaves_nothing(state_folder: Path) -> None:
    state = open_state(Settings(state_folder / "state"))

    def fill(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        state.publish(state.make("things") / "one", fill)
    assert list((state.shared / "things").iterdir()) == []


def test_a_lock_is_free_when_its_holder_is_dead(state_folder: Path) -> None:
    state = open_state(Settings(state_folder / "state"))
    holder = (
        "import sys, time; from pathlib import Path; from server.settings import Settings; from server.state import open_state\n"
        "open_state(Settings(Path(sys.argv[1]))).try_lock('l'); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(state.root)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert state.try_lock("l") is None
        process.kill()

    taken = state.try_lock("l")
    assert taken is not None
    assert state.try_lock("l") is None, "also not twice in one process"
    os.close(taken)


def test_private_folders_are_closed_and_shared_ones_belong_to_the_sandboxes(state_folder: Path) -> None:
    state = open_state(Settings(state_folder / "state"))

    assert state.private.stat().st_mode & 0o777 == 0o700
    assert state.shared.stat().st_mode & 0o777 == 0o700
    assert state.shared.stat().st_uid == state.uid
    assert state.make("a", "b").stat().st_uid == state.uid
    assert state.uid != 0


def test_it_may_be_opened_again_and_again(state_folder: Path) -> None:
    (state_folder / "state").mkdir(0o755)
    first = open_state(Settings(state_folder / "state"))

    assert open_state(Settings(state_folder / "state")) == first


@pytest.mark.skipif(os.geteuid() != 0, reason="sandboxes of an ordinary user run as that user")
def test_a_folder_that_sandboxes_cannot_reach_is_refused(state_folder: Path) -> None:
    (state_folder / "home").mkdir(0o700)

    with pytest.raises(StateError, match=r"lies below .*home, which other users may not enter.*Set SEATRIAL_STATE") as refused:
        open_state(Settings(state_folder / "home" / "state"))
    assert "/var/lib/seatrial" in str(refused.value)


def test_a_folder_that_cannot_be_made_is_refused(state_folder: Path) -> None:
    (state_folder / "file").touch()

    for place in (state_folder / "file" / "state", state_folder / "file", Path("/proc/state")):
        with pytest.raises(StateError, match=r"cannot be written .*Set SEATRIAL_STATE"):
            open_state(Settings(place))


@pytest.mark.parametrize("folder", [True, False])
def test_what_its_owner_closed_is_opened_and_closed_again(tmp_path: Path, folder: bool) -> None:
    place = tmp_path / "closed"
    place.mkdir() if folder else place.touch()
    place.chmod(0)

    with opened(place, os.O_DIRECTORY if folder else 0) as fd:
        assert os.listdir(fd) == [] if folder else os.read(fd, 1) == b""

    assert place.stat().st_mode & 0o777 == 0


def test_a_symlink_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")

    with pytest.raises(OSError, match="symbolic links"), opened(tmp_path / "link", 0):
        pass


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    remove_tree(tmp_path / "none")
    (tmp_path / "dangling").symlink_to("none")

    remove_tree(tmp_path / "dangling")

    assert list(tmp_path.iterdir()) == []
