"""The filter, tried from inside a sandbox with real system calls; each is shown to work without the filter where it can."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from server.interpreters import choose_interpreter, stage_interpreter
from server.sandboxes.base import SandboxRefusedError
from server.sandboxes.bubblewrap import stage_bwrap
from server.sandboxes.hostview import usr_options
from server.sandboxes.seccomp import DENIED, MACHINES, filter_program
from server.settings import Settings
from server.state import open_state

MACHINE = os.uname().machine
COLUMN = MACHINES[MACHINE][1]
X86 = pytest.mark.skipif(COLUMN != 0, reason="a trick of x86_64")
EPERM, EBADF, ENOMEM, ENOSYS, EAFNOSUPPORT = 1, 9, 12, 38, 97

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
def box(shared_state_folder: Path) -> Box:
    return Box(shared_state_folder)


def number(name: str) -> int:
    return DENIED[name][COLUMN]


def test_every_denied_call_fails_with_eperm(box: Box) -> None:
    answers = box.call({name: (number(name), 0, 0, 0, 0, 0, 0) for name in DENIED})

    assert answers == dict.fromkeys(DENIED, EPERM)


def test_what_the_filter_denies_works_without_it(box: Box) -> None:
    calls = {
        "kcmp": (number("kcmp"), 1, 1, 0, 0, 0),
        "unshare": (number("unshare"), 0x1000_0000),
        "ptrace": (number("ptrace"), 0),
    }

    assert set(box.call(calls, filtered=False).values()) == {0}
    assert set(box.call(calls).values()) == {EPERM}


def test_no_new_namespace_comes_by_clone_and_clone3_is_unknown(box: Box) -> None:
    clone = (56, 220)[COLUMN]
    flags = (0x1000_0000, 0x0002_0000, 0x4000_0000, 0x2000_0000, 0xDEAD_0000_1000_0000)
    answers = box.call({hex(flag): (clone, flag | 17, 0, 0, 0, 0) for flag in flags} | {"clone3": (435, 0, 0)})

    assert answers == dict.fromkeys(map(hex, flags), EPERM) | {"clone3": ENOSYS}


def test_terminal_injection_is_denied_whatever_the_high_bits_say(box: Box) -> None:
    ioctl = (16, 29)[COLUMN]
    requests = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "garbage": 0xDEAD_BEEF_0000_5412, "TIOCGWINSZ": 0x5413}
    answers = box.call({name: (ioctl, -1, request, 0) for name, request in requests.items()})

    assert answers == {"TIOCSTI": EPERM, "TIOCLINUX": EPERM, "garbage": EPERM, "TIOCGWINSZ": EBADF}


def test_only_sockets_that_end_in_the_sandbox_can_be_made(box: Box) -> None:
    socket = (41, 198)[COLUMN]
    families = {"unix": 1, "inet": 2, "inet6": 10, "netlink": 16, "packet": 17, "alg": 38, "vsock": 40}
    answers = box.call({name: (socket, family, 2 if name != "netlink" else 3, 0) for name, family in families.items()})

    allowed = {"unix": 0, "inet": 0, "inet6": 0, "netlink": 0}
    assert answers == allowed | dict.fromkeys(("packet", "alg", "vsock"), EAFNOSUPPORT)


def test_shared_segments_that_nobody_would_see_stay_small(box: Box) -> None:
    shmget = (29, 194)[COLUMN]
    sizes = {"small": 4096, "big": 2 << 20, "huge": (1 << 32) + 4096}
    answers = box.call({name: (shmget, 0, size, 0o1600) for name, size in sizes.items()})

    assert answers == {"small": 0, "big": ENOMEM, "huge": ENOMEM}


def test_programs_notice_nothing_of_it(box: Box) -> None:
    code = """
import ctypes, os, subprocess, threading
threads = [threading.Thread(target=os.getpid) for _ in range(3)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
subprocess.run(["/usr/bin/true"], check=True)
os.close(os.memfd_create("x")), os.close(os.pidfd_open(os.getpid())), os.openpty()
if os.fork() == 0: os._exit(3)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, 0)
libc = ctypes.CDLL(None)
print(libc.syscall(437, -100, b"/", how, 24) > 0)
"""
    ended = box.run(code)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")


@X86
def test_the_x32_numbers_are_denied(box: Box) -> None:
    assert box.call({"getpid": (0x4000_0000 | 39,), "unshare": (0x4000_0000 | 272, 0x1000_0000)}) == {
        "getpid": EPERM,
        "unshare": EPERM,
    }


@X86
def test_a_32_bit_call_kills_its_process(box: Box) -> None:
    code = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b814000000" "cd80" "c3"))  # getpid by int 0x80
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
"""
    assert box.run(code).returncode == 128 + 31


def verdict(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Do what the kernel does with the program, for machines that we are not on."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *(0,) * (6 - len(arguments)))
    value = at = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x06:
            return int(k)
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        else:
            truth = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: bool(value & k)}[code]
            at += if_true if truth else if_false


@pytest.mark.parametrize(("machine", "arch", "column"), [("x86_64", 0xC000_003E, 0), ("aarch64", 0xC000_00B7, 1)])
def test_the_program_of_each_machine_judges_by_that_machines_numbers(machine: str, arch: int, column: int) -> None:
    program = filter_program(machine)
    denied, allowed = 0x0005_0000 | EPERM, 0x7FFF_0000

    assert {verdict(program, arch, numbers[column]) for numbers in DENIED.values()} == {denied}
    assert verdict(program, arch, (56, 220)[column], 17) == allowed
    assert verdict(program, arch, (56, 220)[column], 0x1000_0011) == denied
    assert verdict(program, arch, (0, 63)[column]) == allowed
    assert verdict(program, arch, 437) == allowed
    assert verdict(program, arch ^ 1, (0, 63)[column]) == 0x8000_0000


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(SandboxRefusedError, match="riscv64"):
        filter_program("riscv64")
