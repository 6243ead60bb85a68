"""Changes made in a real sandbox: read as a patch, written as a layer, mounted again, and the same tree is seen."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from boxes import Box

from server.blobs import BlobError, Blobs
from server.patches import MAX_CHANGES, Change, Patch, PatchError, load_patch, read_patch, write_layer
from server.state import remove_tree

pytestmark = pytest.mark.anyio

TREE: Mapping[str, str] = {
    "README.md": "read me\n",
    "run.sh": "#!/bin/sh\n",
    "pkg/__init__.py": "",
    "pkg/core.py": "one = 1\n",
    "pkg/deep/a.py": "a\n",
    "pkg/deep/b.py": "b\n",
    "tests/test_core.py": "def test(): pass\n",
    "docs/index.txt": "index\n",
    "old.pyc": "bytecode",
    ".git/HEAD": "ref\n",
}
"""The snapshot; `run.sh` is executable, `link` is a symlink to README.md, `to-pkg` one to a folder."""


@pytest.fixture
def box(shared_state_folder: Path, state_folder: Path) -> Box:
    made = Box(shared_state_folder, state_folder)
    tree = made.fresh("tree")
    for path, text in TREE.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("README.md")
    (tree / "to-pkg").symlink_to("pkg")
    made.state.own_tree(tree)
    made.lowers = [tree]
    return made


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    folder = tmp_path / "blobs"
    folder.mkdir()
    return Blobs(folder)


def kinds(patch: Patch) -> dict[str, str]:
    return {change.path: change.kind + ("*" if change.executable else "") for change in patch.changes}


CHANGES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "nothing": ("true", {}),
    "an edit": ("echo two >> pkg/core.py", {"pkg/core.py": "file"}),
    "an edit of the same length": ("echo 'one = 2' > pkg/core.py", {"pkg/core.py": "file"}),
    "an edit that is taken back": ("cp README.md x; echo >> README.md; mv x README.md", {}),
    "new files": ("mkdir -p new/er; echo 1 > new/er/f; : > empty", {"new/er/f": "file", "empty": "file"}),
    "an empty folder": ("mkdir nothing", {}),
    "touch": ("touch README.md pkg pkg/core.py", {}),
    "modes that do not count": ("chmod 600 README.md; chmod 700 pkg; chmod 711 run.sh", {}),
    "the executable bit": ("chmod +x README.md; chmod -x run.sh", {"README.md": "file*", "run.sh": "file"}),
    "a deleted file": ("rm README.md", {"README.md": "deleted"}),
    "a deleted folder": ("rm -r pkg/deep", {"pkg/deep/a.py": "deleted", "pkg/deep/b.py": "deleted"}),
    "an emptied folder": ("rm docs/index.txt", {"docs/index.txt": "deleted"}),
    "a folder made again": (
        "rm -r pkg; mkdir -p pkg/deep; echo new > pkg/core.py; echo a > pkg/deep/a.py",
        {"pkg/__init__.py": "deleted", "pkg/core.py": "file", "pkg/deep/b.py": "deleted"},
    ),
    "a folder made again, in a folder made again": (
        "rm -r pkg; mkdir -p pkg/deep; touch pkg/__init__.py; cp -r pkg/deep pkg/more; mkdir docs/pkg",
        {"pkg/core.py": "deleted", "pkg/deep/a.py": "deleted", "pkg/deep/b.py": "deleted"},
    ),
    "a folder made again, as it was": ("cp -r docs x; rm -r docs; cp -r x docs; rm -r x", {}),
    "a folder made again, empty": ("rm -r docs; mkdir docs", {"docs/index.txt": "deleted"}),
    "a moved file": ("mv README.md READ.md", {"README.md": "deleted", "READ.md": "file"}),
    "a moved folder": ("mv docs pages", {"docs/index.txt": "deleted", "pages/index.txt": "file"}),
    "a file in place of a folder": ("rm -r docs; echo f > docs", {"docs": "file", "docs/index.txt": "deleted"}),
    "a folder in place of a file": (
        "rm README.md; mkdir README.md; echo > README.md/x",
        {"README.md": "deleted", "README.md/x": "file"},
    ),
    "an empty folder in place of a file": ("rm README.md; mkdir README.md", {"README.md": "deleted"}),
    "a symlink in place of a file": ("ln -sf run.sh README.md", {"README.md": "link"}),
    "a symlink in place of a folder": ("rm -r docs; ln -s /etc docs", {"docs": "link", "docs/index.txt": "deleted"}),
    "a file in place of a symlink": ("rm link; echo f > link", {"link": "file"}),
    "a folder in place of a symlink": ("rm to-pkg; mkdir to-pkg; echo > to-pkg/x", {"to-pkg": "deleted", "to-pkg/x": "file"}),
    "another target": ("ln -sfn docs to-pkg", {"to-pkg": "link"}),
    "the same target": ("rm link; ln -s README.md link", {}),
    "a link with the content of its target": ("rm link; printf README.md > link", {"link": "file"}),
    "a dangling symlink": ("ln -s /nowhere/at/all gone; ln -s gone/x more", {"gone": "link", "more": "link"}),
    "names with everything in them": (
        "for n in '-rf' ' ' 'ü' $'q\"\\t\\\\'; do printf x > \"$n\"; done; printf x > $'a\\nb'; printf x > $'\\xff\\xfe';",
        {"a\nb": "file", "\udcff\udcfe": "file", "-rf": "file", " ": "file", "ü": "file", 'q"\t\\': "file"},
    ),
    "a symlink to bytes": ("ln -s $'\\xff' bytes", {"bytes": "link"}),
    "hard links": ("echo h > one; ln one two; ln README.md three", {"one": "file", "two": "file", "three": "file"}),
    "what is no file": (
        "mkfifo pipe; python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('sock')\"; rm README.md; mkfifo README.md",
        {"README.md": "deleted"},
    ),
    "what is left out": (
        "mkdir -p .git/x pkg/__pycache__ .pytest_cache; touch .git/x/y pkg/__pycache__/core.pyc pkg/m.pyc;"
        "touch .pytest_cache/z; rm old.pyc .git/HEAD",
        {},
    ),
    "what is left out, folder and all": ("rm -rf .git; echo x > .git", {}),
    "closed files and folders": (
        "mkdir closed; echo x > closed/x; echo y > y; chmod 0 y closed pkg/core.py docs",
        {"closed/x": "file", "y": "file"},
    ),
    "marks of the overlay made by hand": (
        'mkdir -p pkg/mine; setfattr -n user.overlay.opaque -v y pkg pkg/mine 2>/dev/null || python3 -c "'
        "import os; [os.setxattr(p, 'user.overlay.opaque', b'y') for p in ('pkg', 'pkg/mine')];"
        "os.setxattr('README.md', 'user.overlay.whiteout', b'y')\"; echo x > pkg/mine/x",
        {"pkg/mine/x": "file"},
    ),
    "many deep folders": ("d=$(printf 'd/%.0s' {1..100}); mkdir -p $d; echo x > $d/x", {"d/" * 100 + "x": "file"}),
    "a set-user-id file": ("cp run.sh s; chmod 6755 s", {"s": "file*"}),
}


@pytest.mark.parametrize(("script", "expected"), CHANGES.values(), ids=CHANGES.keys())
async def test_a_change_is_read_and_made_again(box: Box, blobs: Blobs, script: str, expected: Mapping[str, str]) -> None:
    upper = await box.change(script)

    patch = read_patch(upper, box.lowers, blobs)

    assert kinds(patch) == expected
    again = load_patch(blobs.get(patch.digest))
    assert (again.changes, again.digest) == (patch.changes, patch.digest)
    layer = box.fresh("layer")
    write_layer(again, blobs, box.lowers, layer)
    box.state.own_tree(layer)
    await box.run("chmod -R u+rwX .", upper, box.lowers)  # a second life of the same workspace
    assert await box.seen("second", [*box.lowers, layer]) == await box.seen("first", box.lowers, upper=upper)


async def test_reading_a_change_leaves_it_as_it_is(box: Box, blobs: Blobs) -> None:
    upper = await box.change("mkdir d; echo x > d/x; chmod 0 d/x d")

    read_patch(upper, box.lowers, blobs)

    assert (upper / "d").lstat().st_mode & 0o777 == 0


async def test_a_deleted_folder_is_gone_for_imports_too(box: Box, blobs: Blobs) -> None:
    patch = read_patch(await box.change("rm -r pkg"), box.lowers, blobs)
    layer = box.fresh("layer")
    write_layer(patch, blobs, box.lowers, layer)
    box.state.own_tree(layer)

    assert await box.run("test ! -e pkg && echo gone", box.fresh("second"), [*box.lowers, layer]) == "gone\n"


async def test_what_is_no_file_is_named(box: Box, blobs: Blobs) -> None:
    patch = read_patch(await box.change("mkdir d; mkfifo pipe d/pipe"), box.lowers, blobs)

    assert sorted(patch.dropped) == ["d/pipe", "pipe"]


TOO_MUCH: Mapping[str, tuple[str, str]] = {
    "a sparse file": ("python3 -c \"open('huge', 'wb').truncate(3 << 30)\"", "too large at 'huge'"),
    "many large files": ("for n in 1 2 3 4 5; do python3 -c \"open('f$n', 'wb').truncate(60 << 20)\"; done", "256 MiB"),
    "too many files": (
        f"mkdir m; cd m; python3 -c \"for n in range({MAX_CHANGES + 1}): open(f'{{n}}', 'w')\"",
        "more than 20,000",
    ),
    "folders without end": ("python3 -c \"import os\nfor n in range(3000): os.mkdir('d'); os.chdir('d')\"", "deeper than 128"),
    "long paths": ("d=$(printf '%0250d/' 1 2 3 4 5); mkdir -p $d; echo x > $d/x", "longer than 1,024"),
    "a larger version of a file": ("python3 -c \"open('README.md', 'wb').truncate(65 << 20)\"", "64 MiB"),
}


@pytest.mark.parametrize(("script", "said"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
async def test_too_much_is_refused_with_what_to_take_away(box: Box, blobs: Blobs, script: str, said: str) -> None:
    upper = await box.change(script)

    with pytest.raises(PatchError, match=said) as refused:
        read_patch(upper, box.lowers, blobs)

    assert "Remove" in str(refused.value)
    assert len(str(refused.value)) < 1000


async def test_a_file_of_100_gigabytes_is_not_read(box: Box, blobs: Blobs) -> None:
    upper = await box.change("true")
    with (upper / "huge").open("wb") as file:
        file.truncate(100 << 30)
    (upper / "huge").chmod(0o644)

    with pytest.raises(PatchError, match="107,374,182,400 bytes"):
        read_patch(upper, box.lowers, blobs)


async def test_an_unchanged_file_of_any_size_is_no_change(box: Box, blobs: Blobs) -> None:
    upper = await box.change("touch README.md; chmod 600 README.md")

    assert read_patch(upper, box.lowers, blobs) == Patch(())


async def test_a_planted_symlink_stays_below_what_lies_over_it(box: Box, blobs: Blobs) -> None:
    patch = read_patch(await box.change("rm -r tests; ln -s /etc tests; rm -r docs; ln -s ../.. docs"), box.lowers, blobs)
    layer, hidden = box.fresh("layer"), box.fresh("hidden")
    write_layer(patch, blobs, box.lowers, layer)
    (hidden / "tests").mkdir()
    (hidden / "tests" / "test_core.py").write_text("hidden\n")
    os.setxattr(hidden / "tests", "user.overlay.opaque", b"y")
    for one in (layer, hidden):
        box.state.own_tree(one)

    seen = await box.seen("view", [*box.lowers, layer, hidden])

    assert [path for path in seen if path.startswith("tests")] == ["tests/test_core.py"]
    assert seen["docs"] == ["link", "../.."]


async def test_several_lower_layers_count_as_one_tree(box: Box, blobs: Blobs) -> None:
    setup = box.fresh("setup")
    await box.run("rm -r docs; mkdir docs; echo 2 > docs/second.txt; rm README.md; echo made > made", setup, box.lowers)
    lowers = [*box.lowers, setup]
    upper = box.fresh("upper")
    await box.run("rm -r docs made; mkdir docs; echo > README.md", upper, lowers)

    patch = read_patch(upper, lowers, blobs)

    assert kinds(patch) == {"README.md": "file", "docs/second.txt": "deleted", "made": "deleted"}
    layer = box.fresh("layer")
    write_layer(patch, blobs, lowers, layer)
    box.state.own_tree(layer)
    again = await box.seen("view", [*lowers, layer])
    assert {path for path in again if path.startswith(("docs", "made", "READ"))} == {"README.md"}


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a//b", ".", "a/\0"])
def test_a_manifest_cannot_name_a_place_outside(blobs: Blobs, tmp_path: Path, path: str) -> None:
    patch = Patch((Change(path, "file", blobs.put(b"x"), 1),))
    (tmp_path / "layer").mkdir()

    with pytest.raises(PatchError, match="not a path inside"):
        write_layer(patch, blobs, (), tmp_path / "layer")


def test_a_damaged_blob_is_not_used(blobs: Blobs, tmp_path: Path) -> None:
    name = blobs.put(b"content")
    (tmp_path / "blobs" / name[:2] / name).write_bytes(b"c0ntent")

    with pytest.raises(BlobError, match="damaged"):
        blobs.get(name)
    with pytest.raises(BlobError, match="cannot be read"):
        blobs.get("0" * 64)


REMOVED: Mapping[str, Callable[[Path], object]] = {
    "closed folders": lambda top: [(top / "a").mkdir(), (top / "a" / "f").touch(), (top / "a").chmod(0)],
    "symlinks": lambda top: [(top / "l").symlink_to(top.parent / "kept"), (top / "m").symlink_to(top.parent / "kept" / "file")],
    "special files": lambda top: os.mkfifo(top / "pipe"),
    "a great depth": lambda top: subprocess.run(
        [sys.executable, "-c", "import os\nfor n in range(3000): os.mkdir('d' * 200); os.chdir('d' * 200)"], cwd=top, check=True
    ),
}


@pytest.mark.parametrize("make", REMOVED.values(), ids=REMOVED.keys())
def test_a_tree_is_removed_whatever_is_in_it(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "kept").mkdir(0o500)
    (tmp_path / "kept" / "file").touch() if os.geteuid() == 0 else None
    top = tmp_path / "top"
    top.mkdir()
    make(top)

    remove_tree(top)

    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o500


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_same_holds_for_an_ordinary_user() -> None:
    project = Path(__file__).parents[2]
    python = Path("/usr/bin", f"python3.{sys.version_info[1]}")
    env = {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join([str(project), *(path for path in sys.path if "site-packages" in path)]),
    }
    ordinary: dict[str, Any] = {"user": 61_003, "group": 61_003, "extra_groups": [], "env": env, "cwd": "/"}
    probe = [str(python), "-c", f"import os, pytest, mcp, sqlalchemy; os.listdir({str(project)!r})"]
    if not python.exists() or subprocess.run(probe, capture_output=True, **ordinary).returncode:
        pytest.skip("no interpreter, or not the project, can be read by other users")
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(project / "pyproject.toml")]
    command += [
        __file__,
        "-k",
        "closed or marks or everything or leaves_it or removed",
        "--basetemp",
        "/var/tmp/seatrial-ordinary",
    ]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=300, **ordinary)
    finally:
        remove_tree(Path("/var/tmp/seatrial-ordinary"))

    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-2000:]
