"""Fetching by digest: real pip configuration, real indexes on disk and on a local port; the user's own index where reachable."""

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Generator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.downloads import fetch_sdist, fetch_wheels
from server.indexes import DownloadError, PipSettings, pip_settings
from server.pins import PinError
from server.settings import Settings
from server.state import State, open_state, remove_tree
from tasks.catalog import load_catalog
from tasks.model import PypiSource

PYTHON = (3, 12)


@pytest.fixture
def state() -> Generator[State]:
    """Yield a state folder below one that the sandboxes' user may enter, which tmp_path is not for root's."""
    folder = Path(tempfile.mkdtemp(prefix="seatrial-test-", dir="/var/tmp"))
    folder.chmod(0o711)
    yield open_state(Settings(state=folder / "state"))
    remove_tree(folder)


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that is the only place where pip is told to look."""
    place = tmp_path / "index"
    place.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def sdist(place: Path, name: str = "small", version: str = "1.0", text: str = "x = 1\n") -> PypiSource:
    """Put a source distribution into ``place`` and return what names it."""
    path = place / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(f"{name}-{version}/{name}.py")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return PypiSource(kind="pypi", name=name, version=version, sha256=digest(path))


def wheel(place: Path, tags: str = "py3-none-any", name: str = "small", version: str = "1.0") -> str:
    """Put a wheel into ``place`` and return its digest."""
    path = place / f"{name}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"tags = {tags!r}\n")
    return digest(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pins(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "requirements.txt"
    path.write_text(text)
    return path


def kept(state: State) -> list[str]:
    return sorted(str(path.relative_to(state.private / "downloads")) for path in (state.private / "downloads").rglob("*"))


def test_a_source_distribution_is_kept_by_its_digest_and_closed_to_others(state: State, index: Path) -> None:
    source = sdist(index)

    path = fetch_sdist(source, state)

    assert path == state.private / "downloads" / source.sha256 / "small-1.0.tar.gz"
    assert digest(path) == source.sha256
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept(state) == [source.sha256, f"{source.sha256}/small-1.0.tar.gz"]


def test_what_is_kept_needs_no_index(state: State, index: Path) -> None:
    source = sdist(index)
    first = fetch_sdist(source, state)
    (index / "small-1.0.tar.gz").unlink()

    assert fetch_sdist(source, state) == first


def test_a_kept_archive_that_changed_on_disk_is_fetched_again(state: State, index: Path) -> None:
    source = sdist(index)
    fetch_sdist(source, state).write_bytes(b"rot")

    assert digest(fetch_sdist(source, state)) == source.sha256


def test_a_wrong_digest_is_refused_with_both_digests_and_nothing_is_kept(state: State, index: Path) -> None:
    source = sdist(index)
    wrong = source.model_copy(update={"sha256": "0" * 64})

    with pytest.raises(DownloadError, match=f"small 1.0 has sha256 {source.sha256}, but {'0' * 64} is expected.*compare"):
        fetch_sdist(wrong, state)

    assert kept(state) == []


def test_a_release_that_is_not_there_is_told(state: State, index: Path) -> None:
    sdist(index, version="2.0")

    with pytest.raises(DownloadError, match=r"do not have the source distribution small 1\.0.*tasks build"):
        fetch_sdist(PypiSource(kind="pypi", name="small", version="1.0", sha256="0" * 64), state)


def test_no_network_is_told_with_what_to_do(state: State, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")  # nobody listens on "discard"

    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9.*Connect to the network.*`seatrial tasks build` once") as refusal:
        fetch_sdist(PypiSource(kind="pypi", name="small", version="1.0", sha256="0" * 64), state)

    assert "secret" not in str(refusal.value)


def test_one_dead_index_does_not_hide_another(state: State, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sdist(index)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")

    assert digest(fetch_sdist(source, state)) == source.sha256


def test_an_archive_too_large_is_refused_and_nothing_is_kept(state: State, index: Path) -> None:
    with (index / "small-1.0.tar.gz").open("wb") as file:
        file.truncate((200 << 20) + 1)

    with pytest.raises(DownloadError, match="larger than 200 MiB"):
        fetch_sdist(PypiSource(kind="pypi", name="small", version="1.0", sha256="0" * 64), state)

    assert kept(state) == []


def test_nothing_of_an_archive_is_run(state: State, index: Path, tmp_path: Path) -> None:
    path = index / "small-1.0.tar.gz"
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("setup.py", "pyproject.toml"):
            info = tarfile.TarInfo(f"small-1.0/{name}")
            data = trap.encode() if name == "setup.py" else b"[build-system]\nrequires = []\nbackend-path = ['.']\n"
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    fetch_sdist(PypiSource(kind="pypi", name="small", version="1.0", sha256=digest(path)), state)

    assert not (tmp_path / "ran").exists()


@pytest.fixture
def served(index: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Path, list[str]]]:
    """Serve a simple index over HTTP; yield its folder of files and the list of what was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    root = index / "www"
    (root / "simple/small").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple/")
    yield root / "simple/small", asked
    server.shutdown()
    thread.join()
    server.server_close()


def list_page(folder: Path, *, hashes: bool = True) -> None:
    links = [
        f'<a href="{path.name}{f"#sha256={digest(path)}" if hashes else ""}">{path.name}</a>'
        for path in sorted(folder.glob("small-*"))
    ]
    (folder / "index.html").write_text("<!DOCTYPE html><html><body>" + "".join(links) + "</body></html>")


@pytest.mark.parametrize("hashes", [True, False])
def test_an_index_over_http_is_asked_once(state: State, served: tuple[Path, list[str]], hashes: bool) -> None:
    folder, asked = served
    source = sdist(folder)
    list_page(folder, hashes=hashes)

    fetch_sdist(source, state)
    count = len(asked)
    fetch_sdist(source, state)

    assert count == len(asked) > 0


