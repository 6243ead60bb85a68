"""Allowed hosts, with real containers: a task without a network, its two sidecars, and origins on a network of their own."""

import json
import os
import socket
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, closing
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from docker import APIClient
from docker.errors import DockerException
from docker.utils.socket import frames_iter

from server.sandboxes.daemon import Daemon, DockerError, connect
from server.sandboxes.egress import PORT, EgressError, open_egress
from server.sandboxes.egress_proxy import CONNECTIONS

IMAGE = os.environ.get("SEATRIAL_TEST_IMAGE", "seatrial-test-base:latest")
ME = f"seatrial-test-egress-{os.getpid()}"
LABELS = {"seatrial-test": ME}

ORIGIN = """
import http.server, json
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        sent = self.headers.get("Content-Length")
        body = self.rfile.read(int(sent)) if sent else b""
        if self.headers.get("Transfer-Encoding"):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        told = json.dumps({"line": self.requestline, "fields": self.headers.items(), "body": body.decode()}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.send_header("Proxy-Secret", "x")
        self.end_headers()
        self.wfile.write(told)
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.request_queue_size = 256
http.server.ThreadingHTTPServer(("", 80), Echo).serve_forever()
"""

WAIT = """
import socket, sys
while True:
    try: sys.exit(socket.create_connection((sys.argv[1], 80)).close())
    except OSError: pass
"""

ASK = """
import json, socket, sys
replies = []
for request in json.loads(sys.argv[2]):
    joined = socket.create_connection(("127.0.0.1", int(sys.argv[1])), 10)
    reply = b""
    try:
        joined.sendall(request.encode("latin-1"))
        while piece := joined.recv(65536):
            reply += piece
    except OSError as error:
        reply += repr(error).encode()
    replies.append(reply.decode("latin-1"))
print(json.dumps(replies))
"""


@dataclass(frozen=True)
class World:
    """A network with two origins, and a task that is not on it."""

    api: APIClient
    network: str
    gateway: str
    subnet: str
    box: str
    allowed: str
    denied: str

    def run(self, script: str, *arguments: str, env: Mapping[str, str] | None = None, within: str = "") -> str:
        """Run Python in the task's container, or ``within`` another, and return what it printed."""
        command = ["python3", "-I", "-c", script, *arguments]
        exec_id = self.api.exec_create(within or self.box, command, environment=dict(env or {}))["Id"]
        stream = self.api.exec_start(exec_id, socket=True)
        said = b"".join(piece for _, piece in frames_iter(stream, tty=False))
        with closing(stream._sock):  # the library leaves it to the garbage collector
            stream._response.close()
        assert self.api.exec_inspect(exec_id)["ExitCode"] == 0, said.decode()
        return said.decode()

    def ask(self, *requests: str) -> list[str]:
        """Send each request to the proxy, as raw bytes on a connection of its own, and return what came back to its end."""
        replies: list[str] = json.loads(self.run(ASK, str(PORT), json.dumps(requests)))
        return replies

    def open(
        self, daemon: Daemon, allowed: Sequence[str], private: bool = True
    ) -> AbstractAsyncContextManager[Mapping[str, str]]:
        return open_egress(daemon, self.box, ME, LABELS, allowed, IMAGE, self.network, allow_private=private)

    def left(self) -> list[str]:
        """Name what `open_egress` made and did not remove."""
        named = {"name": f"{ME}-egress"}
        containers = [name for found in self.api.containers(all=True, filters=named) for name in found["Names"]]
        return containers + [found["Name"] for found in self.api.volumes(filters=named)["Volumes"] or []]


def get(host: str, path: str = "/") -> str:
    return f"GET http://{host}{path} HTTP/1.1\r\nHost: {host}\r\n\r\n"


def through(target: str) -> str:
    """Ask for a tunnel and, within it, for the root."""
    return f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\nGET / HTTP/1.1\r\nHost: in\r\nConnection: close\r\n\r\n"


def status(reply: str) -> int:
    return int(reply.split(" ", 2)[1]) if reply.startswith("HTTP/1.1 ") else 0


def told(reply: str) -> dict[str, Any]:
    """What the origin says that it was asked."""
    said: dict[str, Any] = json.loads(reply.partition("\r\n\r\n")[2])
    return said


