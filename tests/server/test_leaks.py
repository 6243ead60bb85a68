"""What an agent can find from inside: neither what would solve its task, nor the server, nor anything of anybody else.

The interpreter that sandboxes get is a copy whose prefix holds what must not be seen: seatrial itself and the release that
fixes the task, among its packages and (where no rule leaves it out) beside the standard library.
"""

import re
import shutil
import socket
import sys
import sysconfig
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from desk import Desk
from front_door import H11, connected, reachable_folder, seatrial

from server.settings import Settings
from server.snapshots import find_snapshot, find_truth
from server.state import State, open_state
from tasks.catalog import load_catalog
from tasks.model import Task

pytestmark = pytest.mark.anyio

SOURCES = Path(__file__).parents[2]
ELSEWHERE = "a line that only another workspace holds: 4c1f0a"
NAME = f"python{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def task() -> Task:
    return load_catalog().find(H11)


@pytest.fixture(scope="module")
def state(built_state: Path) -> State:
    return open_state(Settings(built_state))


@pytest.fixture(scope="module")
def truth(task: Task, state: State) -> Path:
    found = find_truth(task.facts.solution, task.folder, state)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def laden_python(truth: Path) -> Iterator[Path]:
    """An interpreter whose prefix holds what must not be seen."""
    with reachable_folder() as prefix:
        library = prefix / "lib" / NAME
        skipped = shutil.ignore_patterns("test", "tests", "__pycache__", "site-packages", "dist-packages", "config-*")
        shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=skipped, symlinks=True)
        (prefix / "bin").mkdir()
        shutil.copy(Path(sys.base_prefix, "bin", NAME).resolve(), prefix / "bin" / NAME)
        (prefix / "bin" / "python3").symlink_to(NAME)
        for shared in Path(sys.base_prefix, "lib").glob("libpython3*.so*"):
            shutil.copy(shared, prefix / "lib" / shared.name, follow_symlinks=False)
        packages = library / "site-packages"
        for place in (packages, library):
            shutil.copytree(truth / "h11", place / "h11")
            (place / "h11-0.16.0.dist-info").mkdir()
            (place / "h11-0.16.0.dist-info" / "METADATA").write_text("Name: h11\nVersion: 0.16.0\n")
            (place / "h11-0.16.0-py3-none-any.whl").write_bytes(b"PK")
        for ours in ("server", "tools", "tasks", "clients"):
            shutil.copytree(SOURCES / ours, packages / ours, ignore=shutil.ignore_patterns("__pycache__"))
        yield prefix / "bin" / NAME


@pytest.fixture(scope="module")
async def desks(built_state: Path, laden_python: Path) -> AsyncGenerator[tuple[Desk, Desk]]:
    """Two workspaces; the second holds a marker and runs a command with it, and belongs to another agent."""
    setting = {"SEATRIAL_PYTHONS": str(laden_python)}
    built = seatrial(built_state, "tasks", "build", H11, **setting)
    assert built.returncode == 0, built.stderr
    async with connected(built_state, **setting) as mine, connected(built_state, **setting) as theirs:
        one, other = Desk(mine, await mine.open()), Desk(theirs, await theirs.open())
        await other.good("save_file", path="marker.txt", content=ELSEWHERE)
        await other.good("save_file", path=f"{ELSEWHERE}.txt", content=ELSEWHERE)
        await other.run(f"echo '{ELSEWHERE}' | tee /tmp/marker /dev/shm/marker ~/marker")
        await other.start(f"bash -c 'exec -a \"{ELSEWHERE}\" sleep 100000'")
        yield one, other


def lines_of(*files: Path) -> set[str]:
    return {line for file in files for line in file.read_text().splitlines()}


def markers(task: Task, state: State, truth: Path) -> Mapping[str, list[str]]:
    """Return lines that stand nowhere but where agents must not look."""
    snapshot = find_snapshot(task.facts.snapshot, task.folder, state)
    assert snapshot is not None
    known = lines_of(*snapshot.tree.rglob("*.py"))
    solution = [file for file in truth.rglob("h11/*.py") if "tests" not in file.parts]
    ours = [*SOURCES.glob("server/*.py"), *SOURCES.glob("tools/*.py"), SOURCES / "server" / "sandboxes" / "local.py"]
    found = {
        "solution": lines_of(*solution) - known,
        "hidden tests": lines_of(*truth.rglob("h11/tests/*.py")) - known,
        "server": lines_of(*ours) - known,
        "expected ids": set(task.fail_to_pass),
    }
    return {name: sorted(lines, key=len)[-8:] for name, lines in found.items()}


