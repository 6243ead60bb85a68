"""Answers the tools of the contract from a folder, without any sandbox: `python fake_server.py FOLDER MODE OPTION...`."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

FOLDER, MODE = Path(sys.argv[1]), sys.argv[2]
WORKSPACE = "0123456789abcdef" * 2
OPENED = f"workspace_id: {WORKSPACE}\n"

server = MCPServer("fake")
asked = {"list_files": 0, "submit": 0}


@server.tool(structured_output=False)
async def open_workspace(task_id: str) -> str:
    if MODE == "refuses":
        raise ToolError(f"No task {task_id!r}. Call list_tasks to see the ids.")
    (FOLDER / "options").write_text("\n".join(sys.argv[3:]))
    return OPENED + ("building: fetching\n" if MODE == "builds" else "The task.\n")


@server.tool(structured_output=False)
async def list_files(workspace_id: str) -> str:
    asked["list_files"] += 1
    return "building: installing\n" if asked["list_files"] < 3 else "a listing"


@server.tool(structured_output=False)
async def save_file(workspace_id: str, path: str, content: str) -> str:
    target = FOLDER / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(content, newline="")
    return "saved"


@server.tool(structured_output=False)
async def run_command(workspace_id: str, command: str) -> str:
    ended = subprocess.run(["bash", "-c", command], cwd=FOLDER, capture_output=True, text=True)  # noqa: ASYNC221
    return f"exit code {ended.returncode}\n{ended.stdout}{ended.stderr}"


@server.tool(structured_output=False)
async def view_diff(workspace_id: str) -> str:
    return "a diff"


@server.tool(structured_output=False)
async def submit(workspace_id: str) -> str:
    asked["submit"] += 1
    if MODE == "dies":
        sys.stderr.write("the disk is full\n")
        sys.stderr.flush()
        os._exit(1)
    if MODE == "hangs":
        await asyncio.Event().wait()
    return "verifying: the patch is frozen\n" if asked["submit"] < 3 else "resolved\nwell done"


server.run()
