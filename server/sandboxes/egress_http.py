"""HTTP/1 as strictly as a filter must read it: what two readers could understand differently is refused.

Runs inside a sidecar, see `egress_proxy.py`.
"""

import re
from asyncio import LimitOverrunError, StreamReader
from dataclasses import dataclass

from server.sandboxes.egress_rules import HOST_NAME, address_of

HEAD_MAX = 32 << 10
FIELDS_MAX = 100

Fields = list[tuple[str, str]]

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,254})(?::([0-9]{1,5}))?")
_URI = re.compile(r"http://([^/?#@]+)([/?][^#]*)?", re.IGNORECASE)
_REQUEST = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([\x21-\x7e]+) (HTTP/1\.[01])")
_STATUS = re.compile(r"HTTP/1\.[01] ([1-5][0-9][0-9])( .*)?")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH = re.compile(r"[0-9]{1,15}")
_HOPS = {"connection", "keep-alive", "te", "trailer", "upgrade", "expect"}
_FRAMING = {"host", "content-length", "transfer-encoding"}


class Refusal(Exception):
    """An answer of our own in place of the one that was asked for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Request:
    """What a client asks of the filter; ``path`` is empty for a CONNECT, ``length`` is -1 for a chunked body."""

    method: str
    version: str
    host: str
    port: int
    path: str
    fields: Fields
    length: int
    expects: bool

    def head(self) -> bytes:
        """Return the head to send on, framed and addressed by us."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        framing = [("Transfer-Encoding", "chunked")] if self.length < 0 else [("Content-Length", str(self.length))]
        bare = not self.length and self.method in ("GET", "HEAD", "OPTIONS", "DELETE")
        own = [("Host", name if self.port == 80 else f"{name}:{self.port}"), *([] if bare else framing), ("Connection", "close")]
        return head_of(f"{self.method} {self.path} {self.version}", own + end_to_end(self.fields, _FRAMING))


def authority(text: str, default: int | None) -> tuple[str, int]:
    """Take ``host:port`` apart: the name in lower case, an address as Python writes it."""
    found = _AUTHORITY.fullmatch(text)
    port = int(found[2]) if found and found[2] else default
    if not found or not port or port > 65535:
        raise Refusal(400, f"{text!r} is no host and port")
    if found[1].startswith("["):
        address = address_of(found[1][1:-1])
        if not address:
            raise Refusal(400, f"{text!r} is no address")
        return str(address), port
    name = found[1].lower().removesuffix(".")
    if not HOST_NAME.fullmatch(name):
        raise Refusal(400, f"{text!r} is no host name")
    return name, port


def parse_request(first: str, fields: Fields) -> Request:
    """Understand a request in full or refuse it."""
    line = _REQUEST.fullmatch(first)
    if not line:
        raise Refusal(400, "this is no HTTP/1 request")
    method, target, version = line.groups()
    if method == "CONNECT":
        (host, port), path = authority(target, None), ""
    else:
        uri = _URI.fullmatch(target)
        if not uri or method == "TRACE":
            raise Refusal(400, "this is a proxy: ask for http://HOST/PATH, or CONNECT HOST:PORT for anything else")
        (host, port), path = authority(uri[1], 80), uri[2] or "/"
    hosts = _values(fields, "host")
    if len(hosts) > 1 or (version == "HTTP/1.1" and not hosts):
        raise Refusal(400, "a request has one Host field")
    if hosts and authority(hosts[0], port if method == "CONNECT" else 80) != (host, port):
        raise Refusal(400, "the Host field names another host than the request line")
    length = _length(fields, version)
    if length and method == "CONNECT":
        raise Refusal(400, "a CONNECT has no body")
    expects = "100-continue" in (value.lower() for value in _values(fields, "expect"))
    return Request(method, version, host, port, "/" * path.startswith("?") + path, fields, length, expects)


def status_of(first: str) -> int:
    """Return the status in the first line of an answer; a switch to another protocol is none that we asked for."""
    found = _STATUS.fullmatch(first)
    if not found or found[1] == "101":
        raise Refusal(502, "the host gave no proper answer")
    return int(found[1])


def _length(fields: Fields, version: str) -> int:
    lengths, codings = _values(fields, "content-length"), _values(fields, "transfer-encoding")
    if codings and (lengths or codings != ["chunked"] or version != "HTTP/1.1"):
        raise Refusal(400, "a body is either chunked or has a Content-Length")
    if len(lengths) > 1 or not all(map(_LENGTH.fullmatch, lengths)):
        raise Refusal(400, "a request has at most one Content-Length")
    return -1 if codings else int(lengths[0]) if lengths else 0


def _values(fields: Fields, name: str) -> list[str]:
    return [value for field, value in fields if field.lower() == name]


def end_to_end(fields: Fields, without: set[str]) -> Fields:
    """Leave out what concerns only one connection, and ``without``."""
    named = {name.strip().lower() for value in _values(fields, "connection") for name in value.split(",")}
    dropped = _HOPS | without | (named - _FRAMING)
    return [(name, value) for name, value in fields if name.lower() not in dropped and not name.lower().startswith("proxy-")]


def head_of(first: str, fields: Fields) -> bytes:
    return "".join(f"{line}\r\n" for line in (first, *(f"{name}: {value}" for name, value in fields), "")).encode("latin-1")


async def read_head(reader: StreamReader) -> tuple[str, Fields]:
    """Read the first line and the fields of a message."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except LimitOverrunError:
        raise Refusal(431, f"the head of a message has at most {HEAD_MAX} bytes") from None
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    found = [_FIELD.fullmatch(line) for line in lines if not _CONTROL.search(line)]
    if _CONTROL.search(first) or len(found) < len(lines) or not all(found):
        raise Refusal(400, "a field of the head is malformed")
    if len(found) > FIELDS_MAX:
        raise Refusal(431, f"a message has at most {FIELDS_MAX} fields")
    return first, [(field[1], field[2]) for field in found if field]