@pytest.fixture(scope="module")
def world() -> Generator[World]:
    try:
        connect().close()
        api = APIClient(version="auto")
        api.inspect_image(IMAGE)
    except (DockerError, DockerException) as error:
        pytest.skip(f"no Docker daemon with the image {IMAGE}: {error}")
    with ExitStack() as stack:
        stack.callback(api.close)
        network = ME
        api.create_network(network, "bridge", labels=LABELS)
        stack.callback(api.remove_network, network)

        def start(role: str, command: list[str], mode: str, aliases: Sequence[str]) -> str:
            config = (
                api.create_networking_config({network: api.create_endpoint_config(aliases=list(aliases))}) if aliases else None
            )
            host = api.create_host_config(network_mode=mode, init=True)
            made: str = api.create_container(
                IMAGE, command, name=f"{ME}-{role}", host_config=host, networking_config=config, labels=LABELS
            )["Id"]
            stack.callback(api.remove_container, made, force=True)
            api.start(made)
            return made

        echo = ["python3", "-c", ORIGIN]
        names = ("allowed.test", "a.wild.test", "wild.test"), ("denied.test", "xwild.test")
        origins = [start(f"origin-{number}", echo, network, aliases) for number, aliases in enumerate(names)]
        addresses = [api.inspect_container(origin)["NetworkSettings"]["Networks"][network]["IPAddress"] for origin in origins]
        box = start("box", ["sleep", "600"], "none", ())
        pool = api.inspect_network(network)["IPAM"]["Config"][0]
        found = World(api, network, pool["Gateway"], pool["Subnet"], box, *addresses)
        for address in addresses:
            found.run(WAIT, address, within=origins[0])
        yield found


@pytest.fixture
async def daemon() -> AsyncGenerator[Daemon]:
    joined = connect()
    yield joined
    joined.close()


async def test_allowed_names_are_reached_and_others_are_refused_with_a_reason(world: World, daemon: Daemon) -> None:
    async with world.open(daemon, ["allowed.test", "*.wild.test"]) as env:
        fetch = "import sys, urllib.request as u; print(u.urlopen('http://allowed.test/x?y', timeout=10).read().decode())"
        by_environment = json.loads(world.run(fetch, env=env))
        plain = world.ask(
            *map(get, ("allowed.test", "a.wild.test", "wild.test", "xwild.test", "denied.test", world.denied, world.allowed))
        )
        tunnels = world.ask(*map(through, ("allowed.test:80", "denied.test:80", f"{world.denied}:80", "allowed.test:81")))

    assert by_environment["line"] == "GET /x?y HTTP/1.1"
    assert [status(reply) for reply in plain] == [200, 200, 403, 403, 403, 403, 403]
    assert "may not reach denied.test. Hosts that it may reach: allowed.test, *.wild.test." in plain[4]
    assert [status(reply) for reply in tunnels] == [200, 403, 403, 502]
    assert '"line": "GET / HTTP/1.1"' in tunnels[0]


async def test_there_is_no_other_way_out(world: World, daemon: Daemon) -> None:
    probe = """
import json, socket, sys
def tried(work, *arguments):
    try: return work(*arguments) and "reached"
    except OSError as error: return type(error).__name__
def abstract(name):
    with socket.socket(socket.AF_UNIX) as one: one.connect(name); return True
def joined(host, port):
    with socket.create_connection((host, int(port)), 3): return True
port, name, *hosts = sys.argv[1:]
print(json.dumps([tried(abstract, "\\0" + name), tried(joined, "127.0.0.1", port), tried(socket.getaddrinfo, "allowed.test", 80)]
    + [tried(joined, host, 80) for host in hosts]))
"""
    with socket.create_server(("127.0.0.1", 0)) as ours, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0{ME}")
        abstract.listen()
        port = str(ours.getsockname()[1])
        async with world.open(daemon, ["allowed.test"]):
            tried = json.loads(world.run(probe, port, ME, world.allowed, world.denied, world.gateway))
            asked = world.ask(*(through(f"{host}:{port}") for host in ("127.0.0.1", "localhost", "[::1]", world.gateway)))

    assert tried == ["ConnectionRefusedError", "ConnectionRefusedError", "gaierror", "OSError", "OSError", "OSError"]
    assert [status(reply) for reply in asked] == [403] * 4


async def test_the_filter_and_the_machine_that_runs_it_stay_closed_to_names_and_ranges(world: World, daemon: Daemon) -> None:
    async with world.open(daemon, ["localhost", "127.0.0.0/8", "::/0", "169.254.0.0/16", world.subnet]):
        own = ("localhost:80", "127.0.0.1:80", "127.0.0.11:53", "[::1]:80", "[::ffff:127.0.0.1]:80", "169.254.169.254:80")
        refused = world.ask(*map(through, (*own, f"{world.gateway}:80")))
        reached = world.ask(through(f"{world.denied}:80"))

    assert [status(reply) for reply in refused] == [403] * 7
    assert all("is not public" in reply for reply in refused)
    assert [status(reply) for reply in reached] == [200], "the range of the network opens the rest of it"


