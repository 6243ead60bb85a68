"""A submission put over a container in which nothing of it has run yet."""

from collections.abc import Iterable, Sequence

from server.blobs import Blobs
from server.patches import Change, Patch
from server.sandboxes import containers
from server.sandboxes.daemon import Daemon
from server.tars import Member, packed
from server.verifiers.base import VerifierError

_SETUP_S = 300.0
_BATCH = 200
"""Paths in one command line."""


async def put_patch(
    daemon: Daemon, container: str, patch: Patch, blobs: Blobs, roots: Sequence[str], owner: tuple[int, int]
) -> None:
    """Put what of ``patch`` (paths relative to ``/``) lies below ``roots`` into a container.

    Raises:
        VerifierError: the container could not be made ready, or the patch contradicts itself.
    """
    changes = [change for change in patch.changes if any(_below("/" + change.path, root) for root in roots)]
    kept = [change for change in changes if change.kind != "deleted"]
    files = {change.path for change in kept}
    for path in files:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in files for depth in range(1, len(parts))):
            raise VerifierError(f"{path[:200]!r} lies below what the same patch says is a file.")
    parents = sorted({"/".join(one.path.split("/")[:depth]) for one in changes for depth in range(1, one.path.count("/") + 1)})
    parents = [one for one in parents if any(_below("/" + one, root) and "/" + one != root.rstrip("/") for root in roots)]
    for at in range(0, len(parents), _BATCH):
        script = 'for path; do [ ! -L "/$path" ] || rm -f -- "/$path" || exit 1; done'
        await as_root(daemon, container, ["sh", "-c", script, "sh", *parents[at : at + _BATCH]])
    gone = ["/" + change.path for change in changes]  # what is replaced too: a folder of the image must not stay below a file
    for at in range(0, len(gone), _BATCH):
        await run_in(daemon, container, ["rm", "-rf", "--", *gone[at : at + _BATCH]], "{}:{}".format(*owner))
    if kept:
        members = (Member(change.path, blobs.get(change.sha256), change.executable, change.kind == "link") for change in kept)
        await containers.put(
            daemon, container, "/", packed(members, *owner, folders=await _missing(daemon, container, kept, roots))
        )


async def _missing(daemon: Daemon, container: str, kept: Iterable[Change], roots: Sequence[str]) -> list[str]:
    """Return the folders below the roots that the container does not have yet: they become the submission's."""
    wanted = set()
    for change in kept:
        parts = change.path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth])
            if any(_below("/" + folder, root) and "/" + folder != root.rstrip("/") for root in roots):
                wanted.add(folder)
    names, there = sorted(wanted), bytearray()
    for at in range(0, len(names), _BATCH):
        script = 'for path; do if [ -d "/$path" ]; then echo 1; else echo 0; fi; done'
        there += await as_root(daemon, container, ["sh", "-c", script, "sh", *names[at : at + _BATCH]])
    return [name for name, known in zip(names, there.split(), strict=True) if known == b"0"]


async def as_root(daemon: Daemon, container: str, argv: list[str]) -> bytes:
    """Do as `run_in`, as root; where the container's own user is not root, root has no rights over others' files."""
    return await run_in(daemon, container, argv, "0:0")


async def run_in(daemon: Daemon, container: str, argv: list[str], user: str) -> bytes:
    """Run a command of the image's own in a container and return what it printed.

    Raises:
        VerifierError: it failed.
    """
    said = bytearray()
    result = await containers.execute(
        daemon, container, argv, env={}, user=user, cwd="/", timeout_s=_SETUP_S, on_output=lambda _, data: said.extend(data)
    )
    if result.exit_code != 0:
        text = said[-300:].decode(errors="replace")
        raise VerifierError(f"The verifier's container could not be made ready ({argv[0]}): {text}")
    return bytes(said)


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")
