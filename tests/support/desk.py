"""An agent at work in one workspace, every answer of which is measured."""

import ast
import json
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from front_door import Agent, Answer, connected
from small_tasks import small_task

MOST = 7_000
"""Characters of JSON that no answer may exceed."""


@dataclass
class Desk:
    """A client and the workspace it works in."""

    agent: Agent
    workspace: str

    async def call(self, tool: str, **arguments: object) -> Answer:
        answer = await self.agent.call(tool, workspace_id=self.workspace, **arguments)
        assert len(json.dumps(answer.text)) - 2 <= MOST
        return answer

    async def good(self, tool: str, **arguments: object) -> str:
        """Call a tool that must do what it is asked to, and return what it says."""
        answer = await self.call(tool, **arguments)
        assert not answer.is_error, answer.text
        return answer.text

    async def bad(self, tool: str, **arguments: object) -> str:
        """Call a tool that must refuse, and return what it says."""
        answer = await self.call(tool, **arguments)
        assert answer.is_error, answer.text
        assert "of the server's" not in answer.text
        return answer.text

    async def run(self, command: str, **arguments: object) -> str:
        """Run a command and return what it printed, without the line about its end."""
        return (await self.good("run_command", command=command, **arguments)).partition("\n")[2]

    async def python(self, source: str, **arguments: object) -> str:
        """Run a Python program in the workspace, of any length, and return what it printed."""
        await self.good("save_file", path=".git/program.py", content=source)
        return await self.run("python .git/program.py", **arguments)

    async def start(self, command: str) -> str:
        """Start a command that does not end by itself, and return its id."""
        answer = await self.good("run_command", command=command, wait_s=0)
        assert answer.startswith("running: "), answer
        return answer.split()[1]

    async def works(self) -> bool:
        """Whether files and commands can be used."""
        await self.good("save_file", path="still-here.txt", content="yes\n")
        return await self.run("cat still-here.txt") == "yes\n"

    async def proposed(self, answer: str) -> str:
        """Run the command that an answer proposes, read all its output, and return that."""
        found = re.search(r"run_command\(command=('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\)", answer)
        assert found is not None, answer
        return await self.everything(ast.literal_eval(found[1]))

    async def everything(self, command: str) -> str:
        """Run a command and page through all it printed, doing as the answers say."""
        answer = await self.good("run_command", command=command)
        text = answer.partition("\n")[2]
        cut = re.search(r'\n\[\.\.\. [\d,]+ bytes left out; command_output\(command_id="(c\d+)", start=(\d+)\) shows them', text)
        if cut is None:
            return "" if text == "(no output)" else text
        text, command_id, start = text[: cut.start()], cut[1], int(cut[2])
        while start:
            page = (await self.good("command_output", command_id=command_id, start=start)).partition("\n")[2]
            more = re.search(r"\n\[bytes [\d,]+-[\d,]+ of [\d,]+; start=(\d+) shows more\]$", page)
            text += page[: more.start()] if more else page
            start = int(more[1]) if more else 0
        return text


@asynccontextmanager
async def desk_at(state: Path, task: str, **environment: str) -> AsyncGenerator[Desk]:
    """Open a workspace through a server of its own."""
    async with connected(state, **environment) as agent:
        yield Desk(agent, await agent.open(task))


def narrow_task(tasks: Path, name: str) -> str:
    """Write a small task with little memory, disk and few processes, so that bombs go off at once; return its id."""
    small_task(tasks, name, limits="processes = 64")
    file = tasks / name / "task.toml"
    text = file.read_text().replace("memory_mb = 1024", "memory_mb = 128").replace("storage_mb = 256", "storage_mb = 32")
    file.write_text(text)
    return name