async def test_nothing_that_solves_the_task_can_be_read_anywhere(
    desks: tuple[Desk, Desk], task: Task, state: State, truth: Path
) -> None:
    desk, other = desks
    wanted = [line for lines in markers(task, state, truth).values() for line in lines]
    wanted += [ELSEWHERE, other.workspace, desk.workspace]
    assert len(wanted) > 20
    assert all(len(line) > 20 for line in wanted)
    hidden = "\n".join(wanted).encode().hex()

    await desk.good("save_file", path="find.py", content=f"print(bytes.fromhex('{hidden}').decode())")
    search = "python find.py | grep -rlaFs --devices=skip --exclude-dir=proc -f - / "
    proven = await desk.run(f"echo '{wanted[0]}' > /tmp/proof; {search}; rm /tmp/proof", wait_s=50, timeout_s=300)

    assert proven == "/tmp/proof\n"


async def test_no_other_release_of_the_package_can_be_found_or_imported(desks: tuple[Desk, Desk]) -> None:
    desk, _ = desks
    named = r"\( -iname 'h11*' -o -iname '*seatrial*' -o -iname '*sea_trial*' \)"
    places = "find / -path /proc -prune -o -path /workspace -prune -o"

    found = (await desk.run(f"{places} {named} -print 2>/dev/null")).splitlines()

    for path in set(found) - {"(no output)"}:  # what was masked is an empty folder or file that nobody can fill
        assert await desk.run(f"find '{path}' -size +0 -type f") == "(no output)"
    for program in ("/opt/python/bin/python3", "/opt/env/bin/python -I", "/usr/bin/python3"):
        said = await desk.good("run_command", command=f"{program} -c 'import h11; print(h11.__version__)'", cwd="/")
        assert "0.16" not in said
        assert not said.startswith("exit code 0") or said.endswith("\n0.15.0\n")
    assert await desk.run("python -c 'import h11; print(h11.__file__, h11.__version__)'", cwd="/") == (
        "/workspace/h11/__init__.py 0.15.0\n"
    )


PROC = """
import os, re, sys
seen = []
for pid in [name for name in os.listdir("/proc") if name.isdigit()] + ["self", "thread-self"]:
    for name in ("environ cmdline maps mountinfo mounts mountstats status cgroup comm sched net/unix net/tcp".split()):
        try:
            seen.append((f"{pid}/{name}", open(f"/proc/{pid}/{name}", "rb").read().decode(errors="replace")))
        except OSError:
            pass
    for folder in ("fd", "ns", "map_files", "."):
        try:
            names = os.listdir(f"/proc/{pid}/{folder}")
        except OSError:
            continue
        for name in names:
            try:
                seen.append((f"{pid}/{folder}/{name}", os.readlink(f"/proc/{pid}/{folder}/{name}")))
            except OSError:
                pass
for name in os.listdir("/proc"):
    path = f"/proc/{name}"
    if os.path.isfile(path) and not name.startswith(("kmsg", "kpage", "kallsyms")):
        try:
            seen.append((name, open(path, "rb").read(1 << 20).decode(errors="replace")))
        except OSError:
            pass
"""


async def test_proc_shows_the_state_folder_only_as_names_that_lead_nowhere(desks: tuple[Desk, Desk], built_state: Path) -> None:
    desk, other = desks
    program = f"""{PROC}
words = [bytes.fromhex(word).decode() for word in sys.argv[1:]]
for where, text in seen:
    for word in words:
        if word in text and not (word == words[0] and where.rpartition("/")[2] in ("mountinfo", "mounts", "mountstats")):
            print(where, word)
paths = set(re.findall(re.escape(words[0]) + "[^ ,:]*", open("/proc/self/mountinfo").read()))
for path in paths:
    while len(path) > len(words[0].rpartition("/")[0]):
        if os.path.lexists(path):
            print("leads somewhere:", path)
        path = path.rpartition("/")[0]
print(len(paths) > 2)
"""
    words = " ".join(word.encode().hex() for word in (str(built_state), ELSEWHERE, other.workspace, desk.workspace))
    await desk.good("save_file", path=".git/program.py", content=program)

    seen = (await desk.run(f"python .git/program.py {words}")).splitlines()

    assert seen == ["True"]


