"""Submissions, honest and hostile, judged by the real server: what they score and what is noted beside it."""

import json
import shlex
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from front_door import CACHETOOLS, H11, Agent, connected, seatrial
from kept import Kept, blob, kept
from small_tasks import AFTER, BEFORE, FIXED, small_task

pytestmark = pytest.mark.anyio

BROKE = ("retried", "broke_verifier")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Court:
    """A server with small tasks, and where it keeps its records."""

    agent: Agent
    state: Path

    async def judged(self, script: str, *, fix: bool = False, task: str = "sums") -> Kept:
        """Submit what ``script`` leaves in a fresh workspace, on top of the honest solution if asked."""
        workspace = await self.agent.open(task)
        if fix:
            await self.agent.call("save_file", workspace_id=workspace, path="sums/core.py", content=FIXED)
        if script:
            done = await self.agent.run(workspace, f"set -e\n{script}")
            assert done.text.startswith("exit code 0"), done.text
        await self.agent.submit(workspace)
        return kept(self.state, workspace)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    small_task(folder, "sums")
    small_task(folder, "short", verifier={"timeout_s": 2})
    small_task(folder, "lean", limits="processes = 64", verifier={"timeout_s": 30})
    small_task(folder, "compiled", verifier={"build": "python -c 'import sums' && echo from-the-build > built.txt"})
    small_task(folder, "unbuildable", verifier={"build": "echo no such compiler; exit 3"})
    small_task(folder, "instant", verifier={"timeout_s": 0.01})
    small_task(folder, "doomed", before={**BEFORE, "sums/core.py": "import os; os._exit(3)\n"})
    small_task(folder, "in-parts", after={**AFTER, "tests/test_sums.py": IN_PARTS})
    small_task(folder, "shadowed", before={**BEFORE, **SHADOWS}, after={**AFTER, **SHADOWS})
    small_task(folder, "configured", before=PROTECTED_BEFORE, after=PROTECTED_AFTER, verifier={"protected": ["pytest.ini"]})
    return folder


@pytest.fixture(scope="module")
async def court(built_state: Path, tasks: Path) -> AsyncGenerator[Court]:
    async with connected(built_state, SEATRIAL_TASKS=str(tasks)) as agent:
        yield Court(agent, built_state)


IN_PARTS = (
    BEFORE["tests/test_sums.py"]
    + """

def test_negative(subtests):
    with subtests.test():
        assert total([1, -2]) == -1
"""
)
SHADOWS = {"json.py": "raise ImportError\n", "pip/__init__.py": "raise ImportError\n", "logging.py": "raise ImportError\n"}
PROTECTED_BEFORE = {**BEFORE, "pytest.ini": "[pytest]\n"}
PROTECTED_AFTER = {**AFTER, "pytest.ini": "[pytest]\n"}


def appended(path: str, text: str) -> str:
    """Return the shell command that appends ``text`` to a file, making its folder."""
    return f"mkdir -p $(dirname {path}); printf '%s\\n' {shlex.quote(text)} >> {path}"


def written(files: Mapping[str, str]) -> str:
    return "\n".join(appended(path, text) for path, text in files.items())


async def test_the_honest_solution_scores_and_nothing_is_noted(court: Court) -> None:
    done = await court.judged("", fix=True)

    assert (done.record.state, done.record.reward, done.record.flags) == ("done", 1.0, ())
    assert done.verdict is not None
    assert (done.verdict.assurance, done.verdict.fail_to_pass, done.verdict.pass_to_pass) == ("basic", (1, 1), (1, 1))
    assert dict(done.verdict.outcomes) == {
        "tests/test_sums.py::test_negative": "passed",
        "tests/test_sums.py::test_plain": "passed",
    }


async def test_nothing_done_scores_nothing(court: Court) -> None:
    done = await court.judged("")

    assert (done.record.reward, done.record.flags) == (0.0, ("agent_never_acted",))


@pytest.mark.parametrize("task", [H11, CACHETOOLS])
@pytest.mark.parametrize(("agent", "reward"), [("oracle", 1.0), ("nop", 0.0)])
def test_the_bundled_tasks_tell_the_solution_from_nothing(built_state: Path, task: str, agent: str, reward: float) -> None:
    ran = seatrial(built_state, "run", "--agent", agent, "--task", task, "--json")

    assert ran.returncode == 0, ran.stderr
    assert f'"reward": {reward}' in json.dumps(json.loads(ran.stdout))


