"""Content-addressed files: patches' contents, long outputs, logs. Written whole or not at all, never changed."""

import hashlib
import os
import secrets
from pathlib import Path

from tasks.errors import SeaTrialError


class BlobError(SeaTrialError):
    """A blob is missing or its content is not what its name says."""


class Blobs:
    """The blobs of one state folder, named by the SHA-256 (hex) of their content."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes) -> str:
        """Keep ``data`` and return its name."""
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if not path.exists():
            path.parent.mkdir(0o700, exist_ok=True)
            fresh = path.with_name(f".{secrets.token_hex(8)}")
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
            fresh.rename(path)
        return name

    def get(self, name: str) -> bytes:
        """Return the content.

        Raises:
            BlobError: there is none of this name, or the disk changed it.
        """
        try:
            data = self._path(name).read_bytes()
        except OSError as error:
            raise BlobError(f"Blob {name} cannot be read ({error.strerror}). Was the state folder cleaned?") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise BlobError(f"Blob {name} is damaged: its content has another digest. Check the disk.")
        return data

    def _path(self, name: str) -> Path:
        return self._root / name[:2] / name
