"""What is said to a shell inside a container: only ``sh`` and its usual utilities are assumed, nothing is installed.

Every request ends with a line ``NONCE CODE DIRTY KILLS``: how it ended, whether a process that it left behind still
holds our output, how often the kernel has killed for memory. Before it there may be a line ``NONCE ! TEXT``: a refusal.
"""

import os
import re
from collections.abc import Mapping, Sequence

from server.sandboxes.base import PathError

PRELUDE = rb"""
_st_nl='
'
_st_end() { printf '\n%s %s 0 0\n' "$1" "${2:-0}"; }
_st_no() { printf '\n%s ! %s\n' "$1" "$2"; exit 1; }
_st_oom() {
  _st_k=0
  for _st_f in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ -r "$_st_f" ] && while read -r _st_a _st_b; do [ "$_st_a" = oom_kill ] && _st_k=$_st_b; done <"$_st_f"
  done
}
_st_ran() {
  _st_dirty=0 _st_k=-1
  for _st_d in /proc/[0-9]*; do
    [ "$_st_d" = "/proc/$$" ] && continue
    if [ "$_st_d/fd/1" -ef "/proc/$$/fd/1" ] || [ "$_st_d/fd/2" -ef "/proc/$$/fd/1" ]; then _st_dirty=1; break; fi
  done
  [ "$2" = 0 ] || _st_oom
  printf '\n%s %s %s %s\n' "$1" "$2" "$_st_dirty" "$_st_k"
}
_st_why() {
  if [ -L "$1" ] && [ ! -e "$1" ]; then echo 'a symlink that leads nowhere'
  elif [ -e "$1" ]; then echo 'Permission denied'
  else
    _st_u=${1%/*}
    while [ -n "$_st_u" ] && [ ! -e "$_st_u" ]; do _st_u=${_st_u%/*}; done
    if [ -n "$_st_u" ] && [ ! -d "$_st_u" ]; then echo 'Not a directory'; else echo "${2:-no such file or folder}"; fi
  fi
}
_st_in() { cd -- "$2" 2>/dev/null || {
  if [ -e "$2" ] && [ ! -d "$2" ]; then _st_no "$1" "cwd $2: Not a directory"; fi
  _st_no "$1" "cwd $2: $(_st_why "$2" 'No such file or directory')"; }
}
_st_ok() {
  case $2 in
  */*) [ -e "$2" ] || _st_no "$1" "$2: $(_st_why "$2" 'No such file or directory')"
    [ -f "$2" ] && [ -x "$2" ] || _st_no "$1" "$2: Permission denied";;
  *) command -v "$2" >/dev/null 2>&1 || _st_no "$1" "$2: No such file or directory";;
  esac
}
_st_real() { _st_r=$(readlink -f -- "$1" 2>/dev/null; echo x); _st_r=${_st_r%x}; _st_r=${_st_r%"$_st_nl"}; }
_st_inside() { case $1/ in "${_st_w%/}"/*) return 0;; *) return 1;; esac; }
_st_kind() {
  if [ -d "$1" ]; then echo folder; elif [ -p "$1" ]; then echo FIFO; elif [ -S "$1" ]; then echo socket
  elif [ -b "$1" ] || [ -c "$1" ]; then echo device; else echo 'special file'; fi
}
_st_at() {
  [ -e "$1" ] || _st_no "$_st_q" "$(_st_why "$1")"
  _st_real "$1"
  if [ -z "$_st_r" ] || ! _st_inside "$_st_r"; then
    if [ -L "$1" ]; then _st_no "$_st_q" 'a symlink that leads outside the workspace'; fi
    _st_no "$_st_q" 'a path that leads outside the workspace'
  fi
}
_st_file() { _st_at "$1"; [ -f "$_st_r" ] || _st_no "$_st_q" "not a regular file but a $(_st_kind "$_st_r")"; }
_st_read() {
  _st_file "$1"
  [ -r "$_st_r" ] || _st_no "$_st_q" 'permission denied'
  stat -c %s -- "$_st_r" 2>/dev/null || wc -c <"$_st_r"
  if [ "$2" = 1 ]; then head -c "$3" <"$_st_r"; else tail -c "+$2" <"$_st_r" | head -c "$3"; fi 2>/dev/null
}
_st_ls() {
  _st_at "$1"
  [ -d "$_st_r" ] || _st_no "$_st_q" 'not a folder'
  { [ -r "$_st_r" ] && cd -- "$_st_r" 2>/dev/null; } || _st_no "$_st_q" 'permission denied'
  printf '%s\0' * .[!.]* ..?* | xargs -0 stat -c '%f %s %n//' -- 2>/dev/null
}
_st_place() {
  _st_m=644
  if [ -e "$1" ] || [ -L "$1" ]; then
    _st_file "$1"
    _st_m=$(stat -c %a -- "$_st_r")
    _st_to=$_st_r
  else
    case $1/ in */../*) _st_no "$_st_q" 'its folder is not a folder of the workspace';; esac
    _st_u=${1%/*}
    while [ -n "$_st_u" ] && [ ! -e "$_st_u" ] && [ ! -L "$_st_u" ]; do _st_u=${_st_u%/*}; done
    _st_real "${_st_u:-/}"
    { [ -d "$_st_r" ] && _st_inside "$_st_r"; } || _st_no "$_st_q" 'its folder is not a folder of the workspace'
    mkdir -p -- "${1%/*}" 2>/dev/null || _st_no "$_st_q" 'permission denied'
    _st_to=$1
  fi
  _st_n=${_st_to%/*}/.seatrial-$2
}
_st_commit() {
  [ "$1" = 0 ] && { chmod "$_st_m" "$_st_n" && mv -f -- "$_st_n" "$_st_to"; } 2>/dev/null ||
    { rm -f -- "$_st_n"; _st_no "$_st_q" 'it could not be written: permission denied, or no space is left'; }
}
_st_table() {
  _st_t=
  for _st_d in /proc/[0-9]*; do
    _st_l=
    { while read -r _st_x; do _st_l="$_st_l $_st_x"; done <"$_st_d/stat"; } 2>/dev/null
    set -- ${_st_l##*) }
    [ "${1:-Z}" = Z ] || _st_t="$_st_t ${_st_d#/proc/}:$2:$4:${20}"
  done
}
_st_split() {
  _st_p=${1%%:*} _st_x=${1#*:}
  _st_pp=${_st_x%%:*} _st_x=${_st_x#*:}
  _st_sid=${_st_x%%:*} _st_start=${_st_x#*:}
}
_st_victims() {
  _st_v=' ' _st_more=1
  for _st_e in $_st_t; do
    _st_split "$_st_e"
    case $_st_lanes in *" $_st_p "*) continue;; esac
    if [ "$_st_pp" = "$_st_root" ]; then _st_v="$_st_v$_st_p "
    elif [ "$_st_pp" = 1 ] && [ "$_st_start" -ge "$_st_since" ]; then
      case $_st_owners in *" $_st_sid "*) ;; *) _st_v="$_st_v$_st_p ";; esac
    fi
  done
  while [ $_st_more = 1 ]; do
    _st_more=0
    for _st_e in $_st_t; do
      _st_split "$_st_e"
      case $_st_v$_st_lanes in *" $_st_p "*) continue;; esac
      case $_st_v in *" $_st_pp "*) _st_v="$_st_v$_st_p " _st_more=1;; esac
    done
  done
}
_st_kill() {
  _st_root=$1 _st_since=$2 _st_lanes=$3 _st_owners=$4 _st_hit=' ' _st_outrun=0 _st_round=0
  if [ "$_st_root" != none ]; then
    _st_table
    _st_since=
    for _st_e in $_st_t; do
      _st_split "$_st_e"
      [ "$_st_pp" = "$_st_root" ] && { [ -z "$_st_since" ] || [ "$_st_start" -lt "$_st_since" ]; } && _st_since=$_st_start
    done
    [ -n "$_st_since" ] || return 0
  fi
  while [ $_st_round -lt 3000 ]; do
    _st_round=$((_st_round + 1)) _st_new=0
    _st_table
    _st_victims
    [ "$_st_v" = ' ' ] && return 0
    for _st_p in $_st_v; do
      case $_st_hit in *" $_st_p "*) ;; *) _st_hit="$_st_hit$_st_p " _st_new=1; kill -STOP "$_st_p" 2>/dev/null;; esac
    done
    if [ $_st_new = 1 ]; then
      _st_outrun=$((_st_outrun + 1))
      [ $_st_outrun -gt 60 ] && return 1
    else
      for _st_p in $_st_v; do kill -9 "$_st_p" 2>/dev/null; done
    fi
  done
  return 1
}
_st_hello() {
  _st_w=$(pwd -P; echo x) _st_w=${_st_w%x}
  _st_w=${_st_w%"$_st_nl"} _st_s=/bin/sh
  [ -x /bin/bash ] && _st_s=/bin/bash
  while read -r _st_a _st_b _st_x; do
    case $_st_a in Uid:) _st_u=$_st_b;; Gid:) _st_g=$_st_b;; esac
  done </proc/$$/status
  _st_oom
  printf '%s\0' "$$" "$_st_w" "$_st_s" "$_st_u:$_st_g" "$_st_k"
  cd /
}
"""
"""Sent once to each shell. Killing forks nothing: it must work when no process can be made. Victims are stopped before
they are killed, or a fork bomb would outrun us; a process's age tells what the image or an earlier command started."""

