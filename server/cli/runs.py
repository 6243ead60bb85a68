"""`seatrial run`: trials of the reference agents, and their scores."""

import os
import secrets
import shlex
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from clients.runs import Score, Work, plans, run_trials, scores
from clients.scripted import Launch, TrialPlan, TrialRun
from server.cli.builds import Built, build_all, check_machine, chosen, write_not_built
from server.cli.display import Board, open_board, shown_reward, write_failure, write_json, write_line, write_table
from server.gold import gold_script
from server.settings import Settings, inherited_environment, with_sandbox
from server.state import State, open_state
from server.store import open_store
from server.task_sources import task_folders
from tasks.catalog import load_catalog
from tasks.model import Task

PHASES = ("start", "open", "work", "verify", "total")


@dataclass(frozen=True)
class Wanted:
    """The trials that are asked for; ``concurrency`` 0 means as many as cores and memory allow, ``job`` "" a new name.

    ``folders`` of tasks stand in place of those in SEATRIAL_TASKS.
    """

    agents: Sequence[str]
    tasks: Sequence[str]
    repetitions: int = 1
    concurrency: int = 0
    job: str = ""
    sandbox: str = ""
    folders: Sequence[str] = ()


@dataclass(frozen=True)
class Finished:
    """The scores of a job, and the tasks whose environments could not be built."""

    job: str
    scores: Sequence[Score]
    not_built: Sequence[Built]


def run_agents(wanted: Wanted, *, as_json: bool) -> int:
    """Run the trials and print their scores; 1 if one has none. A reward of 0 is a result."""
    finished = play(wanted)
    if as_json:
        write_json({"job": finished.job, "trials": [as_data(score) for score in finished.scores], **unbuilt(finished)})
    else:
        write_scores(finished)
        write_line(f"\njob {finished.job}: see it again with: {results_command(finished.job)}")
    return 1 if finished.not_built or any(score.reward is None for score in finished.scores) else 0


def play(wanted: Wanted) -> Finished:
    """Build what is needed, run every trial over MCP, and return what the server's record says.

    Raises:
        UnknownTaskError: there is no such task.
        UnusableError: no sandbox can work here.
    """
    settings = with_sandbox(Settings.from_environment(), wanted.sandbox).with_tasks(wanted.folders)
    tasks = chosen(load_catalog(task_folders(settings)), wanted.tasks)
    check_machine(settings, tasks)
    state = open_state(settings)
    job = wanted.job or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    with _told_of_ctrl_c(job, state), open_board() as board:
        built = anyio.run(build_all, tasks, settings, state, board)
        failed = [one for one in built if one.error]
        ready = [task for task in tasks if task.id not in {one.task for one in failed}]
        work = [Work(task.id, gold_script(task, settings, state) if "oracle" in wanted.agents else ()) for task in ready]
        planned = list(plans(work, wanted.agents, repetitions=wanted.repetitions, job=job))
        places = wanted.concurrency or fitting(ready)
        runs = anyio.run(_run, planned, launch(settings), places, board)
    with open_store(state.private / "store.db") as store:
        return Finished(job, scores(store, runs), failed)


def launch(settings: Settings) -> Launch:
    """Return how to start our server from anywhere, with the settings of this process."""
    folders = os.pathsep.join(map(str, settings.tasks))
    ours = {"SEATRIAL_STATE": str(settings.state), "SEATRIAL_TASKS": folders, "SEATRIAL_SANDBOX": settings.sandbox}
    environment = inherited_environment() | ours
    return Launch((sys.executable, "-I", "-m", "server", "serve"), environment)


def results_command(job: str) -> str:
    """Return what to type to see the results of ``job``, whatever its name."""
    return f"seatrial results {'-- ' if job.startswith('-') else ''}{shlex.quote(job)}"


@contextmanager
def _told_of_ctrl_c(job: str, state: State) -> Generator[None]:
    """Say on Ctrl-C where the trials that were begun can be seen."""
    try:
        yield
    except KeyboardInterrupt:
        with open_store(state.private / "store.db") as store:
            begun = bool(store.trials(job=job))
        if begun:
            write_failure(f"stopped; see: {results_command(job)}")
        raise


def fitting(tasks: Sequence[Task]) -> int:
    """Return how many trials this machine can hold at once: one for each core, and each with the memory it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    need = max((task.limits.memory_mb for task in tasks), default=1)
    free = _free_memory_mb()
    return max(1, min(cores, free // need if free else cores))


def write_scores(finished: Finished) -> None:
    """Print one line for each trial; each error goes in full to stderr."""
    rows = [
        (score.run.task, score.run.agent, str(score.run.repetition), shown_reward(score.reward), *_seconds(score))
        for score in finished.scores
    ]
    write_table(("task", "agent", "#", "reward", *PHASES), rows)
    write_line("(start to total: seconds)")
    for score in finished.scores:
        if score.error:
            write_failure(f"{score.run.task} {score.run.agent} #{score.run.repetition}: {score.error}")
    write_not_built(finished.not_built)


def as_data(score: Score) -> dict[str, Any]:
    """Return what --json prints of one trial."""
    run, verdict = score.run, score.verdict
    return {
        "trial": run.trial,
        "task": run.task,
        "agent": run.agent,
        "repetition": run.repetition,
        "reward": score.reward,
        "error": score.error,
        "assurance": verdict.assurance if verdict else "",
        "fail_to_pass": list(verdict.fail_to_pass) if verdict else [],
        "pass_to_pass": list(verdict.pass_to_pass) if verdict else [],
        "flags": list(verdict.flags) if verdict else [],
        "timings_s": {name: round(seconds, 3) for name, seconds in run.timings.items()},
    }


def unbuilt(finished: Finished) -> dict[str, Any]:
    """Return what --json prints of the tasks that could not be built."""
    return {"not_built": [{"task": one.task, "error": one.error} for one in finished.not_built]}


def _seconds(score: Score) -> list[str]:
    return [f"{score.run.timings[name]:.2f}" if name in score.run.timings else "-" for name in PHASES]


async def _run(planned: Sequence[TrialPlan], server: Launch, places: int, board: Board) -> tuple[TrialRun, ...]:
    def name(plan: TrialPlan) -> str:
        return f"{plan.task} {plan.agent} #{plan.repetition}"

    return await run_trials(
        planned,
        server,
        concurrency=places,
        on_stage=lambda plan, stage: board.stage(name(plan), stage),
        on_end=lambda plan, run: board.done(name(plan), "broke off" if run.error else f"done in {run.timings['total']:.1f} s"),
    )


def _free_memory_mb() -> int:
    """Return the memory that can still be used, 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = [int(line.split()[1]) // 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else 0