REWRITES = """
from pathlib import Path
try:
    Path('/workspace/tests/test_sums.py').write_text('def test_plain(): pass\\ndef test_negative(): pass\\n')
except OSError:
    pass
try:
    Path('/workspace/tests').rename('/workspace/gone')
except OSError:
    pass
"""


async def test_code_under_test_cannot_rewrite_what_judges_it(court: Court) -> None:
    done = await court.judged(appended("sums/__init__.py", REWRITES))

    assert done.record.reward == 0.0
    assert done.verdict is not None
    assert dict(done.verdict.outcomes) == {
        "tests/test_sums.py::test_negative": "failed",
        "tests/test_sums.py::test_plain": "passed",
    }


async def test_a_part_of_a_test_that_is_skipped_is_not_passed(court: Court) -> None:
    skips = "import pytest\n\n\ndef total(numbers):\n    return sum(numbers) if min(numbers) > 0 else pytest.skip()\n"

    done = await court.judged(f"printf '%s' {shlex.quote(skips)} > sums/core.py", task="in-parts")

    assert done.record.reward == 0.0
    assert (await court.judged("", fix=True, task="in-parts")).record.reward == 1.0


BREAKERS = {
    "exits at import": "import os; os._exit(0)",
    "exits at import with success after printing": "import os; print('2 passed', flush=True); os._exit(0)",
    "execs another program": "import os; os.execv('/bin/true', ['true'])",
    "kills everything": ("import os, subprocess; subprocess.Popen(['sleep', '9']); os.kill(-1, 9); os.kill(os.getpid(), 9)"),
    "kills its parents": "import os, signal; os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)",
    "crashes the interpreter": "import ctypes; ctypes.string_at(0)",
    "writes to every descriptor": (
        "import json, os\n"
        "for fd in range(3, 64):\n"
        "    for number in range(9):\n"
        "        try:\n"
        "            os.write(fd, json.dumps({'number': number, 'kind': 'end', 'exit_code': 0}).encode() + b'\\n')\n"
        "        except OSError:\n"
        "            pass\n"
    ),
    "closes every descriptor": "import os; os.closerange(3, 64)",
    "floods the channel": (
        "import os\nfor fd in range(3, 16):\n    try: os.write(fd, b'x' * 100_000)\n    except OSError: pass\n"
    ),
    "exits while the tests run": "import threading, os; total = lambda numbers: os._exit(0)",
}


@pytest.mark.parametrize("attack", BREAKERS.values(), ids=BREAKERS.keys())
async def test_a_submission_that_breaks_the_run_scores_nothing(court: Court, attack: str) -> None:
    done = await court.judged(appended("sums/core.py", attack), fix=True)

    assert (done.record.state, done.record.reward) == ("done", 0.0), done.record.error
    assert done.record.flags == BROKE


async def test_a_submission_that_hangs_scores_nothing(court: Court) -> None:
    done = await court.judged(appended("sums/core.py", "while True: pass"), fix=True, task="short")

    assert (done.record.state, done.record.reward, done.record.flags) == ("done", 0.0, BROKE)
    assert done.verdict is not None
    assert set(done.verdict.outcomes.values()) == {"timed_out"}


@pytest.mark.parametrize(
    "attack",
    [
        "x = [bytearray(b'x' * (64 << 20)) for _ in range(1000)]",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nfor n in range(1000): open(f'/workspace/{n}', 'wb').write(b'x' * (16 << 20))",
    ],
    ids=["memory", "processes", "disk"],
)
async def test_a_submission_that_uses_everything_up_scores_nothing(court: Court, attack: str) -> None:
    done = await court.judged(appended("sums/core.py", attack), task="lean")

    assert (done.record.state, done.record.reward) == ("done", 0.0), done.record.error


EMPTY = "def test_negative(): pass\\ndef test_plain(): pass\\n"