_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {b"UID", b"EUID", b"PPID", b"BASHOPTS", b"SHELLOPTS", b"IFS", b"OPTIND", b"PWD", b"_"}
_PLAIN = frozenset(range(32, 127)) - frozenset(b"\\'")
_ESCAPED = [bytes((byte,)) if byte in _PLAIN else b"\\0%03o" % byte for byte in range(256)]
_PIECE = 16 << 10


def quoted(text: str | bytes) -> bytes:
    """Return one word of the shell's that means exactly ``text``."""
    data = os.fsencode(text)
    if b"\0" in data:
        raise PathError("a NUL byte cannot be part of a path, an argument or a variable")
    return b"'" + data.replace(b"'", b"'\\''") + b"'"


def printing(data: bytes) -> bytes:
    """Return commands that print exactly ``data``."""
    pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)] or [b""]
    return b"; ".join(b"printf '%b' '" + b"".join(map(_ESCAPED.__getitem__, piece)) + b"'" for piece in pieces)


def running(nonce: bytes, cwd: str, env: Mapping[str, str], argv: Sequence[str], stdin: bytes) -> bytes:
    """Return what runs a program with both its streams merged, in order, and reports its end."""
    words = [quoted(word) for word in argv]
    plain, odd = [], []
    for name, value in env.items():
        key = os.fsencode(name)
        if _NAME.fullmatch(key) and key not in _RESERVED:
            plain.append(b"export " + key + b"=" + quoted(value))
        else:
            odd.append(quoted(f"{name}={value}"))
    program = b"exec " + b" ".join([b"env", *odd, *words] if odd else words)
    steps = [b"_st_in " + nonce + b" " + quoted(cwd), b"unset OLDPWD", *plain, b"_st_ok " + nonce + b" " + words[0], program]
    body = b"( " + b"; ".join(steps) + b" ) 2>&1"
    body = b"{ " + printing(stdin) + b"; } | " + body if stdin else body + b" </dev/null"
    return body + b"\n_st_ran " + nonce + b" $?\n"


def asking(nonce: bytes, steps: bytes) -> bytes:
    """Return what takes some steps in a subshell (so that they may give up) and reports the end."""
    return b"( " + steps + b" ) </dev/null\n_st_end " + nonce + b" $?\n"
