"""What runs in the two sidecars of `egress.py`: a forwarder beside the task, and the filter that decides.

This module, `egress_http` and `egress_rules` are handed as text to a Python (3.11 or later) of another image, so they
import the standard library and each other only.
The task can say anything to the filter: requests are parsed strictly, one for each connection, and every name is resolved
here, once, so that what was checked is what is connected to. What is inside of a CONNECT is not looked at: a server that
answers for several names can be asked for any of them. Nothing that passes is logged.
"""

import asyncio
import json
import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from server.sandboxes.egress_http import HEAD_MAX, Refusal, Request, end_to_end, head_of, parse_request, read_head, status_of
from server.sandboxes.egress_rules import Rules, address_of

CONNECTIONS = 128
"""How many the filter serves at a time; the forwarder takes twice as many, so that the rest get an answer."""
HEAD_S, DIAL_S, IDLE_S, LINGER_S = 20.0, 10.0, 300.0, 1.0
PIECE = 64 << 10
READY = "ready"

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Awaitable[None]]

_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")


class Clock:
    """When bytes last moved, in either direction."""

    def __init__(self) -> None:
        self.touch()

    def touch(self) -> None:
        self.seen = asyncio.get_running_loop().time()

    def left(self) -> float:
        return self.seen + IDLE_S - asyncio.get_running_loop().time()


async def pump(reader: Reader, writer: Writer, clock: Clock) -> None:
    """Copy to the end of ``reader``, and hand on the end."""
    while data := await reader.read(PIECE):
        await _send(writer, data, clock)
    writer.write_eof()


async def _send(writer: Writer, data: bytes, clock: Clock) -> None:
    clock.touch()
    writer.write(data)
    await writer.drain()
    clock.touch()


