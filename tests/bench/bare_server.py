"""The floor of everything that goes over stdio: the SDK's server as it is, with one tool that does nothing."""

import anyio
from mcp.server.mcpserver import MCPServer


async def noop() -> str:
    """Do nothing."""
    return "ok"


if __name__ == "__main__":
    server = MCPServer("bare", log_level="WARNING")
    server.add_tool(noop, structured_output=False)
    anyio.run(server.run_stdio_async)
