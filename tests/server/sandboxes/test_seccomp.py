"""The filter, tried from inside a sandbox with real system calls; each is shown to work without the filter where it can."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from server.sandboxes.base import SandboxRefusedError
from server.sandboxes.bubblewrap import stage_bwrap
from server.sandboxes.seccomp import DENIED, MACHINES, filter_program
from server.settings import Settings
from server.interpreters import choose_interpreter, stage_interpreter
from server.sandboxes.hostview import usr_options
from server.state import open_state

MACHINE = os.uname().machine
COLUMN = MACHINES[MACHINE][1]
X86 = pytest.mark.skipif(COLUMN != 0, reason="a trick of x86_64")
EPERM, EAGAIN, ENOMEM, EINVAL, ENOSYS, EAFNOSUPPORT = 1, 11, 12, 22, 38, 97

PROBE = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(*numbers):
    ctypes.set_errno(0)
    result = libc.syscall(*(ctypes.c_long(number) for number in numbers))
    return 0 if result >= 0 else ctypes.get_errno()
print(json.dumps({name: call(*numbers) for name, numbers in json.loads(sys.argv[1]).items()}))
"""


class Box:
    """Runs Python code in a sandbox, with and without the filter."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(state=folder / "state", search_path=(Path("/usr/bin"),))
        self.state = open_state(settings)
        self.bwrap = stage_bwrap(settings, self.state)
        self.python = choose_interpreter("", settings)
        self.staged = stage_interpreter(self.python, self.state)

    def run(self, code: str, *arguments: str, filtered: bool = True) -> subprocess.CompletedProcess[str]:
        program = os.memfd_create("filter", 0)
        os.write(program, filter_program(MACHINE))
        os.lseek(program, 0, os.SEEK_SET)
        options = ["--unshare-user", "--unshare-pid", "--unshare-net", "--uid", "1000", "--gid", "1000", *usr_options()]
        options += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", str(self.staged), "/opt/python"]
        options += ["--seccomp", str(program)] if filtered else []
        try:
            return subprocess.run(
                [str(self.bwrap), *options, self.python.inside, "-I", "-S", "-c", code, *arguments],
                env={},
                pass_fds=[program],
                user=self.state.uid if self.state.drops_user else None,
                group=self.state.gid if self.state.drops_user else None,
                extra_groups=[] if self.state.drops_user else None,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        finally:
            os.close(program)

    def call(self, calls: dict[str, tuple[int, ...]], *, filtered: bool = True) -> dict[str, int]:
        """Make each call in one process; return its errno, 0 if it went well."""
        ended = self.run(PROBE, json.dumps(calls), filtered=filtered)
        assert ended.returncode == 0, ended.stderr
        found: dict[str, int] = json.loads(ended.stdout)
        return found


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Box:
    raise NotImplementedError