async def together(clock: Clock, *works: Coroutine[Any, Any, None]) -> None:
    """Run until all are done, one fails (its error is raised) or nothing has moved for `IDLE_S`."""
    tasks = {asyncio.create_task(work) for work in works}
    pending = tasks
    try:
        while pending and (left := clock.left()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def dial(rules: Rules, host: str, port: int) -> tuple[Reader, Writer]:
    """Connect to an allowed host at an allowed address."""
    if not rules.host(host):
        raise Refusal(403, f"this task may not reach {host}. Hosts that it may reach: {rules.said}")
    try:
        async with asyncio.timeout(DIAL_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Refusal(502, f"{host} could not be resolved") from None
    addresses = dict.fromkeys(address for info in found if (address := address_of(str(info[4][0]))))
    permitted = [address for address in addresses if rules.address(address)]
    if not permitted:
        raise Refusal(403, f"{host} is at an address that is not public, which this task may not reach")
    for address in permitted[:4]:
        try:
            async with asyncio.timeout(DIAL_S):
                return await asyncio.open_connection(str(address), port, limit=HEAD_MAX)
        except OSError:
            continue
    raise Refusal(502, f"{host} does not answer at port {port}")


async def send_body(request: Request, reader: Reader, writer: Writer, clock: Clock) -> None:
    """Copy the body of a request and not a byte of what follows it; one that is cut short ends the connection."""
    try:
        if request.length > 0:
            await _send_exactly(request.length, reader, writer, clock)
        while request.length < 0:
            line = _CHUNK.fullmatch(await reader.readline())
            size = int(line[1], 16) if line else 0
            if not line:
                raise Refusal(400, "a chunk of the body is malformed")
            await _send(writer, b"%x\r\n" % size, clock)
            await _send_exactly(size, reader, writer, clock)
            if await reader.readexactly(2) != b"\r\n":
                raise Refusal(400, "a chunk of the body is malformed")
            await _send(writer, b"\r\n", clock)
            if not size:
                return
    except BaseException:
        writer.transport.abort()
        raise


async def _send_exactly(size: int, reader: Reader, writer: Writer, clock: Clock) -> None:
    while size:
        data = await reader.read(min(size, PIECE))
        if not data:
            raise asyncio.IncompleteReadError(b"", size)
        await _send(writer, data, clock)
        size -= len(data)


async def answer(reader: Reader, writer: Writer, clock: Clock) -> None:
    """Copy an answer and say that the connection ends with it."""
    status = 100
    while status < 200:
        try:
            first, fields = await read_head(reader)
            status = status_of(first)
        except (Refusal, OSError, EOFError):
            raise Refusal(502, "the host gave no proper answer") from None
        clock.touch()
    await _send(writer, head_of(first, [*end_to_end(fields, set()), ("Connection", "close")]), clock)
    await pump(reader, writer, clock)


async def _exchange(request: Request, client: tuple[Reader, Writer], host: tuple[Reader, Writer], clock: Clock) -> None:
    await _send(host[1], request.head(), clock)
    if request.expects and request.version == "HTTP/1.1" and request.length:
        await _send(client[1], b"HTTP/1.1 100 Continue\r\n\r\n", clock)
    body = asyncio.create_task(send_body(request, client[0], host[1], clock))
    try:
        await answer(host[0], client[1], clock)
    finally:
        body.cancel()
        await asyncio.gather(body, return_exceptions=True)


async def filter_one(rules: Rules, reader: Reader, writer: Writer) -> None:
    """Serve one request."""
    try:
        try:
            async with asyncio.timeout(HEAD_S):
                request = parse_request(*await read_head(reader))
        except TimeoutError:
            raise Refusal(408, f"the request was not there within {HEAD_S:.0f} s") from None
        host = await dial(rules, request.host, request.port)
        clock = Clock()
        try:
            if request.path:
                await together(clock, _exchange(request, (reader, writer), host, clock))
            else:
                await _send(writer, b"HTTP/1.1 200 Connection established\r\n\r\n", clock)
                await together(clock, pump(reader, host[1], clock), pump(host[0], writer, clock))
        finally:
            await end(host[1])
    except Refusal as refusal:
        await refuse(refusal, reader, writer)


async def refuse(refusal: Refusal, reader: Reader, writer: Writer) -> None:
    """Answer, and go on reading for a moment: closing on unread bytes could take the answer back."""
    body = f"seatrial: {refusal}.\n".encode()
    fields = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Connection", "close")]
    writer.write(head_of(f"HTTP/1.1 {refusal.status} Refused", fields) + body)
    writer.write_eof()
    try:
        async with asyncio.timeout(LINGER_S):
            while await reader.read(PIECE):
                pass
    except TimeoutError:
        return


async def forward_one(path: str, reader: Reader, writer: Writer) -> None:
    """Carry one connection to the filter and know nothing of it."""
    inner, outer = await asyncio.open_unix_connection(path, limit=HEAD_MAX)
    clock = Clock()
    try:
        await together(clock, pump(reader, outer, clock), pump(inner, writer, clock))
    finally:
        await end(outer)


async def end(writer: Writer) -> None:
    """Close; a peer that does not take its last bytes cannot keep the connection."""
    writer.close()
    try:
        async with asyncio.timeout(DIAL_S):
            await writer.wait_closed()
    except OSError:
        writer.transport.abort()


def bounded(serve: Serve, limit: int, full: Serve) -> Serve:
    """Serve at most ``limit`` connections at a time, and close each at its end; ``full`` is for those beyond."""
    count = 0

    async def serve_bounded(reader: Reader, writer: Writer) -> None:
        nonlocal count
        count += 1
        try:
            await (serve if count <= limit else full)(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError):
            writer.transport.abort()  # one of the two sides went away: the other learns it
        finally:
            await end(writer)
            count -= 1

    return serve_bounded


async def refuse_more(reader: Reader, writer: Writer) -> None:
    text = f"{CONNECTIONS} connections are open, which is all that one task may have. Close some, or try again"
    await refuse(Refusal(503, text), reader, writer)


async def hang_up(_: Reader, writer: Writer) -> None:
    writer.transport.abort()


async def main(role: str, path: str, argument: str) -> None:
    """``forward PATH PORT`` or ``filter PATH RULES``: RULES is a JSON object of the arguments of `Rules`."""
    os.umask(0o077)
    if role == "forward":
        serve = bounded(partial(forward_one, path), 2 * CONNECTIONS, hang_up)
        server: asyncio.Server = await asyncio.start_server(serve, "127.0.0.1", int(argument), limit=HEAD_MAX, backlog=512)
    else:
        serve = bounded(partial(filter_one, Rules(**json.loads(argument))), CONNECTIONS, refuse_more)
        server = await asyncio.start_unix_server(serve, path, limit=HEAD_MAX, backlog=512)
    sys.stdout.write(f"{READY}\n")
    sys.stdout.flush()
    await server.serve_forever()
