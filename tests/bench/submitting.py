"""A submission until its verdict, against the same tests run directly."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clients.scripted import Agent, apply_changes
from server.builds import AGENT_ENV, OPT_ENV
from server.gold import gold_change
from server.interpreters import MOUNTED_AT
from server.layers import files_below, merged
from server.sandboxes.base import WORKDIR
from server.snapshots import find_truth
from server.state import remove_tree
from tasks.model import Task
from tests.bench.kit import OURS, BenchError, Joined, Kit, Starter, joined, open_starter
from tests.bench.measure import Row, interleaved
from tests.support.front_door import CACHETOOLS, H11

RESULTS = {"nop": ("not resolved", 1), "oracle": ("resolved", 0)}
"""What the verdict must say of an agent, and how the direct pytest must end: else the figures would mean nothing."""


@dataclass(frozen=True)
class _Case:
    """One agent on one task, and the tree that its submission amounts to."""

    kit: Kit
    server: Joined
    task: Task
    agent: str
    tree: Path

    async def submit(self) -> float:
        """Work on a new trial, then return how long its submission takes from the call to the verdict."""
        workspace_id = await self.server.open(self.task.id)
        if self.agent == "oracle":
            agent = Agent(self.server.client)
            agent.workspace = workspace_id
            await apply_changes(agent, gold_change(self.task, self.kit.state))
        started = time.perf_counter()
        text = await self.server.call("submit", workspace_id=workspace_id)
        seconds = time.perf_counter() - started
        if text.partition("\n")[0] != RESULTS[self.agent][0]:
            raise BenchError(f"The submission of {self.agent} on {self.task.id} was answered: {text}")
        return seconds

    def run_directly(self, starter: Starter) -> float:
        """Run the same tests, by id, with the same Python and pytest."""
        return starter.start(self._argv(), self._env(), exit_codes=(RESULTS[self.agent][1],))

    def _argv(self) -> list[str]:
        facts, environment = self.task.facts.verifier, self.kit.environment(self.task.id)
        host = self.kit.host
        mounts = {OPT_ENV: environment.env, MOUNTED_AT: environment.interpreter, WORKDIR: self.tree}
        bwrap = [str(host.bwrap), "--unshare-user", *host.view, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
        for inside, outside in mounts.items():
            bwrap += ["--bind", str(outside), inside]
        bwrap += ["--tmpfs", "/home/agent", "--chdir", "/", "--"]
        paths = " ".join(f"{WORKDIR}/{path}" for path in facts.pythonpath)
        pytest = [
            f"{OPT_ENV}/bin/python",
            "-I",
            "-B",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-c",
            f"{WORKDIR}/bare.ini",
        ]
        pytest += [f"--rootdir={WORKDIR}", "-o", f"pythonpath={paths}", *facts.args]
        ids = (*self.task.fail_to_pass, *self.task.pass_to_pass)
        return [*bwrap, *pytest, *(f"{WORKDIR}/{test}" for test in ids)]

    def _env(self) -> dict[str, str]:
        env = {**AGENT_ENV, **self.task.facts.verifier.env}
        return {**env, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}


async def measure_submit(kit: Kit) -> Sequence[Row]:
    rows = []
    async with joined(kit, OURS) as server:
        for task_id in (H11, CACHETOOLS):
            for agent in RESULTS:
                rows.append(await _measure(kit, server, kit.task(task_id), agent))
    return rows


async def _measure(kit: Kit, server: Joined, task: Task, agent: str) -> Row:
    with ExitStack() as stack:
        starter = stack.enter_context(open_starter(kit))
        case = _Case(kit, server, task, agent, stack.enter_context(_plain_tree(kit, task, agent)))

        async def floor() -> float:
            return case.run_directly(starter)

        ours, theirs = await interleaved(kit.scale.long, case.submit, floor, warm_up=kit.scale.warm_up)
    count = len(task.fail_to_pass) + len(task.pass_to_pass)
    name = f"submit-{task.id.partition('-')[0]}-{agent}"
    what = f"submit of {agent} on {task.id} until its verdict, through MCP over stdio"
    floor_is = (
        f"pytest of the same environment on the same {count} ids, in a plain copy of the tree with the hidden tests; "
        "bubblewrap only puts the folders in their places"
    )
    return Row(name, what, floor_is, 1.2, "s", ours, theirs, allowance=0.5)


@contextmanager
def _plain_tree(kit: Kit, task: Task, agent: str) -> Iterator[Path]:
    """Yield a plain copy of what the verifier's sandbox shows at /workspace."""
    tree = kit.state.make("bench", f"{task.id}-{agent}")
    truth = find_truth(task.facts.solution, task.folder, kit.state)
    if truth is None:
        raise BenchError(f"The ground truth of {task.id} is not built.")
    try:
        for path, file in files_below(merged(kit.environment(task.id).lowers), "", frozenset({".git"})):
            _put(tree / path, file.path)
        for change in gold_change(task, kit.state) if agent == "oracle" else ():
            if change.data is None:
                (tree / change.path).unlink()
            else:
                (tree / change.path).parent.mkdir(parents=True, exist_ok=True)
                (tree / change.path).write_bytes(change.data)
        for hidden in (*task.facts.verifier.test_paths, *task.facts.verifier.protected):
            remove_tree(tree / hidden)
            for path, file in files_below((truth / hidden,), "", frozenset()) if (truth / hidden).is_dir() else ():
                _put(tree / hidden / path, file.path)
            if (truth / hidden).is_file():
                _put(tree / hidden, truth / hidden)
        (tree / "bare.ini").write_text("[pytest]\n")
        kit.state.own_tree(tree)
        yield tree
    finally:
        remove_tree(tree)


def _put(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)
