"""A client connected to a real server of its own, as tests use it."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client

from server.state import remove_tree
from server.store import open_store

H11 = "h11-chunked-body"
CACHETOOLS = "cachetools-copy-pickle"
CALL_S = 120


@contextmanager
def reachable_folder() -> Generator[Path]:
    """Yield a folder that the sandboxes' user can reach, also where the tests run as root."""
    folder = Path(tempfile.mkdtemp(prefix="seatrial-", dir="/var/tmp"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        remove_tree(folder)


@dataclass(frozen=True)
class Answer:
    """What a tool call came back with."""

    text: str
    is_error: bool

    @property
    def first(self) -> str:
        return self.text.partition("\n")[0]


@dataclass
class Agent:
    """A client connected to a server of its own."""

    client: Client
    pid: int

    async def call(self, tool: str, **arguments: object) -> Answer:
        with anyio.fail_after(CALL_S):
            result = await self.client.call_tool(tool, arguments)
        assert len(result.content) == 1, "answers are one block of plain text"
        assert result.structured_content is None
        return Answer(result.content[0].text, bool(result.is_error))

    async def open(self, task: str = H11) -> str:
        """Open a workspace, wait until it is ready, and return its id."""
        answer = await self.call("open_workspace", task_id=task)
        assert not answer.is_error, answer.text
        workspace_id = answer.first.removeprefix("workspace_id: ")
        with anyio.fail_after(300):
            while (await self.call("list_files", workspace_id=workspace_id)).text.startswith("building"):
                await anyio.sleep(0.2)
        return workspace_id

    async def run(self, workspace_id: str, command: str, **arguments: object) -> Answer:
        return await self.call("run_command", workspace_id=workspace_id, command=command, **arguments)

    async def submit(self, workspace_id: str) -> Answer:
        """Submit and wait for the result."""
        with anyio.fail_after(300):
            while (answer := await self.call("submit", workspace_id=workspace_id)).text.startswith("verifying"):
                pass
        return answer


Serve = Callable[..., AbstractAsyncContextManager[Agent]]


@asynccontextmanager
async def connected(state: Path, *arguments: str, **environment: str) -> AsyncGenerator[Agent]:
    """Start a server on a state folder and connect to it; it ends with the block."""
    env = {**os.environ, "SEATRIAL_STATE": str(state), **environment}
    before = children()
    parameters = StdioServerParameters(command=sys.executable, args=["-I", "-m", "server", "serve", *arguments], env=env)
    async with Client(stdio_client(parameters)) as client:
        (pid,) = children() - before
        yield Agent(client, pid)


def seatrial(state: Path, *arguments: str, timeout_s: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user would."""
    env = {**os.environ, "SEATRIAL_STATE": str(state), **environment}
    command = [sys.executable, "-I", "-m", "server", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s)


def results_of(state: Path) -> list[dict[str, object]]:
    """Return what the operator sees of every trial, the oldest first."""
    with open_store(state / "private" / "store.db") as store:
        return [dataclasses.asdict(record) for record in store.trials()]


def children() -> set[int]:
    """Return the processes that this one started and that are still there."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in listed.split()}