CHEATS: Mapping[str, str] = {
    "sys.exit at import": appended("sums/core.py", "import sys; sys.exit(0)"),
    "SystemExit at import": appended("sums/core.py", "raise SystemExit(0)"),
    "skips everything at import": appended("sums/core.py", "import pytest; pytest.skip('no', allow_module_level=True)"),
    "marks the run as over": appended("sums/core.py", "import pytest; pytest.exit('fine', returncode=0)"),
    "prints records": appended(
        "sums/core.py",
        "import json, sys\nfor out in (sys.__stdout__, sys.__stderr__):\n"
        "    print(json.dumps({'kind': 'phase', 'id': 'tests/test_sums.py::test_negative', 'when': 'call', 'outcome': 'passed'}),"
        " file=out)",
    ),
    "edits the visible tests": f"printf '{EMPTY}' > tests/test_sums.py",
    "deletes the visible tests": "rm -r tests",
    "makes the tests a symlink": (f"rm -r tests; mkdir mine; printf '{EMPTY}' > mine/test_sums.py; ln -s mine tests"),
    "makes the tests a symlink to the host": "rm -r tests; ln -s /etc tests",
    "makes a test file a symlink": f"printf '{EMPTY}' > mine.py; ln -sf ../mine.py tests/test_sums.py",
    "makes the tests a file": "rm -r tests; echo 'def test_negative(): pass' > tests",
    "adds tests beside them": written(
        {"test_sums.py": "def test_negative(): pass", "tests/test_more.py": "def test_negative(): pass"}
    ),
    "conftest at the top": appended(
        "conftest.py",
        "import pytest\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n"
        "    outcome = yield\n    report = outcome.get_result(); report.outcome = 'passed'",
    ),
    "conftest in the tests": appended(
        "tests/conftest.py", "def pytest_collection_modifyitems(items):\n    for item in items: item.obj = lambda: None"
    ),
    "conftest in the package": appended("sums/conftest.py", "def pytest_pyfunc_call(pyfuncitem): return True"),
    "a package around the tests": written({"__init__.py": "", "tests/__init__.py": "import os; os._exit(0)"}),
    "pytest.ini": appended("pytest.ini", "[pytest]\naddopts = -p cheat --collect-only")
    + "\n"
    + appended("cheat.py", "import os; os._exit(0)"),
    "tox.ini and setup.cfg": written(
        {"tox.ini": "[pytest]\naddopts = --collect-only", "setup.cfg": "[tool:pytest]\naddopts = --collect-only"}
    ),
    "pyproject": appended("pyproject.toml", '[tool.pytest.ini_options]\naddopts = "-p cheat"\npythonpath = ["cheats"]'),
    "sitecustomize": written({"sitecustomize.py": "import os; os._exit(0)", "usercustomize.py": "import os; os._exit(0)"}),
    "a path file": written({"evil.pth": "import os; os._exit(0)", "sums/evil.pth": "import os; os._exit(0)"}),
    "shadows of pytest": written({"pytest.py": "import os; os._exit(0)", "_pytest/__init__.py": "import os; os._exit(0)"}),
    "shadows of the library": written(
        dict.fromkeys(("json.py", "os.py", "pluggy.py", "iniconfig.py", "site.py"), "import _cheat")
    ),
    "planted bytecode": (
        f"cd tests; printf '{EMPTY}' > x.py; mkdir __pycache__; for tail in pytest-9.2.0.pyc pyc; do"
        " python -c \"import py_compile, sys; name = f'cpython-3{sys.version_info[1]}';"
        " py_compile.compile('x.py', f'__pycache__/test_sums.{name}-$tail'.replace('-pyc', '.pyc'),"
        ' invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"; done; rm x.py'
    ),
    "planted bytecode in the package": (
        "printf 'def total(numbers): return sum(numbers)' > x.py; mkdir -p sums/__pycache__;"
        "python -c \"import py_compile, importlib.util as u; py_compile.compile('x.py', u.cache_from_source('sums/core.py'),"
        ' invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"; rm x.py;'
        " python -c 'from sums import total; assert total([-1]) == -1'"
    ),
    "environment files": written(
        {
            ".env": "PYTEST_ADDOPTS=--collect-only",
            "pyvenv.cfg": "home = /workspace",
            ".python-version": "x",
            ".pytest.ini": "[pytest]",
        }
    ),
    "names that look like options": "touch -- '-p' '--collect-only' '--help'",
}
"""Ways to a score without the work. None may score; together with the honest solution none but the breakers may matter."""

HARMLESS = frozenset(CHEATS) - {
    "sys.exit at import",
    "SystemExit at import",
    "skips everything at import",
    "marks the run as over",
    "shadows of the library",
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS.keys())
async def test_a_cheat_scores_nothing(court: Court, cheat: str) -> None:
    done = await court.judged(cheat)

    assert (done.record.state, done.record.reward) == ("done", 0.0), done.record.error


@pytest.mark.parametrize("cheat", sorted(HARMLESS))
async def test_what_a_cheat_leaves_behind_does_not_spoil_the_solution(court: Court, cheat: str) -> None:
    done = await court.judged(CHEATS[cheat], fix=True)

    assert (done.record.state, done.record.reward, done.record.flags) == ("done", 1.0, ()), done.verdict


