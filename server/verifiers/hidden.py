"""The layers of a verification: the submission's patch, and on top of everything the ground truth's tests."""

import hashlib
import shutil
from pathlib import Path, PurePosixPath

from server.bench import Bench
from server.layers import make_opaque, make_whiteout
from server.local_environments import LocalEnvironment
from server.patches import Patch, write_layer
from server.sandboxes.base import WORKDIR
from server.snapshots import find_truth
from server.verifiers.base import VerifierError
from tasks.model import PytestTask

FORMAT = 1
"""Part of a hidden layer's name: raise it when the same truth would give another layer."""


def hidden_layer(task: PytestTask, bench: Bench) -> Path:
    """Return the layer with the ground truth's tests and protected files; made once per task, mounted by verifiers only.

    Raises:
        VerifierError: the ground truth is not there.
    """
    truth = find_truth(task.facts.solution, task.folder, bench.state)
    if truth is None:
        raise VerifierError(f"The ground truth of {task.id} is missing. Run `seatrial tasks build {task.id}`.")
    facts = task.facts.verifier
    owned = [*facts.test_paths]
    single = {*facts.protected, *(parent / "conftest.py" for path in facts.test_paths for parent in path.parents)}
    name = hashlib.sha256(repr((FORMAT, truth.parent.name, sorted(owned), sorted(single))).encode()).hexdigest()

    def fill(layer: Path) -> None:
        for path in (*owned, *sorted(single)):
            if not any(path != other and path.is_relative_to(other) for other in owned):
                _restore(truth, layer, path)
        bench.state.own_tree(layer)

    bench.state.make("hidden")
    return bench.state.publish(bench.state.shared / "hidden" / name, fill)


def covers(task: PytestTask, hidden: Path) -> dict[str, Path]:
    """Return what of the hidden layer is mounted read-only as well: code under test must not rewrite what judges it."""
    facts = task.facts.verifier
    paths = [path for path in (*facts.test_paths, *facts.protected) if not (hidden / path).is_symlink()]
    top = [path for path in paths if not any(path != other and path.is_relative_to(other) for other in paths)]
    return {
        str(PurePosixPath(WORKDIR, path)): hidden / path for path in top if (hidden / path).is_dir() or (hidden / path).is_file()
    }


def _restore(truth: Path, layer: Path, path: PurePosixPath) -> None:
    """Put ``path`` into the layer as the ground truth has it: whole, or gone."""
    source, target = truth / path, layer / path
    target.parent.mkdir(0o755, parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        make_opaque(target)
    elif source.exists() or source.is_symlink():
        shutil.copy2(source, target, follow_symlinks=False)
    else:
        make_whiteout(target)


def patch_layer(patch: Patch, environment: LocalEnvironment, bench: Bench, folder: Path) -> Path:
    """Write ``patch`` as a layer into ``folder``."""
    layer = folder / "patch"
    layer.mkdir(0o755)
    write_layer(patch, bench.blobs, environment.lowers, layer)
    bench.state.own_tree(layer)
    return layer