async def test_names_at_private_addresses_are_closed_unless_the_address_is_allowed_too(world: World, daemon: Daemon) -> None:
    async with world.open(daemon, ["allowed.test", "denied.test", f"{world.allowed}/32"], private=False):
        assert [status(reply) for reply in world.ask(get("allowed.test"), get(world.allowed), get("denied.test"))] == [
            200,
            200,
            403,
        ]


GET = get("allowed.test")[:-2]
POST = GET.replace("GET", "POST")
MALFORMED = {
    "no proxy request": "GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
    "not HTTP": "hello\r\n\r\n",
    "another version": "GET http://allowed.test/ HTTP/2.0\r\nHost: allowed.test\r\n\r\n",
    "https without a tunnel": "GET https://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
    "a user": "GET http://allowed.test@denied.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
    "no host": "GET http://allowed.test/ HTTP/1.1\r\n\r\n",
    "another host": "GET http://allowed.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n",
    "another port": "GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test:81\r\n\r\n",
    "two hosts": f"{GET}Host: allowed.test\r\n\r\n",
    "another host of a tunnel": "CONNECT allowed.test:80 HTTP/1.1\r\nHost: denied.test:80\r\n\r\n",
    "a tunnel without a port": "CONNECT allowed.test HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
    "a tunnel with a body": "CONNECT allowed.test:80 HTTP/1.1\r\nHost: allowed.test:80\r\nContent-Length: 3\r\n\r\nabc",
    "two framings": f"{POST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": f"{POST}Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a signed length": f"{POST}Content-Length: +1\r\n\r\na",
    "another coding": f"{POST}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": "POST http://allowed.test/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded field": f"{GET}X: 1\r\n 2\r\n\r\n",
    "a space before the colon": f"{GET}Content-Length : 1\r\n\r\n",
    "a lone line feed": f"{GET}X: 1\nY: 2\r\n\r\n",
    "a lone carriage return": f"{GET}X: 1\rY: 2\r\n\r\n",
    "a NUL": f"{GET}X: \0\r\n\r\n",
    "a space in the target": "GET http://allowed.test/a b HTTP/1.1\r\nHost: allowed.test\r\n\r\n",
}


async def test_what_could_be_understood_in_two_ways_is_refused(world: World, daemon: Daemon) -> None:
    async with world.open(daemon, ["allowed.test"]):
        replies = world.ask(*MALFORMED.values())
        long = world.ask(get("allowed.test", "/" + "a" * 40_000), get("allowed.test")[:-2] + "X: y\r\n" * 200 + "\r\n")

    assert {name: status(reply) for name, reply in zip(MALFORMED, replies, strict=True)} == dict.fromkeys(MALFORMED, 400)
    assert [status(reply) for reply in long] == [431, 431]


async def test_one_request_goes_out_for_each_connection_framed_and_addressed_by_the_filter(world: World, daemon: Daemon) -> None:
    head = "POST http://ALLOWED.test:80?q HTTP/1.1\r\nHost: allowed.test\r\n"
    hops = "Connection: keep-alive, X-Hop, Host, Content-Length\r\nX-Hop: 1\r\nProxy-X: x\r\nTE: trailers\r\nX-End: 2\r\n"
    next_one = "GET http://allowed.test/second HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
    async with world.open(daemon, ["allowed.test"]):
        counted, chunked, expected, old, bad = world.ask(
            f"{head}{hops}Content-Length: 3\r\n\r\nabc{next_one}",
            f"{head}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n{next_one}",
            f"{head}Expect: 100-continue\r\nContent-Length: 3\r\n\r\nabc",
            "GET http://allowed.test/old HTTP/1.0\r\n\r\n",
            f"{head}Transfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n0\r\n\r\n",
        )

    first = told(counted)
    assert (first["line"], first["body"]) == ("POST /?q HTTP/1.1", "abc")
    assert first["fields"] == [["Host", "allowed.test"], ["Content-Length", "3"], ["Connection", "close"], ["X-End", "2"]]
    assert "proxy-secret" not in counted.lower()
    assert counted.count("HTTP/1.1 200") == chunked.count("HTTP/1.1 200") == 1
    assert "Connection: close" in counted
    assert told(chunked)["body"] == "abc"
    assert expected.startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    assert told(old)["line"] == "GET /old HTTP/1.0"
    assert status(bad) == 502


