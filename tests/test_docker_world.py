"""The docker tests' own footing: their image is there, their leak check finds leaks, their fixture tasks are whole."""

import tomllib
from pathlib import Path

import docker_world
import pytest
from docker_world import FIXTURES, STATE_LABEL, daemon, labelled, leaving_nothing, need_docker, owner_of

TASKS = sorted(path for path in FIXTURES.iterdir() if path.is_dir())


def test_the_image_has_what_fixture_tasks_need(docker_image: str) -> None:
    command = ["bash", "-ec", "git --version; python3 -m venv --without-pip /tmp/made; /tmp/made/bin/python --version"]
    with daemon() as client:
        printed = client.containers.run(docker_image, command, remove=True, network_mode="none").decode()

    assert "git version" in printed
    assert "Python 3." in printed


def test_a_leak_fails_its_test_and_is_removed(docker_image: str, tmp_path: Path) -> None:
    labels = {STATE_LABEL: owner_of(tmp_path)}
    failed = pytest.raises(AssertionError, match=r"left behind: container .*, network seatrial-test-leak .*, volume ")
    with failed, leaving_nothing(tmp_path), daemon() as client:
        client.containers.create(docker_image, ["true"], network_mode="none", labels=labels)
        client.networks.create("seatrial-test-leak", internal=True, labels=labels)
        client.volumes.create(labels=labels)

    assert labelled(owner=owner_of(tmp_path)) == {}


def test_what_belongs_to_another_state_folder_is_left_alone(docker_image: str, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    (theirs / "private").mkdir(parents=True)
    (theirs / "private" / "identity").write_text("theirs")
    with daemon() as client:
        volume = client.volumes.create(labels={STATE_LABEL: owner_of(theirs)})
        try:
            with leaving_nothing(tmp_path / "ours"):
                pass
            assert volume.id in labelled(owner=owner_of(theirs))
        finally:
            volume.remove()


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_docker_a_test_skips_unless_ci_has_promised_it(
    required: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("SEATRIAL_DOCKER_REQUIRED", required)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    docker_world.docker_reason.cache_clear()
    try:
        with pytest.raises(outcome, match="no Docker daemon answers"):
            need_docker()
    finally:
        docker_world.docker_reason.cache_clear()


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_a_fixture_task_is_whole(task: Path) -> None:
    steps = tomllib.loads((task / "task.toml").read_text()).get("steps") or [{}]
    for step in steps:
        folder = task / "steps" / step["name"] if step else task
        for needed in ("instruction.md", "tests/test.sh", "solution/solve.sh"):
            assert (folder / needed).is_file(), folder / needed
        assert (folder / "solution/solve.sh").stat().st_mode & 0o111
