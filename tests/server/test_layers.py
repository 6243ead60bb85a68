"""A stack of layers as the host computes it; `test_patches` compares it with what the kernel shows."""

import os
from pathlib import Path

import pytest

from server.layers import files_below, is_opaque, lookup, make_opaque, make_whiteout, merged, names


@pytest.fixture
def stack(tmp_path: Path) -> list[Path]:
    """Three layers, bottom first."""
    bottom, middle, top = (tmp_path / name for name in ("bottom", "middle", "top"))
    for path in ("a", "d/1", "d/2", "o/old", "f/x", "g"):
        put(bottom, path)
    for path in ("a", "d/3", "o/new", "g/y"):
        put(middle, path)
    make_whiteout(middle / "d" / "1")
    make_opaque(middle / "o")
    put(top, "f")
    put(top, "d/1")
    make_whiteout(top / "a")
    return [bottom, middle, top]


def put(layer: Path, path: str) -> None:
    (layer / path).parent.mkdir(parents=True, exist_ok=True)
    (layer / path).write_text(layer.name)


def test_the_stack_shows_what_an_overlay_would(stack: list[Path]) -> None:
    shown = {path: lower.path.read_text() for path, lower in files_below(merged(stack), "", frozenset())}

    assert shown == {"d/1": "top", "d/2": "bottom", "d/3": "middle", "o/new": "middle", "f": "top", "g/y": "middle"}


def test_some_names_are_left_out(stack: list[Path]) -> None:
    assert {path for path, _ in files_below(merged(stack), "p/", frozenset({"d", "f"}))} == {"p/o/new", "p/g/y"}


def test_a_deletion_hides_what_lies_under_it(stack: list[Path]) -> None:
    assert lookup(merged(stack), "a") is None
    assert lookup(merged(stack[:2]), "a") is not None
    assert "a" not in names(merged(stack))
    assert lookup(merged(stack), "nothing") is None


def test_a_folder_over_a_file_does_not_merge_with_what_is_under_the_file(tmp_path: Path) -> None:
    for layer, path in (("1", "x/old"), ("2", "x"), ("3", "x/new")):
        put(tmp_path / layer, path)

    found = lookup(merged([tmp_path / layer for layer in "123"]), "x")

    assert found is not None
    assert names(found.folders) == ["new"]


def test_a_symlink_is_never_entered(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "etc").symlink_to("/etc")

    found = lookup([tmp_path / "1"], "etc")

    assert found is not None
    assert not found.is_folder
    assert [path for path, _ in files_below([tmp_path / "1"], "", frozenset())] == ["etc"]


def test_only_the_mark_makes_a_folder_opaque(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "user.overlay.opaque", b"n")
    assert not is_opaque(tmp_path)
    make_opaque(tmp_path)
    assert is_opaque(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY)
    assert is_opaque(fd)
    os.close(fd)
    assert not is_opaque(tmp_path / "none")
