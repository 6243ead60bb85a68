"""Images of plain Harbor tasks: built from the task's Dockerfile with progress, or pulled; found again by the task's digest."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench import Bench
from server.builds import BuildError
from server.places import Report
from server.sandboxes.daemon import DockerError
from tasks.container import ImageFacts
from tasks.folders import IGNORED
from tasks.model import Task

_LOG_BYTES = 4 << 20
_LAST_LINES = 20
_LABEL = "seatrial.task"


@dataclass(frozen=True)
class Image:
    """An image as the daemon has it: ``id`` is its digest, the rest its configuration."""

    id: str
    workdir: str
    user: str
    volumes: tuple[str, ...] = ()
    """Paths that the image declares as volumes: what changes there is no change of the container's."""


async def find_image(task: Task, facts: ImageFacts, bench: Bench, role: str = "main") -> Image | None:
    """Return the image if the daemon has it."""
    daemon = await bench.docker.daemon()
    found = await daemon.find(lambda api: api.inspect_image(facts.docker_image or tag_of(task, role)))
    if found is None:
        return None
    config = found.get("Config") or {}
    return Image(found["Id"], config.get("WorkingDir") or "/", config.get("User") or "", tuple(config.get("Volumes") or ()))


async def build_image(task: Task, facts: ImageFacts, bench: Bench, report: Report, role: str = "main") -> Image:
    """Return the image, pulled or built if the daemon does not have it.

    Raises:
        BuildError: it cannot be had; the text shows the last lines and where the whole log lies.
        DockerError: no daemon.
    """
    if found := await find_image(task, facts, bench, role):
        return found
    daemon = await bench.docker.daemon()
    log = _Log(bench.state.private / "logs" / f"image-{task.id}-{role}.log", task.id, report)
    if facts.docker_image:
        report(f"pulling {facts.docker_image}")
        try:
            await daemon.call(lambda api: _pull(api, facts, log))
        except DockerError as error:
            raise BuildError(
                f"Task {task.id}: the image {facts.docker_image} is not here and cannot be pulled. {error} "
                f"Try: docker pull {facts.docker_image}"
            ) from error
    else:
        await daemon.call(lambda api: _build(api, task, facts, role, log))
    image = await find_image(task, facts, bench, role)
    if image is None:
        raise BuildError(f"Task {task.id}: the daemon does not have the image that it made. The whole log: {log.path}")
    log.path.unlink(missing_ok=True)
    return image


def tag_of(task: Task, role: str) -> str:
    """Return the name of a built image: another for every change of the task's folder."""
    return f"seatrial/{task.id.lower()}-{role}:{task.digest[:24]}"


def _pull(api: Any, facts: ImageFacts, log: "_Log") -> None:
    name, _, tag = facts.docker_image.partition("@") if "@" in facts.docker_image else _named(facts.docker_image)
    until = time.monotonic() + facts.build_timeout_s
    stream = api.pull(name, tag=tag or None, platform=facts.platform or None, stream=True, decode=True)
    log.follow(stream, until, "pull the image", facts.build_timeout_s)


def _named(image: str) -> tuple[str, str, str]:
    """Split ``name:tag``; a registry's port is no tag."""
    name, colon, tag = image.rpartition(":")
    return (name, colon, tag) if colon and "/" not in tag else (image, "", "latest")


def _build(api: Any, task: Task, facts: ImageFacts, role: str, log: "_Log") -> None:
    """Build from a copy of the context: what tools leave behind in folders is no part of it."""
    with tempfile.TemporaryDirectory(prefix="seatrial-context-") as folder:
        context = Path(folder, "context")
        shutil.copytree(task.folder / facts.context, context, symlinks=True, ignore=shutil.ignore_patterns(*IGNORED))
        stream = api.build(
            path=str(context),
            dockerfile=facts.dockerfile,
            tag=tag_of(task, role),
            target=facts.target or None,
            buildargs=dict(facts.args),
            platform=facts.platform or None,
            labels={_LABEL: task.id},
            timeout=int(facts.build_timeout_s) + 1,  # of silence; `follow` bounds the whole
            rm=True,
            forcerm=True,
            decode=True,
        )
        log.follow(stream, time.monotonic() + facts.build_timeout_s, "build the image", facts.build_timeout_s)


class _Log:
    """What a daemon says while it works: stages for who waits, the last lines for an error, all of it in a file."""

    def __init__(self, path: Path, task: str, report: Report) -> None:
        path.parent.mkdir(0o700, exist_ok=True)
        path.write_bytes(b"")
        self.path, self._task, self._report = path, task, report
        self._size, self._tail = 0, ""

    def follow(self, stream: Iterable[Mapping[str, Any]], until: float, what: str, limit_s: float) -> None:
        """Take in ``stream`` to its end.

        Raises:
            BuildError: the daemon says that it failed, or the time was up.
        """
        late = f"could not {what}: not over after its build_timeout_sec of {limit_s:.0f} s"
        messages = iter(stream)
        while True:
            try:
                message = next(messages, None)
            except Exception as error:
                if time.monotonic() < until:
                    raise
                raise self._failed(late) from error
            if message is None:
                return
            self._take(str(message.get("stream") or message.get("status") or ""))
            if said := message.get("error"):
                raise self._failed(f"could not {what} ({str(said).strip()[:500]})")
            if time.monotonic() > until:
                raise self._failed(late)  # the daemon ends a build whose client has left

    def _take(self, text: str) -> None:
        if text.startswith("Step "):
            self._report(f"building the image: {text.strip()[:150]}")
        if self._size < _LOG_BYTES:
            with self.path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text if text.endswith("\n") else text + "\n")
        self._size += len(text)
        self._tail = (self._tail + text)[-4096:]

    def _failed(self, what: str) -> BuildError:
        last = "\n".join(self._tail.splitlines()[-_LAST_LINES:])
        return BuildError(f"Task {self._task}: {what}. Last lines:\n{last}\nThe whole log: {self.path}")
