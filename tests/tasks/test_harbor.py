"""Task folders, read as they lie on disk."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.errors import TaskError
from tasks.harbor import load_task

TASK = """\
schema_version = "1.4"
[task]
name = "seatrial/small"
keywords = ["one", "two"]
[metadata]
title = "A small task"
difficulty = "easy"
language = "python"
[agent]
timeout_sec = 90
[environment]
cpus = 1
memory_mb = 512
[metadata.seatrial.snapshot]
kind = "directory"
path = "environment/repo"
[metadata.seatrial.environment]
requirements = "environment/requirements.txt"
pythonpath = ["."]
[metadata.seatrial.solution]
kind = "directory"
path = "solution/repo"
[metadata.seatrial.verifier]
kind = "pytest"
test_paths = ["tests/"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a task folder with nothing wrong."""
    root = tmp_path / "small"
    for name, text in {
        "task.toml": TASK,
        "instruction.md": "Make it work.\n",
        "README.md": "The answer is 42.\n",
        "environment/requirements.txt": "",
        "environment/repo/code.py": "x = 1\n",
        "solution/repo/code.py": "x = 42\n",
        "tests/fail_to_pass.txt": "# comment\n\ntests/test_a.py::test_new\n",
        "tests/pass_to_pass.txt": "tests/test_a.py::TestIt::test_b\ntests/test_a.py::TestIt::test_a\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def changed(folder: Path, old: str, new: str) -> None:
    text = (folder / "task.toml").read_text()
    assert old in text
    (folder / "task.toml").write_text(text.replace(old, new))


def test_a_task_is_what_its_folder_says(folder: Path) -> None:
    task = load_task(folder)

    assert (task.id, task.title, task.language, task.difficulty) == ("small", "A small task", "python", "easy")
    assert task.keywords == ("one", "two")
    assert task.instruction == "Make it work.\n"
    assert task.agent_timeout_s == 90
    assert (task.limits.cpus, task.limits.memory_mb, task.limits.storage_mb) == (1, 512, 4096)
    assert task.fail_to_pass == ("tests/test_a.py::test_new",)
    assert task.pass_to_pass == ("tests/test_a.py::TestIt::test_a", "tests/test_a.py::TestIt::test_b")


def test_what_a_task_does_not_say_has_a_default(folder: Path) -> None:
    changed(folder, "timeout_sec = 90", "")

    task = load_task(folder)

    assert task.agent_timeout_s == 3600
    assert task.facts.verifier.timeout_s == 300


def test_harbors_own_verifier_timeout_counts_where_ours_says_nothing(folder: Path) -> None:
    changed(folder, "[environment]", "[verifier]\ntimeout_sec = 77\n[environment]")

    assert load_task(folder).facts.verifier.timeout_s == 77


def test_keys_that_only_harbor_knows_are_left_alone(folder: Path) -> None:
    changed(folder, "[environment]", 'custom_docker_compose = true\n[environment]\ndocker_image = "x"')

    load_task(folder)


def test_the_digest_covers_names_contents_and_modes_and_nothing_else(folder: Path) -> None:
    before = load_task(folder).digest

    (folder / ".DS_Store").write_text("noise")
    (folder / "tests/__pycache__").mkdir()
    (folder / "tests/__pycache__/a.pyc").write_text("noise")
    os.utime(folder / "task.toml", (1, 1))
    assert load_task(folder).digest == before

    (folder / "environment/repo/code.py").chmod(0o755)
    executable = load_task(folder).digest
    (folder / "environment/repo/code.py").rename(folder / "environment/repo/other.py")
    renamed = load_task(folder).digest
    (folder / "environment/repo/other.py").write_text("x = 2\n")

    assert len({before, executable, renamed, load_task(folder).digest}) == 4


SEATRIAL = "metadata.seatrial."
BAD_TOML = {
    "syntax": ('difficulty = "easy"', "difficulty = easy", r"not valid TOML: .*line 7,"),
    "end of file": ('test_paths = ["tests/"]', 'test_paths = ["tests/"', r"not valid TOML: .*line \d+"),
    "endless number": ("timeout_sec = 90", "timeout_sec = " + "9" * 5000, "endless number"),
    "nesting": ("timeout_sec = 90", "a = " + "[" * 9000 + "]" * 9000, "nested too deeply"),
    "unknown key": (
        "[metadata.seatrial.solution]",
        'setupp = "x"\n[metadata.seatrial.solution]',
        r"environment\.setupp is not a key",
    ),
    "typo": ("test_paths", "test_path", r"Did you mean 'test_paths'\?"),
    "unknown table": ("[metadata.seatrial.environment]", "[metadata.seatrial.enviroment]", "Did you mean 'environment'"),
    "missing key": ('path = "solution/repo"', "", SEATRIAL + "solution.path is missing. Add it"),
    "kind": ('kind = "directory"\npath = "environment/repo"', 'kind = "svn"', "snapshot has kind 'svn'; it can be 'pypi'"),
    "commit": (
        'kind = "directory"\npath = "environment/repo"',
        'kind = "git"\nurl = "https://host/x.git"\ncommit = "v1.0"',
        "snapshot.commit must be the whole id of a commit",
    ),
    "url": (
        'kind = "directory"\npath = "environment/repo"',
        f'kind = "git"\nurl = "ext::sh -c true"\ncommit = "{"a" * 40}"',
        "snapshot.url must be the URL of a repository",
    ),
    "subfolder": (
        'kind = "directory"\npath = "environment/repo"',
        f'kind = "git"\nurl = "/x"\ncommit = "{"a" * 40}"\nsubfolder = "a/../.."',
        "snapshot.subfolder .*must be a plain path below",
    ),
    "no kind": ('kind = "directory"\npath = "environment/repo"', 'path = "x"', "snapshot needs a key 'kind'"),
    "hash": (
        'kind = "directory"\npath = "environment/repo"',
        'kind = "pypi"\nname = "x"\nversion = "1"\nsha256 = "123"',
        "snapshot.sha256 must be 64 lower-case hexadecimal digits",
    ),
    "python": ("[metadata.seatrial.solution]", 'python = "3"\n[metadata.seatrial.solution]', "must be a version specifier"),
    "timeout": ("timeout_sec = 90", "timeout_sec = inf", "agent.timeout_sec must be"),
    "timeout below 0": ("timeout_sec = 90", "timeout_sec = -1", "agent.timeout_sec must be greater than 0, but is -1"),
    "type": ("cpus = 1", 'cpus = "many"', "environment.cpus must be a number"),
    "title": ('title = "A small task"', 'title = "A\\nB"', "metadata.title must be one line"),
    "version": ('schema_version = "1.4"', 'schema_version = "2.0"', "only 1.x is understood"),
    "network": ("cpus = 1", 'network_mode = "public"', "environment.network_mode is 'public'"),
    "agent network": ("timeout_sec = 90", 'network_mode = "allowlist"', "agent.network_mode is 'allowlist'"),
    "internet": ("cpus = 1", "allow_internet = true", "environment.allow_internet"),
    "gpus": ("cpus = 1", "gpus = 1", "environment.gpus is not supported"),
    "requirements": (
        "environment/requirements.txt",
        "environment/pins.txt",
        "names 'environment/pins.txt', and there is no such file",
    ),
    "no such directory": ("environment/repo", "environment/none", "no files lie there"),
    "the agent would see the ids": ("environment/repo", "tests", "holds 'tests/fail_to_pass.txt'"),
    "the agent would see the solution": ('path = "environment/repo"', 'path = "solution"', "holds 'solution/repo'"),
    "the solution holds the snapshot": ('path = "solution/repo"', 'path = "environment"', "lies inside solution.path"),
}


@pytest.mark.parametrize(("old", "new", "answer"), BAD_TOML.values(), ids=BAD_TOML.keys())
def test_a_broken_task_file_is_refused_with_file_field_and_remedy(folder: Path, old: str, new: str, answer: str) -> None:
    changed(folder, old, new)

    with pytest.raises(TaskError, match=answer) as refusal:
        load_task(folder)

    text = str(refusal.value)
    assert "task.toml" in text
    assert "http" not in text and "pydantic" not in text and "Input should" not in text
    assert len(text) < 2000


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/passwd", "a/../../b", "a//b", "a/", "./a", ".git/hooks", ".", "a\\b", "a\u0000b"]
)
@pytest.mark.parametrize("field", ["snapshot", "solution"])
def test_a_directory_outside_the_task_is_refused(folder: Path, field: str, path: str) -> None:
    name = {"snapshot": "environment/repo", "solution": "solution/repo"}[field]
    changed(folder, f'"{name}"', '"' + path.replace("\\", "\\\\").replace("\0", "\\u0000") + '"')

    with pytest.raises(TaskError, match=rf"metadata\.seatrial\.{field}\.path is "):
        load_task(folder)


@pytest.mark.parametrize("path", ["../tests", "/tests", ".", ".git"])
@pytest.mark.parametrize("field", ["test_paths", "protected"])
def test_a_path_outside_the_tree_is_refused(folder: Path, field: str, path: str) -> None:
    if field == "test_paths":
        changed(folder, '["tests/"]', f'["{path}"]')
    else:
        changed(folder, '["tests/"]', f'["tests/"]\nprotected = ["{path}"]')

    with pytest.raises(TaskError, match=rf"verifier\.{field} is "):
        load_task(folder)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None: ...


def link(folder: Path) -> None:
    (folder / "environment/repo/link").symlink_to("/etc")


def fifo(folder: Path) -> None:
    os.mkfifo(folder / "environment/repo/pipe")


def many(folder: Path) -> None:
    (folder / "many").mkdir()
    for number in range(10_001):
        os.close(os.open(folder / f"many/{number}", os.O_CREAT | os.O_WRONLY))


def large(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        file.truncate((64 << 20) + 1)


BAD_FILES = {
    "no task.toml": (remove("task.toml"), r"task\.toml is missing"),
    "no instruction": (remove("instruction.md"), r"instruction\.md is missing"),
    "empty instruction": (write("instruction.md", b" \n"), r"instruction\.md is empty"),
    "binary instruction": (write("instruction.md", b"a\n\xff"), r"instruction\.md line 2 is not UTF-8"),
    "endless instruction": (write("instruction.md", b"a" * ((1 << 20) + 1)), "longer than 1,048,576 bytes"),
    "no ids": (remove("tests/fail_to_pass.txt"), r"fail_to_pass names .* no such file"),
    "empty ids": (write("tests/pass_to_pass.txt", b"# none\n"), r"pass_to_pass\.txt holds no test ids"),
    "overlapping ids": (write("tests/pass_to_pass.txt", b"tests/test_a.py::test_new\n"), "also stands in tests/fail_to_pass.txt"),
    "case ids": (write("tests/pass_to_pass.txt", b"tests/test_a.py::test_x[1]\n"), "line 1: .*not a function-level test id"),
    "no function": (write("tests/pass_to_pass.txt", b"\ntests/test_a.py\n"), "line 2: .*not a function-level test id"),
    "ids of the agent": (write("tests/pass_to_pass.txt", b"other/test_a.py::test_x\n"), "outside verifier.test_paths"),
    "ids that climb": (write("tests/pass_to_pass.txt", b"tests/../test_a.py::test_x\n"), "outside verifier.test_paths"),
    "ids twice": (write("tests/fail_to_pass.txt", b"tests/a.py::test_x\ntests/a.py::test_x\n"), "line 2: .* twice"),
    "symlink": (link, r"repo/link is a symbolic link"),
    "fifo": (fifo, r"repo/pipe is neither a file nor a folder"),
    "too many files": (many, "more than 10,000 files"),
    "too large": (large, "larger than 67,108,864 bytes"),
}


@pytest.mark.parametrize(("spoil", "answer"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_broken_folder_is_refused_with_the_file_and_what_is_wrong(
    folder: Path, spoil: Callable[[Path], None], answer: str
) -> None:
    spoil(folder)

    with pytest.raises(TaskError, match=answer):
        load_task(folder)


@pytest.mark.parametrize("name", ["_under", "-dash", "a b", "a" * 81, "ümlaut"])
def test_a_folder_whose_name_cannot_be_an_id_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(TaskError, match=re.escape("Rename the folder")):
        load_task(folder.rename(folder.parent / name))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read"):
        load_task(tmp_path / "gone")


def test_a_task_judged_by_pytest_without_a_snapshot_is_ours_and_told_so(folder: Path) -> None:
    changed(folder, '[metadata.seatrial.snapshot]\nkind = "directory"\npath = "environment/repo"\n', "")

    with pytest.raises(TaskError, match=r"metadata\.seatrial\.snapshot is missing"):
        load_task(folder)
