"""The state folder: where things lie, who may enter, locks, and folders that appear whole or not at all.

``private/`` (0700, the server's user): store, blobs, downloads, ground truth, locks. No sandbox mounts any of it.
``shared/`` (0700, the sandboxes' user): layers, interpreters, workspaces; sandboxes mount single folders of it.
When we are not root both belong to the same user.
"""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.settings import Settings
from tasks.errors import SeaTrialError


class StateError(SeaTrialError):
    """The state folder cannot be used; the text says why and what to do."""


@dataclass(frozen=True)
class State:
    """An opened state folder. ``uid`` and ``gid`` are those that sandboxes run as."""

    root: Path
    uid: int
    gid: int

    @property
    def private(self) -> Path:
        return self.root / "private"

    @property
    def shared(self) -> Path:
        return self.root / "shared"

    @property
    def identity(self) -> str:
        """A random name of this state folder, by which a Docker daemon that serves several knows what is whose."""
        path = self.private / "identity"
        with self.lock("identity"):
            if not path.exists():
                path.write_text(secrets.token_hex(8))
            return path.read_text()

    @property
    def drops_user(self) -> bool:
        """Whether sandboxes run as another user than this process."""
        return self.uid != os.geteuid()

    def make(self, *parts: str) -> Path:
        """Create and return a folder below ``shared/``, each new part owned by the sandboxes' user."""
        path = self.shared
        for part in parts:
            path = path / part
            with contextlib.suppress(FileExistsError):
                path.mkdir(0o755)
                self.own(path)
        return path

    def own(self, path: Path) -> None:
        """Give ``path`` itself (no symlink followed) to the sandboxes' user."""
        if self.drops_user:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def own_tree(self, top: Path) -> None:
        """Give ``top`` and everything below it to the sandboxes' user."""
        if self.drops_user:
            for folder, _, _, dirfd in os.fwalk(top, follow_symlinks=False):
                os.chown(folder, self.uid, self.gid, follow_symlinks=False)
                for entry in os.listdir(dirfd):
                    os.chown(entry, self.uid, self.gid, dir_fd=dirfd, follow_symlinks=False)

    def publish(self, target: Path, fill: Callable[[Path], None]) -> Path:
        """Return ``target``, calling ``fill`` with an empty folder first if it does not exist yet.

        One builder at a time (a lock beside ``private/``); the folder gets its name only when ``fill`` has returned,
        so nothing half-made is ever seen, and what a dead builder left is removed by the next.
        """
        if target.exists():
            return target
        with self.building(target) as fresh:
            if fresh is not None:
                fill(fresh)
        return target

    @contextmanager
    def building(self, target: Path) -> Generator[Path | None]:
        """Hold the lock of ``target`` and yield an empty folder that takes its name at the end; None if it exists by now."""
        with self.lock("build-" + "-".join(target.relative_to(self.root).parts)):
            if target.exists():
                yield None
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in target.parent.glob(f".{target.name}.*"):
                remove_tree(left)
            fresh = target.parent / f".{target.name}.{secrets.token_hex(4)}"
            fresh.mkdir(0o755)
            try:
                yield fresh
                fresh.rename(target)
            finally:
                if fresh.exists():
                    remove_tree(fresh)

    @contextmanager
    def lock(self, name: str) -> Generator[None]:
        """Hold the named lock, waiting for it. The kernel frees it when the process dies."""
        fd = os.open(self.private / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def unlock(self, name: str, held: int) -> None:
        """Free a lock that `try_lock` gave, for good: its name is not used again."""
        (self.private / "locks" / name).unlink(missing_ok=True)
        os.close(held)

    def try_lock(self, name: str) -> int | None:
        """Take the named lock if it is free and return the descriptor that holds it (close it to free), else None."""
        fd = os.open(self.private / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


def open_state(settings: Settings) -> State:
    """Create what is missing of the state folder and return it.

    Raises:
        StateError: it cannot be written, or the sandboxes' user cannot reach it.
    """
    root = settings.state
    as_root = os.geteuid() == 0
    state = State(
        root,
        settings.sandbox_uid if as_root else os.geteuid(),
        settings.sandbox_uid if as_root else os.getegid(),
    )
    try:
        root.mkdir(0o711, parents=True, exist_ok=True)
        for folder in (state.private, state.shared):
            folder.mkdir(0o700, exist_ok=True)
            folder.chmod(0o700)
        for name in ("locks", "blobs", "downloads", "truth"):
            (state.private / name).mkdir(0o700, exist_ok=True)
        state.own(state.shared)
        if as_root:
            root.chmod(stat.S_IMODE(root.stat().st_mode) | 0o011)
    except OSError as error:
        raise StateError(
            f"The state folder {root} cannot be written ({error.strerror}). "
            "Set SEATRIAL_STATE to a folder of yours, on a disk with space."
        ) from error
    if as_root and (closed := next(_closed_to_others(root), None)):
        raise StateError(
            f"The state folder {root} lies below {closed}, which other users may not enter; as root, sandboxes run as "
            f"uid {state.uid}. Set SEATRIAL_STATE to a folder that they can reach, such as /var/lib/seatrial."
        )
    return state


@contextmanager
def opened(name: str | Path, flags: int, parent: int | None = None) -> Generator[int]:
    """Open a file or folder for reading, if need be with rights that its owner took away; they are as before afterwards.

    No symlink is followed, not even one that takes the place of ``name`` meanwhile.
    """
    flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with ExitStack() as stack:
        try:
            fd = os.open(name, flags, dir_fd=parent)
        except PermissionError:
            handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            stack.callback(os.close, handle)
            mode = os.fstat(handle).st_mode
            if stat.S_ISLNK(mode):
                raise FileNotFoundError(name) from None
            place = Path(f"/proc/self/fd/{handle}")
            place.chmod(stat.S_IMODE(mode) | 0o700)
            stack.callback(place.chmod, stat.S_IMODE(mode))
            fd = os.open(name, flags, dir_fd=parent)
        stack.callback(os.close, fd)
        yield fd


def remove_tree(top: Path) -> None:
    """Remove ``top`` whatever modes its folders have; symlinks are removed, never followed. A missing ``top`` is fine."""
    try:
        status = top.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        top.unlink()
        return
    top.chmod(0o700)
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _empty(folder)
    finally:
        os.close(folder)
    top.rmdir()


def _empty(top: int) -> None:
    """Remove what is in a folder. What lies deeper is moved up first, so that no depth is too much."""
    mark, moved = secrets.token_hex(8), 0
    todo = _without_files(top)
    while todo:
        name = todo.pop()
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            for below in _without_files(folder):
                moved += 1
                os.rename(below, f".{mark}.{moved}", src_dir_fd=folder, dst_dir_fd=top)
                todo.append(f".{mark}.{moved}")
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=top)


def _without_files(folder: int) -> list[str]:
    """Remove everything from a folder but the folders in it; return those, with our rights given back."""
    folders = []
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                Path(f"/proc/self/fd/{handle}").chmod(0o700)  # of what was opened: a symlink in its place is not followed
            finally:
                os.close(handle)
            folders.append(name)
        else:
            os.unlink(name, dir_fd=folder)
    return folders


def _closed_to_others(path: Path) -> Iterator[Path]:
    for parent in path.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            yield parent