async def test_large_bodies_pass_whole_in_both_directions_plain_and_in_a_tunnel(world: World, daemon: Daemon) -> None:
    carry = """
import http.client, json, sys
size = 20_000_000
for tunnel in (False, True):
    joined = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
    if tunnel: joined.set_tunnel("allowed.test", 80)
    joined.request("POST", "/" if tunnel else "http://allowed.test/", b"0123456789" * (size // 10),
                   {} if tunnel else {"Host": "allowed.test"})
    print(json.loads(joined.getresponse().read())["body"] == "0123456789" * (size // 10))
"""
    async with world.open(daemon, ["allowed.test"]):
        assert world.run(carry, str(PORT)).split() == ["True", "True"]


async def test_connections_beyond_the_limit_are_told_so_and_places_are_given_back(world: World, daemon: Daemon) -> None:
    crowd = """
import json, socket, sys
opened = [socket.create_connection(("127.0.0.1", int(sys.argv[1])), 20) for _ in range(200)]
statuses = []
for one in opened:
    one.sendall(b"CONNECT allowed.test:80 HTTP/1.1\\r\\nHost: allowed.test:80\\r\\n\\r\\n")
for one in opened:
    statuses.append(one.recv(64).split(b" ")[1].decode())
for one in opened: one.close()
print(json.dumps(statuses))
"""
    async with world.open(daemon, ["allowed.test"]):
        first, again = (json.loads(world.run(crowd, str(PORT))) for _ in range(2))
        after = world.ask(get("allowed.test"))

    assert (first.count("200"), first.count("503")) == (CONNECTIONS, 200 - CONNECTIONS)
    assert set(again) == {"200", "503"}
    assert [status(reply) for reply in after] == [200]


async def test_the_sidecars_have_no_privileges_and_are_labelled(world: World, daemon: Daemon) -> None:
    look = """
import json, os, socket
fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
def writes(path):
    try: open(path, "w").close(); return True
    except OSError: return False
print(json.dumps([os.getuid(), os.getgid(), int(fields["CapEff"], 16), int(fields["CapBnd"], 16), int(fields["NoNewPrivs"]),
    writes("/tmp/x"), writes("/x"), sorted(name for _, name in socket.if_nameindex())]))
"""
    async with world.open(daemon, ["allowed.test"]):
        seen = {role: json.loads(world.run(look, within=f"{ME}-egress-{role}")) for role in ("filter", "forward")}
        labels = [world.api.inspect_container(f"{ME}-egress-{role}")["Config"]["Labels"] for role in seen]
        volume = world.api.inspect_volume(f"{ME}-egress")["Labels"]

    assert seen["filter"][:-1] == seen["forward"][:-1] == [64_998, 64_998, 0, 0, 1, False, False]
    assert "lo" in seen["forward"][-1]
    assert not any(name.startswith("eth") for name in seen["forward"][-1])
    assert all(LABELS.items() <= found.items() for found in (*labels, volume))
    assert world.left() == []


async def test_nothing_is_left_after_an_error_a_cancellation_or_a_start_that_failed(world: World, daemon: Daemon) -> None:
    with pytest.raises(ZeroDivisionError):
        async with world.open(daemon, ["allowed.test"]):
            assert len(world.left()) == 3
            raise ZeroDivisionError
    assert world.left() == []

    with anyio.CancelScope() as scope:
        async with world.open(daemon, ["allowed.test"]):
            scope.cancel()
            await anyio.sleep_forever()
    assert world.left() == []

    with anyio.move_on_after(0.2) as early:
        async with world.open(daemon, ["allowed.test"]):
            await anyio.sleep_forever()
    assert early.cancelled_caught
    assert world.left() == []

    with pytest.raises(EgressError, match=r"must be free") as refused:
        async with (
            world.open(daemon, ["allowed.test"]),
            open_egress(daemon, world.box, f"{ME}-egress-2", LABELS, [], IMAGE, world.network),
        ):
            pass
    assert "address already in use" in str(refused.value)
    assert world.left() == []


async def test_malformed_hosts_and_missing_images_are_explained_and_leave_nothing(world: World, daemon: Daemon) -> None:
    with pytest.raises(EgressError, match=r"'https://a.test' is no host name.*Correct its task.toml"):
        async with world.open(daemon, ["https://a.test"]):
            pass
    with pytest.raises(DockerError, match="No such image"):
        async with open_egress(daemon, world.box, ME, LABELS, [], "seatrial-no-such-image:1", world.network):
            pass
    assert world.left() == []
