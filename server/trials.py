"""Trials: opened, found again after a restart, submitted by the agent or by time, judged, ended. One place decides."""

import logging
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from server.blobs import BlobError
from server.builds import limits_of
from server.environments import build_environment, find_environment
from server.offers import Offer
from server.patches import Patch, PatchError, load_patch
from server.places import Environment
from server.records import SubmittedBy, Verdict, trial_id_of
from server.sandboxes.base import SandboxError
from server.services import Services, open_services
from server.settings import Settings
from server.state import remove_tree
from server.trial import (
    AgentInfo,
    HeldElsewhereError,
    StillBuildingError,
    TooManyWorkspacesError,
    Trial,
    TrialEndedError,
    UnknownWorkspaceError,
    new_record,
)
from server.trial_log import TrialLog
from server.verifiers.base import Submission
from server.verifiers.judging import judge
from server.verifiers.steps import combined, is_last_in_fresh, next_step, step_news
from server.workspaces import Workspace
from tasks.errors import SeaTrialError
from tasks.model import HarborTask, Task

logger = logging.getLogger(__name__)

_WORKSPACE_ID = re.compile(r"[0-9a-f]{32}")

_MAX_LIVE = 200
"""Workspaces of one server that are not over: each takes descriptors, which nobody may use up."""

_UNREADY_S = 900.0
"""How long a trial whose server died before its workspace was ready waits for its agent to come back."""


