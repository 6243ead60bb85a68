"""The system-call filter of local sandboxes, as a classic BPF program; what it cannot judge it does not let run.

Namespaces hide the host's things, this hides the kernel's rarely used doors: reaching into other processes, new
namespaces and mounts, keys, tracing, modules, and the socket families that no network namespace holds back
(``AF_VSOCK`` talks to the hypervisor from an empty network namespace).
"""

import errno
import struct
from collections.abc import Iterator

from server.sandboxes.base import SandboxRefusedError

# struct seccomp_data: nr, arch, instruction pointer, six arguments of 64 bits (both machines are little endian).
NUMBER, ARCH, FIRST_ARGUMENT = 0, 4, 16

LOAD, EQUAL, GREATER, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x35, 0x45, 0x06
ALLOW, KILL_PROCESS, FAIL = 0x7FFF_0000, 0x8000_0000, 0x0005_0000

X32_BIT = 0x4000_0000
CLONE_NEW = 0x7E02_0000
"""Every CLONE_NEW* flag that clone(2) takes; the kernel reads only the low 32 bits of its flags."""

TERMINAL_INJECTION = (0x5412, 0x541C)
"""ioctls TIOCSTI and TIOCLINUX: they type into the terminal they are called on."""

SOCKET_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: all of them end at the sandbox's own namespaces."""

SEGMENT_BYTES = 1 << 20
"""The largest System V segment: 4,096 may exist, no process need map them, so no watchdog would see them."""

MACHINES = {"x86_64": (0xC000_003E, 0), "amd64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1), "arm64": (0xC000_00B7, 1)}
"""Machine name: AUDIT_ARCH_* and the column of the tables below."""

CLONE, CLONE3, IOCTL, SOCKET, SHMGET = (56, 220), (435, 435), (16, 29), (41, 198), (29, 194)

DENIED = {  # name: numbers on (x86_64, aarch64)
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
}


def filter_program(machine: str) -> bytes:
    """Return the filter for ``machine`` (as `platform.machine` names it), ready for ``bwrap --seccomp``.

    Raises:
        SandboxRefusedError: there is no filter for this machine.
    """
    if machine.lower() not in MACHINES:
        raise SandboxRefusedError(
            f"There is no system-call filter for {machine} machines, so the local sandbox does not run here. "
            "Use an x86_64 or aarch64 machine."
        )
    arch, column = MACHINES[machine.lower()]
    return b"".join(_instructions(arch, column))


def _instructions(arch: int, column: int) -> Iterator[bytes]:
    yield _op(LOAD, ARCH)
    yield _op(EQUAL, arch, 1, 0)
    yield _op(RETURN, KILL_PROCESS)
    yield _op(LOAD, NUMBER)
    yield from _fail_if(AT_LEAST, X32_BIT, errno.EPERM)
    # ENOSYS makes C libraries fall back to clone(2), whose flags are in a register and can be judged here.
    yield from _fail_if(EQUAL, CLONE3[column], errno.ENOSYS)
    for numbers in DENIED.values():
        yield from _fail_if(EQUAL, numbers[column], errno.EPERM)
    yield from _only_for(CLONE[column], _argument(0), *_fail_if(ANY_BIT, CLONE_NEW, errno.EPERM))
    for request in TERMINAL_INJECTION:
        yield from _only_for(IOCTL[column], _argument(1), *_fail_if(EQUAL, request, errno.EPERM))
    yield from _only_for(SOCKET[column], _argument(0), *_allow_or_fail(SOCKET_FAMILIES, errno.EAFNOSUPPORT))
    yield from _only_for(SHMGET[column], _argument(1), *_fail_if(GREATER, SEGMENT_BYTES, errno.ENOMEM))
    yield from _only_for(SHMGET[column], _argument(1, high=True), *_fail_if(GREATER, 0, errno.ENOMEM))
    yield _op(RETURN, ALLOW)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _argument(index: int, high: bool = False) -> bytes:
    return _op(LOAD, FIRST_ARGUMENT + 8 * index + 4 * high)


def _fail_if(comparison: int, value: int, code: int) -> tuple[bytes, bytes]:
    return _op(comparison, value, 0, 1), _op(RETURN, FAIL | code)


def _allow_or_fail(values: tuple[int, ...], code: int) -> Iterator[bytes]:
    for value in values:
        yield _op(EQUAL, value, 0, 1)
        yield _op(RETURN, ALLOW)
    yield _op(RETURN, FAIL | code)


def _only_for(number: int, *steps: bytes) -> Iterator[bytes]:
    """Run ``steps`` for one system call; they, or their end, leave its number loaded for what follows."""
    yield _op(EQUAL, number, 0, len(steps) + 1)
    yield from steps
    yield _op(LOAD, NUMBER)
