"""What a local sandbox sees of the host: an allow-list of ``/usr`` and a few files of ``/etc``, as options for bwrap.

Programs, libraries and headers are shown; places where packages are installed are not, for they hold releases of the
very packages that tasks are about. Every mount costs each opening of a sandbox some 0.15 ms, so the list is short.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

USR = Path("/usr")

WHOLE = ("bin", "sbin", "include")
"""Children of ``/usr`` shown as they are."""

LIBRARY_PARTS = re.compile(r"gcc|git-core|locale|file|terminfo|python3\.\d+|os-release")
"""Children of ``/usr/lib`` shown where it is not itself the folder of the shared libraries."""

LIBEXEC_PARTS = re.compile(r"gcc|git-core")

SHARE_PARTS = re.compile(r"ca-certificates|cmake-[\d.]+|git-core|misc|perl|zoneinfo")

ONLY_LINKS = ("ssl",)
"""Children of ``/usr/lib`` of which only the symlinks (into ``/etc``) matter; a symlink costs no mount."""

PACKAGES = re.compile(
    r"site-packages|dist-packages|node_modules.*|nodejs|python-wheels|_bundled|jvm|google-cloud-sdk|gems|vendor_ruby|rustlib|dotnet"
)
"""Folders masked wherever they turn up below something shown."""

ETC_TRIES = ("alternatives", "ld.so.cache", "pki/tls/certs", "protocols", "services", "ssl/certs", "ssl/openssl.cnf")

ETC_FILES: Mapping[str, bytes] = MappingProxyType(
    {
        "passwd": b"root:x:0:0:root:/root:/usr/sbin/nologin\n"
        b"agent:x:1000:1000:agent:/home/agent:/bin/bash\n"
        b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
        "group": b"root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
        "hosts": b"127.0.0.1 localhost box\n::1 localhost\n",
        "nsswitch.conf": b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
        "resolv.conf": b"",
    }
)


def etc_files() -> Mapping[str, bytes]:
    """Return the files that a sandbox's ``/etc`` gets instead of the host's, by name."""
    return ETC_FILES


def etc_options() -> tuple[str, ...]:
    """Return the bwrap options for what a sandbox's ``/etc`` shares with the host's; they go after `etc_files`."""
    paths = [f"/etc/{name}" for name in ETC_TRIES]
    return tuple(part for path in paths for part in ("--ro-bind-try", path, path))


@cache
def usr_options() -> tuple[str, ...]:
    """Return the bwrap options that show ``/usr`` and the top-level names that lead to it.

    The host is looked at once per process (some tens of ms); what is installed later stays hidden until the next start,
    except inside folders that are shown whole.
    """
    return (*_binds(), *_masks(_shown()), *_top_level())


def _shown() -> Iterator[Path]:
    """Yield every file, folder or symlink of ``/usr`` that sandboxes see."""
    for name in WHOLE:
        yield USR / name
    for library in (USR / "lib", USR / "lib64"):
        yield from _library_parts(library)
    yield from _children(USR / "libexec", LIBEXEC_PARTS)
    yield from _children(USR / "share", SHARE_PARTS)


def _library_parts(library: Path) -> Iterator[Path]:
    if library.is_symlink() or _holds_libc(library):  # Arch; Fedora's lib64
        yield library
        return
    yield from _children(library, LIBRARY_PARTS)
    for child in _children(library, re.compile(r"[a-z0-9_]+-linux-[a-z0-9_]+")):  # Debian's folder per architecture
        if _holds_libc(child):
            yield child
    for folder in (*(library / name for name in ONLY_LINKS), *((library,) if library.name == "lib64" else ())):
        yield from (child for child in _children(folder, re.compile(".*")) if child.is_symlink())


def _children(folder: Path, names: re.Pattern[str]) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        yield from (folder / name for name in sorted(os.listdir(folder)) if names.fullmatch(name))


def _holds_libc(folder: Path) -> bool:
    return (folder / "libc.so.6").exists()


def _binds() -> Iterator[str]:
    for path in _shown():
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.exists() and _public(path):
            yield from ("--ro-bind", str(path), str(path))


def _public(path: Path) -> bool:
    """Whether every user may look at ``path``: sandboxes run as a user of no group."""
    needed = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
    return path.stat().st_mode & needed == needed


def _masks(shown: Iterator[Path]) -> Iterator[str]:
    for top in shown:
        if top.is_symlink() or not top.is_dir() or (top.parent == USR and top.name in WHOLE):
            continue
        for folder, below, _ in os.walk(top):
            hidden = [name for name in below if PACKAGES.fullmatch(name)]
            below[:] = [name for name in below if name not in hidden]
            for path in (f"{folder}/{name}" for name in hidden):
                if not os.path.islink(path):  # noqa: PTH114 - a string all along
                    yield from ("--size", "4096", "--tmpfs", path, "--remount-ro", path)


def _top_level() -> Iterator[str]:
    for path in (Path("/bin"), Path("/sbin"), Path("/lib"), Path("/lib64")):
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        elif path.is_dir():
            yield from ("--ro-bind", str(path), str(path))