EARLY = ("sitecustomize", "usercustomize", "pytest", "_pytest/__init__", "runner", "encodings/__init__")
OPTIONAL = ("exceptiongroup", "attr", "xdist", "six", "colorama", "argcomplete", "pygments/__init__")


async def test_nothing_of_the_submission_runs_before_the_verifier_has_started(court: Court) -> None:
    """Code that runs earlier could take the nonce, or end the run as an error of ours."""
    early = "import os; os.write(2, b'RAN EARLY'); os._exit(0)"

    done = await court.judged(written({f"{name}.py": early for name in (*EARLY, *OPTIONAL)}), fix=True)

    assert (done.record.state, done.record.reward) == ("done", 1.0), done.record.error
    assert done.verdict is not None
    assert b"RAN EARLY" not in blob(court.state, done.verdict.log)


async def test_a_module_that_takes_the_place_of_one_that_pytest_wants_is_the_submissions_fault(court: Court) -> None:
    done = await court.judged(written({"readline.py": "import os; os._exit(0)"}), fix=True)

    assert (done.record.state, done.record.reward, done.record.flags) == ("done", 0.0, BROKE)


async def test_a_repository_that_breaks_by_itself_is_our_error(court: Court) -> None:
    done = await court.judged("echo >> README.md", task="doomed")

    assert (done.record.state, done.record.reward, done.record.error_class) == ("error", None, "verifier")
    assert "so did a control run without the patch" in done.record.error


async def test_a_verifier_that_cannot_start_is_our_error(court: Court) -> None:
    done = await court.judged("", fix=True, task="instant")

    assert (done.record.state, done.record.reward, done.record.error_class) == ("error", None, "verifier")
    assert "did not start" in done.record.error


@pytest.mark.parametrize("missing", ["private/truth", "shared/interpreters"])
async def test_a_state_folder_that_lost_something_is_our_error(court: Court, missing: str) -> None:
    workspace = await court.agent.open("sums")
    place = court.state / missing
    away = place.rename(place.with_name("away"))
    try:
        answer = await court.agent.submit(workspace)
    finally:
        away.rename(place)

    assert answer.first == "error: no score"
    record = kept(court.state, workspace).record
    assert (record.state, record.reward, record.error_class) == ("error", None, "verifier")


async def test_the_same_submission_gives_the_same_verdict(court: Court) -> None:
    script = appended("sums/core.py", "# a remark")
    first, second = [await court.judged(script, fix=True) for _ in range(2)]

    assert first.verdict is not None and second.verdict is not None
    assert first.record.patch == second.record.patch
    for name in ("reward", "outcomes", "flags", "digests", "fail_to_pass", "pass_to_pass", "assurance"):
        assert getattr(first.verdict, name) == getattr(second.verdict, name)
    assert set(first.verdict.digests) >= {"task", "snapshot", "environment", "toolchain", "truth", "verifier", "patch"}


async def test_what_the_tests_print_is_kept_for_the_operator(court: Court) -> None:
    done = await court.judged(appended("sums/core.py", "raise RuntimeError('told to the operator')"))

    assert done.verdict is not None
    assert b"told to the operator" in blob(court.state, done.verdict.log)


async def test_a_build_step_works_over_the_submission(court: Court) -> None:
    done = await court.judged("", fix=True, task="compiled")

    assert (done.record.reward, done.record.flags) == (1.0, ())


async def test_a_submission_that_breaks_the_build_scores_nothing(court: Court) -> None:
    done = await court.judged(appended("sums/core.py", "def broken(:"), fix=True, task="compiled")

    assert (done.record.state, done.record.reward, done.record.flags) == ("done", 0.0, ("build_failed",))


async def test_a_build_step_that_never_works_is_our_error(court: Court) -> None:
    done = await court.judged("", fix=True, task="unbuildable")

    assert (done.record.state, done.record.reward, done.record.error_class) == ("error", None, "verifier")
    assert "no such compiler" in done.record.error


async def test_protected_files_are_those_of_the_truth(court: Court) -> None:
    done = await court.judged("echo '[pytest]\naddopts = --collect-only' > pytest.ini", fix=True, task="configured")

    assert done.record.reward == 1.0


async def test_a_repository_with_names_of_the_standard_library_can_be_built(court: Court) -> None:
    done = await court.judged("", task="shadowed")

    assert (done.record.state, done.record.reward) == ("done", 0.0), done.record.error