class Trials:
    """Every trial that this process works on; made by `open_trials`."""

    def __init__(self, settings: Settings, background: TaskGroup, stack: AsyncExitStack) -> None:
        self.settings, self.offer = settings, Offer(settings)
        self._background, self._stack = background, stack
        self._trials: dict[str, Trial] = {}
        """By trial id, so that one that was recovered is found by its workspace id too."""
        self._assigned: Trial | None = None
        self._found: dict[str, Environment] = {}
        """By task digest: to find one again would mean to read what may be a large tree."""
        self._finding = anyio.Lock()
        self._services: Services | None = None

    async def services(self) -> Services:
        """Open the state folder and the store at first use: their imports would delay the first answer of a server."""
        if self._services is None:
            async with self._finding:
                if self._services is None:
                    self._services = await open_services(self.settings, self._background, self._stack)
                    self._background.start_soon(self._guarded, self._recover)
        return self._services

    async def open(self, task_id: str, agent: AgentInfo) -> Trial:
        """Start a trial, or return the one that this server is for. Its environment may still have to be built."""
        task = self.offer.task(task_id)
        services = await self.services()
        async with self._finding:
            if self._assigned is not None:
                return self._assigned
            if sum(not trial.over for trial in self._trials.values()) >= _MAX_LIVE:
                raise TooManyWorkspacesError(_MAX_LIVE)
            workspace_id = secrets.token_hex(16)
            trial = self._new(workspace_id, task, agent, services)
            self._trials[trial.id] = trial
            self._assigned = trial if self.settings.assignment.task else None
        await self._prepare(trial, services)
        return trial

    def _new(self, workspace_id: str, task: Task, agent: AgentInfo, services: Services) -> Trial:
        trial_id = trial_id_of(workspace_id)
        lock = services.state.try_lock(f"trial-{trial_id}")
        record = services.store.add_trial(new_record(trial_id, task, agent, self.settings))
        return Trial(workspace_id, task, record, TrialLog(trial_id, services), lock)

    async def _prepare(self, trial: Trial, services: Services) -> None:
        """Give the trial its workspace, at once if the environment is built, else as soon as it is."""
        found = self._found.get(trial.task.digest)
        try:
            if found is None or not found.present:
                found = await find_environment(trial.task, services.bench)
        except SeaTrialError as error:
            self._end(trial, None, state="error", error_class="build", error=str(error))
            raise
        if found is None:
            self._background.start_soon(self._guarded, self._build, trial, services)
        else:
            self._found[trial.task.digest] = found
            await self._make_ready(trial, found, services)

    async def _build(self, trial: Trial, services: Services) -> None:
        started = time.monotonic()

        def report(stage: str) -> None:
            trial.stage = stage

        try:
            environment = await build_environment(trial.task, services.bench, report)
            trial.timings["build"] = round(time.monotonic() - started, 3)
            await self._make_ready(trial, environment, services)
        except SeaTrialError as error:
            if not trial.over:
                self._end(trial, None, state="error", error_class="build", error=str(error))
        except Exception as error:
            logger.exception("The environment of trial %s could not be built", trial.id)
            if not trial.over:
                self._end(trial, None, state="error", error_class="internal", error=repr(error)[:500])

    async def _make_ready(self, trial: Trial, environment: Environment, services: Services) -> None:
        started = time.monotonic()
        async with trial.ending:
            if trial.over:
                return  # it was given up while its environment was being built
            place = environment.place(trial.id, limits_of(trial.task), services.bench)
            workspace = Workspace(place, self._background, trial.log.command_ended)
            if trial.record.state == "building":
                try:
                    await workspace.sandbox()
                except SeaTrialError as error:
                    self._end(trial, None, state="error", error_class="sandbox", error=str(error))
                    raise
                trial.timings["open"] = round(time.monotonic() - started, 3)
                now = time.time()
                trial.record = services.store.update_trial(
                    trial.id, state="open", ready_at=now, deadline_at=now + trial.task.agent_timeout_s, timings=trial.timings
                )
            else:
                workspace.next_command = trial.log.next_command()
            trial.environment, trial.workspace = environment, workspace
        self._background.start_soon(self._guarded, self._expire, trial)

    def known(self, workspace_id: str) -> Trial | None:
        """Return the trial if this process has met it."""
        return self._trials.get(trial_id_of(workspace_id)) if _WORKSPACE_ID.fullmatch(workspace_id) else None

    async def find(self, workspace_id: str) -> Trial:
        """Return the trial of a workspace id, taking it up again if an earlier server process left it.

        Raises:
            UnknownWorkspaceError: there is none.
            HeldElsewhereError: a living process has it.
        """
        if trial := self.known(workspace_id):
            return trial
        if not _WORKSPACE_ID.fullmatch(workspace_id):
            raise UnknownWorkspaceError(workspace_id)
        services = await self.services()
        async with self._finding:
            if trial := self.known(workspace_id):
                return trial
            trial = await self._take_up(trial_id_of(workspace_id), workspace_id, services)
            self._trials[trial.id] = trial
            return trial

    async def _take_up(self, trial_id: str, workspace_id: str, services: Services) -> Trial:
        record = services.store.find_trial(trial_id)
        if record is None:
            raise UnknownWorkspaceError(workspace_id)
        task = self.offer.catalog.find(record.task)
        trial = Trial(workspace_id, task, record, TrialLog(trial_id, services))
        if trial.over:
            trial.ended.set()
            return trial
        trial.lock = services.state.try_lock(f"trial-{trial_id}")
        if trial.lock is None:
            raise HeldElsewhereError
        trial.record = services.store.find_trial(trial_id) or record
        trial.timings = dict(trial.record.timings)
        trial.step = len(trial.log.steps())
        if trial.step and isinstance(task, HarborTask) and trial.log.step_is_news():
            trial.news = step_news(task, trial.step)
        if trial.over:
            self._release(trial)
        elif not record.ready_at and time.time() > record.created_at + _UNREADY_S:
            left = "Its server ended before the workspace was ready. Open another."
            self._end(trial, None, state="error", error_class="build", error=left)
        elif task.digest != record.task_digest:
            self._end(trial, None, state="error", error_class="task", error=f"The task {task.id} changed after this trial began.")
        elif trial.record.state == "submitted":
            try:
                patch = load_patch(services.blobs.get(trial.record.patch))
            except BlobError as error:
                self._end(trial, None, state="error", error_class="store", error=str(error))
                return trial
            self._background.start_soon(self._guarded, self._judge, trial, patch)
        else:
            await self._prepare(trial, services)
        return trial

    async def workspace(self, workspace_id: str) -> tuple[Trial, Workspace]:
        """Return a trial that goes on, with its workspace.

        Raises:
            StillBuildingError, TrialEndedError: it does not, yet or any more.
        """
        trial = await self.find(workspace_id)
        if trial.over or trial.record.state == "submitted":
            raise TrialEndedError(trial.record)
        if trial.workspace is None:
            raise StillBuildingError(trial.building())
        if time.time() >= trial.record.deadline_at:
            await self.submit(trial, "time")
            raise TrialEndedError(trial.record)
        return trial, trial.workspace

    async def submit(self, trial: Trial, by: SubmittedBy) -> None:
        """Freeze the change and start judging it; an earlier submission stands. Wait for ``trial.ended`` for the verdict.

        Raises:
            PatchError: the change cannot become a patch; an agent may mend it and submit again, for time it is reward 0.
            StillBuildingError: there is nothing to submit yet.
        """
        services = await self.services()
        async with trial.ending:
            if trial.over or trial.record.state == "submitted" or trial.news:
                return
            if trial.workspace is None or trial.environment is None:
                raise StillBuildingError(trial.building())
            await trial.workspace.freeze()
            trial.timings["work"] = round(time.time() - trial.record.ready_at, 3)
            try:
                patch = await trial.workspace.place.patch(services.blobs)
            except PatchError as error:
                if by == "agent":
                    trial.workspace.thaw()
                    raise
                self._end(trial, None, state="done", reward=0.0, submitted_by=by, flags=("patch_refused",), error=str(error))
                return
            except (OSError, SandboxError) as error:
                if by == "agent":
                    trial.workspace.thaw()
                    raise
                self._end(trial, None, state="error", submitted_by=by, error_class="patch", error=repr(error)[:500])
                return
            changes = {"state": "submitted", "patch": patch.digest, "submitted_by": by, "timings": trial.timings}
            trial.record = services.store.update_trial(trial.id, **changes)
            trial.judged = anyio.Event()
            self._background.start_soon(self._guarded, self._judge, trial, patch)

    async def close(self, trial: Trial) -> None:
        """Give the trial up: reward 0, and it counts."""
        async with trial.ending:
            if trial.over or trial.record.state == "submitted":
                raise TrialEndedError(trial.record)
            if trial.workspace is not None:
                await trial.workspace.freeze()
            self._end(trial, None, state="done", reward=0.0, submitted_by="closed")

    def verdict(self, trial: Trial) -> Verdict | None:
        """Return the stored verdict of a trial that is over."""
        return self._opened.store.verdict(trial.id)

    async def _judge(self, trial: Trial, patch: Patch) -> None:
        services, started = self._opened, time.monotonic()
        try:
            if is_last_in_fresh(trial.task, trial.step):
                # The patch is kept: what else the agent left must not take the room that judging needs.
                await self._clear(trial)
            environment = trial.environment
            if environment is None:
                environment = await build_environment(trial.task, services.bench, lambda _: None)
            verdict = await judge(trial.task, environment, Submission(patch, trial.id, trial.step), services.bench)
        except SeaTrialError as error:
            self._end(trial, None, state="error", error_class=error.kind, error=str(error))
        except Exception as error:
            logger.exception("Verification of trial %s failed", trial.id)
            self._end(trial, None, state="error", error_class="internal", error=repr(error)[:500])
        else:
            trial.timings["verify"] = round(time.monotonic() - started, 3)
            if (following := next_step(trial.task, trial.step, verdict)) is not None:
                await self._go_on(trial, following, verdict)
                return
            verdict = combined(trial.task, trial.log.steps(), verdict)
            flags = (*verdict.flags, *(() if trial.log.acted() else ("agent_never_acted",)))
            self._end(trial, verdict, state="done", reward=verdict.reward, flags=flags)

    async def _go_on(self, trial: Trial, following: int, verdict: Verdict) -> None:
        """Let the agent go on with the next step, in the same workspace."""
        assert isinstance(trial.task, HarborTask)
        step = trial.task.harbor.steps[following]
        trial.log.step_ended(trial.step, verdict)
        trial.step = following
        deadline = time.time() + step.agent_timeout_s
        trial.record = self._opened.store.update_trial(trial.id, state="open", submitted_by="", deadline_at=deadline)
        if trial.workspace is None:  # its server died while it was judged
            await self._prepare(trial, self._opened)
        if trial.workspace is not None:
            await trial.workspace.place.begin_step(following)
            trial.workspace.thaw()
        trial.news = step_news(trial.task, following)
        trial.judged.set()
        self._background.start_soon(self._guarded, self._expire, trial)

    async def _expire(self, trial: Trial) -> None:
        """Submit the trial when its time is up."""
        step = trial.step
        with anyio.move_on_after(max(0, trial.record.deadline_at - time.time())):
            await trial.ended.wait()
        if not trial.over and trial.step == step:
            trial.news = ""
            await self.submit(trial, "time")

    def _end(self, trial: Trial, verdict: Verdict | None, **changes: object) -> None:
        """Record the end on disk, then let go of everything that the trial holds."""
        trial.record = self._opened.store.end_trial(trial.id, verdict, timings=trial.timings, **changes)
        trial.workspace = None
        trial.ended.set()
        trial.judged.set()
        self._background.start_soon(self._guarded, self._remove, trial)

    async def _remove(self, trial: Trial) -> None:
        """Remove the files of a trial that is over; until they are gone its lock keeps others from doing the same."""
        await self._clear(trial)
        self._release(trial)

    async def _clear(self, trial: Trial) -> None:
        """Remove what the agent left but the patch."""
        services = self._opened
        if trial.environment is not None:
            await trial.environment.place(trial.id, limits_of(trial.task), services.bench).remove()
        else:
            await to_thread.run_sync(remove_tree, services.state.shared / "workspaces" / trial.id, abandon_on_cancel=True)

    def _release(self, trial: Trial) -> None:
        if trial.lock is not None:
            (self._opened.state.private / "locks" / f"trial-{trial.id}").unlink(missing_ok=True)
            os.close(trial.lock)
            trial.lock = None
        trial.ended.set()

    @property
    def _opened(self) -> Services:
        assert self._services is not None, "a trial exists only after the services were opened"
        return self._services

    async def _recover(self) -> None:
        """End what dead processes left over time, and remove what they left on disk. Trials still in time may be resumed."""
        services = self._opened
        for record in services.store.trials(states=("building", "open", "submitted")):
            until = record.deadline_at or record.created_at + _UNREADY_S
            late = record.state == "submitted" or time.time() > until
            async with self._finding:
                if late and record.id not in self._trials:
                    with suppress(SeaTrialError):  # held by a living server, or its task is not known to this one
                        self._trials[record.id] = await self._take_up(record.id, "", services)
        await to_thread.run_sync(services.reap)
        async with self._finding:
            await services.reap_containers()

    async def suspend_all(self) -> None:
        """Stop every sandbox, keep every trial; one that fails to stop does not keep the others running."""
        async with AsyncExitStack() as stack:
            for trial in self._trials.values():
                if trial.workspace is not None:
                    stack.push_async_callback(trial.workspace.suspend)

    async def _guarded(self, work: Callable[..., object], *arguments: object) -> None:
        """Run background work so that its failure is logged and ends nothing else."""
        try:
            await work(*arguments)  # type: ignore[misc]
        except Exception:
            logger.exception("Background work failed: %s", getattr(work, "__name__", work))


@asynccontextmanager
async def open_trials(settings: Settings) -> AsyncGenerator[Trials]:
    """Serve trials until the block ends; then every sandbox is stopped and every trial that is not over can be resumed."""
    async with AsyncExitStack() as stack, anyio.create_task_group() as background:
        trials = Trials(settings, background, stack)
        try:
            yield trials
        finally:
            with anyio.CancelScope(shield=True):
                await trials.suspend_all()
            background.cancel_scope.cancel()
