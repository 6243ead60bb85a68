"""How bubblewrap is started, and what is done about one that a dead server left half started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.sandboxes.local import reap_orphans
from server.sandboxes.spawn import spawn

OTHER = 61_001 if os.geteuid() == 0 else os.geteuid()
GROUP = 61_001 if os.geteuid() == 0 else os.getegid()


def test_a_program_gets_the_user_and_the_descriptors_it_is_given_and_nothing_else(tmp_path: Path) -> None:
    ours = os.getresuid(), os.getresgid(), os.getgroups()
    with (tmp_path / "said").open("wb") as said, (tmp_path / "secret").open("wb") as secret:
        os.set_inheritable(secret.fileno(), True)

        script = "grep -E '^(Uid|Gid|Groups|CapEff|SigIgn)' /proc/self/status; env; ls /proc/self/fd | wc -l"
        nowhere = os.open(os.devnull, os.O_RDONLY)
        spawn(["/bin/sh", "-c", script], (nowhere, said.fileno(), said.fileno()), (), OTHER, GROUP).reap()
        os.close(nowhere)

    told = dict(line.split(":\t") for line in (tmp_path / "said").read_text().splitlines() if ":\t" in line)
    assert told["Uid"].split() == [str(OTHER)] * 4
    assert told["Gid"].split() == [str(GROUP)] * 4
    assert int(told["CapEff"], 16) == 0
    assert int(told["SigIgn"], 16) & 1 << (signal.SIGPIPE - 1) == 0
    lines = (tmp_path / "said").read_text().split()
    assert lines[-1] == "4", "0, 1, 2 and the one of ls"
    assert not any(line.startswith(("HOME=", "PATH=/root")) for line in lines)
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == ours


def test_a_program_that_is_not_there_is_an_error_and_changes_nothing() -> None:
    ours = os.getresuid(), os.getresgid(), os.getgroups()

    with pytest.raises(FileNotFoundError):
        spawn(["/no/such/program"], (0, 1, 2), (), OTHER, GROUP)

    assert (os.getresuid(), os.getresgid(), os.getgroups()) == ours


def test_what_dead_servers_left_half_started_is_killed_and_what_living_ones_start_is_not() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    started = []
    for server in (dead.pid, os.getpid()):
        log = os.memfd_create(f"seatrial-log-{server}")
        started.append(subprocess.Popen(["/bin/sleep", "60"], stderr=log, start_new_session=True))
        os.close(log)
    orphan, wanted = started

    try:
        reap_orphans(os.geteuid())

        assert orphan.wait(timeout=10) == -signal.SIGKILL
        assert wanted.poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()
