"""Lanes: persistent shells in a container, each a ``docker exec`` of ``sh`` that does one request at a time.

The server writes shell text, the shell runs it; the end of each request is told by a line with a fresh random word, so
nothing that a command prints can be taken for it. Only ``sh`` and its usual utilities are assumed.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel

from server.sandboxes.daemon import Daemon, DockerError
from server.sandboxes.streams import Exec, ExecStream, open_exec

_FLOOD_BYTES = 32 << 20
_FLOOD_PAUSE_S = 0.002

PRELUDE = r"""
set +e +u; unset ENV MAIL MAILPATH
W=$(pwd -P); W=${W%/}
resolve() {
  p=$(readlink -f -- "$1"; printf x); p=${p%x}; p=${p%?}; why=
  if [ ! -e "$1" ]; then
    if [ -L "$1" ]; then why='a symlink that leads nowhere'; else why='no such file or folder'; fi; return 1
  fi
  case "$p/" in "$W"/*) return 0;; esac
  why='a symlink that leads outside the workspace'; return 1
}
regular() {
  resolve "$1" || return 1
  if [ -f "$p" ]; then return 0; fi
  if [ -d "$p" ]; then why=folder; elif [ -p "$p" ]; then why=FIFO; elif [ -S "$p" ]; then why=socket; else why=device; fi
  why="not a regular file but a $why"; return 1
}
refuse() { printf 'R %s\n' "$1"; }
rd() {
  regular "$1" || { refuse "$why"; return; }
  [ -r "$p" ] || { refuse 'permission denied'; return; }
  size=$(stat -c %s -- "$p" 2>/dev/null) || size=$(wc -c <"$p")
  printf 'D %s\n' "$size"
  if [ "$2" = 1 ]; then head -c "$3" <"$p"; else tail -c +"$2" -- "$p" | head -c "$3"; fi
}
place() {
  t=; keep=
  if [ -e "$1" ] || [ -L "$1" ]; then
    regular "$1" || return 1
    goal=$p; keep=1
  else
    above=.; case $1 in */*) above=${1%/*};; esac
    there=$above; while [ ! -e "$there" ] && [ ! -L "$there" ]; do case $there in */*) there=${there%/*};; *) there=.;; esac; done
    resolve "$there" || { [ "$why" = "${why#a symlink}" ] || why='its folder is not a folder of the workspace'; return 1; }
    [ -d "$p" ] || { why='its folder is not a folder of the workspace'; return 1; }
    mkdir -p -- "$above" 2>/dev/null || { why='permission denied'; return 1; }
    goal=$above/${1##*/}
  fi
  t=${goal%/*}/.seatrial-$2
  if [ -n "$keep" ]; then cp -p -- "$goal" "$t" 2>/dev/null; else (umask 022; : >"$t") 2>/dev/null; fi
  [ -f "$t" ] || { why='permission denied'; return 1; }
}
walk() {
  local at="$1" depth="$2" name
  set --
  for name in "./$at"* "./$at".[!.]* "./$at"..?*; do
    if [ -e "$name" ] || [ -L "$name" ]; then set -- "$@" "${name#./}"; fi
  done
  for name; do
    if [ -L "$name" ]; then printf 'l0\0%s\0' "$name"
    elif [ -d "$name" ]; then printf 'd0\0%s\0' "$name"
    elif [ -f "$name" ]; then
      size=$(stat -c %s -- "$name" 2>/dev/null); printf 'f%s\0%s\0' "${size:-0}" "$name"
    else printf 'o0\0%s\0' "$name"; fi
    many=$((many + 1)); [ "$many" -ge 20000 ] && return
    if [ "$depth" -gt 1 ] && [ -d "$name" ] && [ ! -L "$name" ]; then walk "$name/" $((depth - 1)); fi
  done
}
dirty() {
  for f in /proc/[0-9]*/fd/1 /proc/[0-9]*/fd/2; do
    case $f in /proc/$$/*) continue;; esac
    [ "$f" -ef /proc/$$/fd/1 ] && return 0
  done
  return 1
}
table() {
  for d in /proc/[0-9]*; do
    line=; { while read -r one; do line="$line $one"; done <"$d/stat"; } 2>/dev/null
    set -- ${line##*) }
    [ -n "$4" ] && [ "$1" != Z ] && printf '%s %s %s\n' "${d#/proc/}" "$2" "$4"
  done
}
kills() {
  for f in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ -r "$f" ] && while read -r k v; do [ "$k" = oom_kill ] && printf '%s' "$v"; done <"$f"
  done
}
"""
"""The shell functions of a lane. ``table`` prints pid, parent, session of every living process."""

_HELLO = r"""
if [ -x /bin/bash ]; then s=/bin/bash; elif [ -x /usr/bin/bash ]; then s=/usr/bin/bash; else s=/bin/sh; fi
printf '%s\n%s\n%s\n' "$$" "$s" "$(pwd -P)"
table
"""


@dataclass
class Hello:
    """What a new lane says of itself and of what runs already: (pid, parent, session)."""

    pid: int
    shell: str
    workdir: str
    processes: list[tuple[int, int, int]] = field(default_factory=list)


class LaneEndedError(Exception):
    """The stream of a lane ended: its shell or its container is gone."""


class Lane:
    """One shell; made by `open_lane`. ``busy`` and ``pid`` are for whoever shares lanes out."""

    def __init__(self, stream: ExecStream) -> None:
        self._stream = stream
        self._rest = b""
        self._mark = b""
        self.pid = 0
        self.busy = False

    async def begin(self, body: str) -> None:
        """Send one request; `finish` must be called until it returns.

        Raises:
            LaneEndedError: the shell is gone.
        """
        word = secrets.token_hex(16)
        self._mark, self._rest = f"\n{word} ".encode(), b""
        try:
            with anyio.CancelScope(shield=True):
                await self._stream.send(
                    f"{body}\nprintf '\\n%s %s %s %s\\n' {word} $c $dirt $oom\n".encode("utf-8", "surrogateescape")
                )
        except DockerError as error:
            raise LaneEndedError from error

    async def finish(self, take: Callable[[bytes], None]) -> list[bytes]:
        """Pass on output until the request is over, and return the words of its end: exit code, dirt, memory kills.

        May be cancelled and called again.

        Raises:
            LaneEndedError: the shell is gone.
        """
        received = 0
        while True:
            at = self._rest.find(self._mark)
            if at >= 0 and (end := self._rest.find(b"\n", at + 1)) >= 0:
                if at:
                    take(self._rest[:at])
                words, self._rest = self._rest[at + len(self._mark) : end].split(b" "), b""
                return words
            held = at if at >= 0 else _may_begin(self._rest, self._mark)
            if held > 0:
                out, self._rest = self._rest[:held], self._rest[held:]
                take(out)
            try:
                pieces = await self._stream.receive()
            except DockerError as error:
                raise LaneEndedError from error
            if pieces is None:
                raise LaneEndedError
            self._rest += b"".join(data for stream, data in pieces if stream == 1)
            received += sum(len(data) for _, data in pieces)
            if received > _FLOOD_BYTES:
                await anyio.sleep(_FLOOD_PAUSE_S)

    async def drain(self) -> None:
        """Throw away whatever comes, for as long as something comes."""
        try:
            while await self._stream.receive() is not None:
                await anyio.lowlevel.checkpoint()
        except DockerError:
            return

    def close(self) -> None:
        self._stream.close()


def _may_begin(data: bytes, mark: bytes) -> int:
    """Return where in the end of ``data`` a mark may have begun; its length if nowhere."""
    at = data.find(b"\n", max(0, len(data) - len(mark)))
    while at >= 0:
        if mark.startswith(data[at:]):
            return at
        at = data.find(b"\n", at + 1)
    return len(data)


async def open_lane(daemon: Daemon, container: str, user: str, workdir: str) -> tuple[Lane, Hello]:
    """Start a lane.

    Raises:
        DockerError: the container is not running, or has no ``sh``.
    """
    lane = Lane(await open_exec(daemon, container, Exec(["sh"], {}, user, workdir, stdin=True)))
    said = bytearray()
    try:
        with anyio.fail_after(30):
            await lane.begin(f"{PRELUDE}{_HELLO}c=0 dirt=0 oom=0")
            await lane.finish(said.extend)
    except (LaneEndedError, TimeoutError) as error:
        lane.close()
        text = bytes(said or lane._rest)[:200].decode(errors="replace").strip()
        raise DockerError(f"No shell could be started in the container: {text or 'it has no sh'}.") from error
    pid, shell, where, *lines = bytes(said).decode(errors="replace").split("\n")
    lane.pid = int(pid)
    processes = [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in lines if line.count(" ") == 2)]
    return lane, Hello(lane.pid, shell, where, processes)