def test_an_index_that_says_another_digest_than_it_serves_is_found_out(state: State, served: tuple[Path, list[str]]) -> None:
    folder, _ = served
    source = sdist(folder)
    list_page(folder)
    (folder / "small-1.0.tar.gz").write_bytes(b"something else")

    with pytest.raises(DownloadError, match=f"has sha256 {digest(folder / 'small-1.0.tar.gz')}, but {source.sha256}"):
        fetch_sdist(source, state)

    assert kept(state) == []


def test_wheels_suit_the_interpreter_they_are_for_and_not_ours(state: State, index: Path, tmp_path: Path) -> None:
    platform = f"linux_{os.uname().machine}"
    digests = {tags: wheel(index, tags) for tags in (f"cp311-cp311-{platform}", f"cp312-cp312-{platform}", "py3-none-any")}
    wheel(index, "cp312-cp312-win_amd64")
    requirements = pins(tmp_path, "small==1.0 " + " ".join(f"--hash=sha256:{one}" for one in digests.values()))

    for version, tags in (((3, 11), f"cp311-cp311-{platform}"), ((3, 12), f"cp312-cp312-{platform}"), ((3, 13), "py3-none-any")):
        (path,) = fetch_wheels(requirements, version, state)
        assert path.name == f"small-1.0-{tags}.whl"


def test_a_source_distribution_is_no_wheel(state: State, index: Path, tmp_path: Path) -> None:
    source = sdist(index)

    with pytest.raises(DownloadError, match=r"do not have a wheel of small 1\.0 for Python 3\.12"):
        fetch_wheels(pins(tmp_path, f"small==1.0 --hash=sha256:{source.sha256}"), PYTHON, state)


def test_markers_comments_and_continued_lines_are_understood(state: State, index: Path, tmp_path: Path) -> None:
    one, two = wheel(index), wheel(index, name="other", version="2.0")
    requirements = pins(
        tmp_path,
        f"# all of it\n\nsmall==1.0 \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{one}  # why\n"
        f'gone==9 ; python_version < "3.10" --hash=sha256:{"1" * 64}\n'
        f'other==2.0 ; sys_platform == "linux" and python_version >= "3.12" --hash=sha256:{two}\n',
    )

    assert [path.name for path in fetch_wheels(requirements, PYTHON, state)] == [
        "small-1.0-py3-none-any.whl",
        "other-2.0-py3-none-any.whl",
    ]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("small", "small is not pinned"),
        ("small>=1.0 --hash=sha256:" + "0" * 64, "small is not pinned"),
        ("small==1.* --hash=sha256:" + "0" * 64, "small is not pinned"),
        ("small @ file:///x --hash=sha256:" + "0" * 64, "small is not pinned"),
        ("small==1.0", "needs '--hash=sha256:'"),
        ("small==1.0 --hash=md5:123", "needs '--hash=sha256:'"),
        ("--index-url http://x", "is an option"),
        ("-r other.txt", "is an option"),
        ("=?", "is not a requirement"),
    ],
)
def test_a_line_that_is_no_pin_is_refused_with_its_number(state: State, tmp_path: Path, line: str, answer: str) -> None:
    with pytest.raises(PinError, match=rf"requirements\.txt line 2: .*{answer}"):
        fetch_wheels(pins(tmp_path, f"# first\n{line}\n"), PYTHON, state)


def test_pips_configuration_is_read_weakest_first() -> None:
    listing = (
        "global.index-url='https://one/simple'\nglobal.extra-index-url='\\nhttps://a\\nhttps://b'\ninstall.timeout='7'\n"
        ":env:.index-url='https://two/simple'\n:env:.no-index='false'\n:env:.trusted-host='c d'\nfreeze.index-url='x'\nnoise\n"
    )

    assert pip_settings(listing) == PipSettings(
        index="https://two/simple", extra_indexes=("https://a", "https://b"), trusted_hosts=("c", "d"), timeout_s=7
    )


def test_two_processes_that_fetch_at_once_both_get_it(state: State, index: Path) -> None:
    source = sdist(index)
    program = (
        "import sys; from pathlib import Path; from server.downloads import fetch_sdist; from server.state import State\n"
        "from tasks.model import PypiSource\n"
        "print(fetch_sdist(PypiSource.model_validate_json(sys.argv[2]), State(Path(sys.argv[1]), 0, 0)))\n"
    )
    command = [sys.executable, "-c", program, str(state.root), source.model_dump_json()]
    root = Path(__file__).parent.parent.parent
    both = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]

    answers = [process.communicate(timeout=60)[0].strip() for process in both]

    assert answers == [str(state.private / "downloads" / source.sha256 / "small-1.0.tar.gz")] * 2
    assert kept(state) == [source.sha256, f"{source.sha256}/small-1.0.tar.gz"]


@pytest.fixture
def users_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()


@pytest.mark.parametrize("task_id", sorted(load_catalog().tasks))
def test_what_bundled_tasks_name_is_on_the_users_index(state: State, users_own_index: None, task_id: str) -> None:
    task = load_catalog().find(task_id)
    assert task.facts.snapshot.kind == task.facts.solution.kind == "pypi"
    try:
        found = [fetch_sdist(task.facts.snapshot, state), fetch_sdist(task.facts.solution, state)]
        wheels = fetch_wheels(task.folder / task.facts.environment.requirements, PYTHON, state)
    except DownloadError as error:
        if "could not be fetched" in str(error):
            pytest.skip(str(error))
        raise

    assert [digest(path) for path in found] == [task.facts.snapshot.sha256, task.facts.solution.sha256]
    assert len(wheels) == 5
