"""The rules of the source itself: linters, types, the direction of imports, sizes."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PACKAGES = ("server", "tools", "tasks", "clients")
MODULES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.is_relative_to(ROOT / "tasks/bundled")
)
MAX_LINES = 400
WHOLE = {"server/sandboxes/inner.py"}
"""One file on purpose: it is mounted into sandboxes, where nothing else can be imported."""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([sys.executable, "-m", "ruff", "check", "."], id="ruff check"),
        pytest.param([sys.executable, "-m", "ruff", "format", "--check", "."], id="ruff format"),
        pytest.param([sys.executable, "-m", "mypy"], id="mypy"),
        pytest.param([str(BIN / "lint-imports")], id="import-linter"),
    ],
)
def test_a_linter_finds_nothing(command: list[str]) -> None:
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_modules_are_small_enough_to_read() -> None:
    lines = {str(module.relative_to(ROOT)): len(module.read_text().splitlines()) for module in MODULES}

    assert {name: count for name, count in lines.items() if count > MAX_LINES and name not in WHOLE} == {}


def test_the_environment_is_read_in_one_module() -> None:
    readers = {str(module.relative_to(ROOT)) for module in MODULES if _reads_environment(module.read_text())}

    assert readers <= {"server/settings.py"}


def test_every_module_has_its_place_in_the_layers() -> None:
    modules = {
        f"server.{path.stem}" for path in (ROOT / "server").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }

    assert modules - {"server.__init__"} == _layers()


def test_clients_may_see_of_the_server_only_the_record() -> None:
    assert set(_contract("clients")["forbidden_modules"]) == {"tools"} | _layers() - {
        "server.__main__",
        "server.records",
        "server.store",
    }


def test_nothing_is_imported_from_bundled_tasks() -> None:
    assert not list((ROOT / "tasks/bundled").rglob("__init__.py"))


def _contract(id: str) -> dict[str, list[str]]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(contract for contract in contracts if contract["id"] == id)


def _layers() -> set[str]:
    placed = {name.strip() for layer in _contract("layers")["layers"] for name in layer.split(":")}
    return {name for name in placed if name.startswith("server.")}


def _reads_environment(source: str) -> bool:
    return any(word in source for word in ("os.environ", "os.getenv", "import environ", "import getenv"))