async def test_only_its_own_processes_are_visible(desks: tuple[Desk, Desk]) -> None:
    desk, _ = desks

    listed = (await desk.run("ps -eo pid,args --no-headers")).splitlines()

    assert listed[0].split()[0] == "1"
    assert "/.inner.py" in listed[0]
    assert all("ps -eo" in line or "/.inner.py" in line or "bash" in line for line in listed)


NETWORK = """
import socket, sys
port, name = int(sys.argv[1]), sys.argv[2]
def tried(what, family, address, kind=socket.SOCK_STREAM):
    try:
        with socket.socket(family, kind) as client:
            client.settimeout(5)
            client.connect(address)
            if kind == socket.SOCK_DGRAM:
                client.send(b"x")
        print(what, "connected")
    except OSError as error:
        print(what, "refused")
for host in ("127.0.0.1", "10.0.2.2", "169.254.169.254", "192.0.2.1"):
    tried(host, socket.AF_INET, (host, port))
tried("datagram", socket.AF_INET, ("192.0.2.1", 53), socket.SOCK_DGRAM)
tried("six", socket.AF_INET6, ("::1", port))
tried("abstract", socket.AF_UNIX, "\\0" + name)
for family in (40, 17, 31, 38):
    tried(f"family {family}", family, (2, 1024))
try:
    socket.getaddrinfo("example.com", 80)
    print("names", "connected")
except OSError:
    print("names", "refused")
print(open("/proc/net/dev").read().count(":"), "device")
"""


async def test_there_is_no_network_and_no_socket_of_the_host(desks: tuple[Desk, Desk]) -> None:
    desk, _ = desks
    with closing(socket.create_server(("127.0.0.1", 0))) as listening, closing(socket.socket(socket.AF_UNIX)) as abstract:
        name = f"seatrial-test-{listening.getsockname()[1]}"
        abstract.bind("\0" + name)
        abstract.listen()
        await desk.good("save_file", path=".git/program.py", content=NETWORK)

        seen = (await desk.run(f"python .git/program.py {listening.getsockname()[1]} {name}")).splitlines()

    assert seen[-1] == "1 device"
    assert len(seen) == 13
    assert all(line.endswith(" refused") for line in seen[:-1]), seen


async def test_commands_have_no_rights_and_run_as_nobody_who_counts(desks: tuple[Desk, Desk]) -> None:
    desk, _ = desks
    status = await desk.run("cat /proc/self/status; id; cat /proc/self/uid_map /proc/self/gid_map")

    for line in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{line}:\t0000000000000000\n" in status
    for line in ("NoNewPrivs:\t1\n", "Seccomp:\t2\n", "Uid:\t1000\t1000\t1000\t1000\n", "Gid:\t1000\t1000\t1000\t1000\n"):
        assert line in status
    assert re.fullmatch(r"( +1000 +\d+ +1\n){2}", status[status.index("1000(agent)\n") + 12 :])
    assert "uid=1000(agent) gid=1000(agent)" in status


@pytest.mark.parametrize(
    "place",
    ["/", "/etc", "/usr", "/usr/bin", "/usr/lib", "/opt", "/opt/env", "/opt/env/bin", "/opt/python", "/dev", "/proc", "/home"],
)
async def test_everything_but_the_workspace_and_what_goes_with_the_sandbox_is_read_only(
    desks: tuple[Desk, Desk], place: str
) -> None:
    desk, _ = desks

    said = await desk.run(
        f"touch {place}/new; mkdir {place}/folder; chmod 777 {place}; mv {place} {place}-2; ls {place}/new 2>&1"
    )

    assert "No such file or directory" in said.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        "unshare -U true",
        "unshare -Ur true",
        "unshare -n true",
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /",
        "umount /opt/env",
        "chroot / true",
        "nsenter -t 1 -m true",
        "su -c true",
        "mknod disk b 254 0",
        "cat /proc/kcore",
        "dmesg",
        "sysctl -w kernel.hostname=x",
        "hostname x",
        "date -s 2000-01-01",
        "chown 0 setup.py",
        "ls /root",
        "cat /etc/shadow",
    ],
)
async def test_what_needs_rights_is_refused(desks: tuple[Desk, Desk], command: str) -> None:
    desk, _ = desks

    answer = await desk.good("run_command", command=f"{command} < /dev/null")

    assert not answer.startswith("exit code 0") or (command == "cat /proc/kcore" and answer.endswith("(no output)"))
