"""Starts programs as the sandboxes' user and says how long each took; run as ``python -I -S -c SOURCE LOG``.

A line of JSON in: ``argv``, ``env``, and ``rewind``: descriptors that the program reads from their beginning. A line out:
seconds from before posix_spawn to after waitpid, and the exit code. With ``hold`` it does not wait, and answers 0 and the
pid; with ``kill``, a list of pids, it ends those and waits for all that it holds. So small a process starts others as
fast as one can.
"""

import json
import os
import signal
import sys
import time

nothing, log = os.open(os.devnull, os.O_RDWR), int(sys.argv[1])
to = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, nothing, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
held: list[int] = []
for line in sys.stdin:
    asked = json.loads(line)
    started = time.perf_counter()
    if asked.get("kill"):
        for pid in asked["kill"]:
            os.kill(pid, signal.SIGKILL)
        for pid in held:
            os.waitpid(pid, 0)
        held, code = [], 0
    else:
        for fd in asked["rewind"]:
            os.lseek(fd, 0, os.SEEK_SET)
        os.truncate(log, 0)
        started = time.perf_counter()
        pid = os.posix_spawn(asked["argv"][0], asked["argv"], asked["env"], file_actions=to)
        if asked.get("hold"):
            held.append(pid)
            code = pid
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    sys.stdout.write(json.dumps([time.perf_counter() - started, code]) + "\n")
    sys.stdout.flush()
