"""What every sandbox promises, asked of both. Where one cannot keep to it, the test says so by name."""

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import dockers
import pytest
from boxes import Box, Ran, ran_in

from server.sandboxes import containers
from server.sandboxes.base import STDOUT, Limits, PathError, Sandbox, SandboxDiedError
from server.sandboxes.watchdog import descendants

pytestmark = pytest.mark.anyio

SMALL = Limits(memory_bytes=256 << 20, processes=64, disk_bytes=64 << 20, files=5000)


@dataclass(frozen=True)
class Machines:
    """One backend: ``place`` yields a way to open the same files again and again, and one to kill the sandbox from outside."""

    name: str
    place: Callable[[Limits | None], AbstractAsyncContextManager["Place"]]


@dataclass(frozen=True)
class Place:
    opened: Callable[[], AbstractAsyncContextManager[Sandbox]]
    kill: Callable[[], object]


def local_machines(shared: Path) -> Machines:
    folder = shared / "conformance"
    folder.mkdir(0o755)
    box, count = Box(shared, folder), iter(range(1000))
    base = box.fresh("base")
    box.state.own_tree(base)

    def kill() -> None:
        for pid in set(descendants(os.getpid())):
            if Path(f"/proc/{pid}/cmdline").read_bytes().find(b"inner.py") >= 0 and "\t1\n" in _pids(pid):
                os.kill(pid, 9)

    @asynccontextmanager
    async def place(limits: Limits | None) -> AsyncGenerator[Place]:
        machine = box.machine(box.fresh(f"place-{next(count)}"), [base], limits)
        yield Place(lambda: box.opened(machine), kill)

    return Machines("local", place)


def _pids(pid: int) -> str:
    return next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines(keepends=True) if line.startswith("NSpid"))


async def docker_machines() -> AsyncGenerator[Machines]:
    daemon = dockers.daemon_or_skip()
    try:
        await dockers.image_or_skip(daemon)

        @asynccontextmanager
        async def place(limits: Limits | None) -> AsyncGenerator[Place]:
            spec = dockers.spec(limits)
            async with dockers.container(daemon, spec) as id:
                yield Place(lambda: dockers.opened(daemon, id, spec), lambda: containers.kill(daemon, id))

        yield Machines("docker", place)
    finally:
        daemon.close()


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["docker", "local"])
async def machines(request: pytest.FixtureRequest, shared_state_folder: Path) -> AsyncGenerator[Machines]:
    if request.param == "local":
        yield local_machines(shared_state_folder)
    else:
        async for made in docker_machines():
            yield made


@pytest.fixture(scope="module")
async def sandbox(machines: Machines) -> AsyncGenerator[Sandbox]:
    async with machines.place(None) as place, place.opened() as opened:
        yield opened


async def bash(sandbox: Sandbox, script: str, **command: object) -> Ran:
    return await ran_in(sandbox, ["/bin/bash", "-c", script], **command)  # type: ignore[arg-type]


COUNT = 'n=0; for f in /proc/[0-9]*/comm; do read -r c 2>/dev/null <$f; [ "$c" = yes ] && n=$((n+1)); done; echo $n'
"""How many processes called ``yes`` there are: nothing else in a sandbox is called that."""


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", -9), ("kill $$", -15)]
)
async def test_how_a_command_ends_is_a_result(sandbox: Sandbox, script: str, code: int) -> None:
    assert (await bash(sandbox, script)).result.exit_code == code


async def test_standard_output_and_error_come_in_the_order_they_were_written(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "for n in 1 2 3; do echo o$n; echo e$n >&2; done")).text == "o1\ne1\no2\ne2\no3\ne3\n"


async def test_without_a_channel_docker_merges_the_streams_and_local_does_not(sandbox: Sandbox, machines: Machines) -> None:
    ran = await bash(sandbox, "echo out; echo err >&2")

    assert len({stream for stream, _ in ran.pieces}) == (1 if machines.name == "docker" else 2)


async def test_the_channel_is_a_stream_of_its_own(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "echo out; echo secret >&3; echo err >&2; exit 4", channel=True)

    assert b"".join(data for stream, data in ran.pieces if stream == 3) == b"secret\n"
    assert sorted(b"".join(data for stream, data in ran.pieces if stream != 3).split()) == [b"err", b"out"]
    assert ran.result.exit_code == 4


async def test_nothing_but_the_three_streams_is_open_in_a_command(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "echo secret >&3 || echo none")).text.endswith("none\n")


async def test_output_without_a_final_newline_is_exact(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "printf ab")).text == "ab"
    assert (await bash(sandbox, "printf '\\n\\n'")).text == "\n\n"
    assert (await bash(sandbox, "true")).text == ""


async def test_binary_output_is_exact(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, 'for n in $(seq 0 255); do printf "\\\\x$(printf %x $n)"; done')

    assert b"".join(data for _, data in ran.pieces) == bytes(range(256))


async def test_output_of_twenty_megabytes_is_whole(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "head -c 20000000 /dev/zero; echo end")

    assert sum(len(data) for _, data in ran.pieces) == 20_000_004
    assert b"".join(data for _, data in ran.pieces[-3:]).endswith(b"end\n")


async def test_the_working_folder_and_the_environment_are_given(sandbox: Sandbox) -> None:
    value = 'it\'s "quoted"\n$HOME `x` \\ é'
    ran = await bash(
        sandbox, 'pwd; printf %s "$GIVEN"', cwd="/tmp", env={"GIVEN": value, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    )

    assert ran.text == f"/tmp\n{value}"


async def test_a_variable_that_no_shell_knows_is_given(sandbox: Sandbox) -> None:
    ran = await ran_in(sandbox, ["/usr/bin/env"], env={"a.b": "c", "PATH": "/usr/bin:/bin"})

    assert "a.b=c\n" in ran.text


async def test_nothing_of_one_command_is_seen_by_the_next(sandbox: Sandbox) -> None:
    await bash(sandbox, "export LEAK=1; cd /; umask 0; ulimit -n 20")

    assert (await bash(sandbox, "echo ${LEAK:-none}; pwd; umask; test $(ulimit -n) -gt 20")).text == "none\n/workspace\n0022\n"


async def test_arguments_are_given_exactly(sandbox: Sandbox) -> None:
    given = ["", " ", "'", '"', "\\", "$x", "*", "a\nb", "-n", "é", "\udcff"]

    ran = await ran_in(sandbox, ["/usr/bin/printf", "%s|", *given])

    assert ran.text == "".join(f"{one}|" for one in given)


async def test_standard_input_is_given_whole_and_is_else_empty(sandbox: Sandbox) -> None:
    data = (bytes(range(256)) * 192)[:49_152]

    assert (await bash(sandbox, "wc -c", stdin=data)).text.strip() == "49152"
    assert b"".join(piece for _, piece in (await bash(sandbox, "cat", stdin=data)).pieces) == data
    assert (await bash(sandbox, "cat")).text == ""
    assert (await bash(sandbox, "exit 5", stdin=data)).result.exit_code == 5


@pytest.mark.parametrize(
    ("argv", "cwd", "said"),
    [
        (["/no/such/program"], "/workspace", "/no/such/program: No such file"),
        (["/bin/true"], "/no/such/folder", "cwd /no/such/folder: No such file"),
        (["/etc/passwd"], "/workspace", "Permission denied"),
    ],
)
async def test_what_cannot_be_started_is_refused(sandbox: Sandbox, argv: list[str], cwd: str, said: str) -> None:
    with pytest.raises(PathError, match=said):
        await ran_in(sandbox, argv, cwd=cwd)
    assert (await bash(sandbox, "echo fine")).text == "fine\n"


async def test_many_commands_at_once_get_each_their_own_output(sandbox: Sandbox) -> None:
    texts: dict[int, str] = {}

    async def one(number: int) -> None:
        texts[number] = (await bash(sandbox, f"echo {number} | sort -u")).text

    for first in range(0, 480, 16):
        async with anyio.create_task_group() as group:
            for number in range(first, first + 16):
                group.start_soon(one, number)

    assert texts == {number: f"{number}\n" for number in range(480)}


async def test_a_command_out_of_time_goes_with_all_it_started_even_daemons(sandbox: Sandbox) -> None:
    script = "echo begun; setsid yes >/dev/null & (yes & yes) >/dev/null & (setsid yes >/dev/null &); exec yes >/dev/null"
    ran = await bash(sandbox, script, timeout_s=0.5)

    assert ran.result.timed_out
    assert ran.text == "begun\n"
    assert (await bash(sandbox, COUNT)).text == "0\n"


async def test_with_a_channel_too_a_command_out_of_time_goes_with_all_it_started(sandbox: Sandbox) -> None:
    ran = await bash(sandbox, "echo begun; setsid yes >/dev/null & (yes & yes) >/dev/null", timeout_s=0.7, channel=True)

    assert ran.result.timed_out
    assert (await bash(sandbox, COUNT)).text == "0\n"


async def test_cancelling_stops_one_command_and_no_other(sandbox: Sandbox) -> None:
    other: list[Ran] = []

    async def steady() -> None:
        other.append(await bash(sandbox, "until test -e /tmp/go; do :; done; echo steady"))

    async with anyio.create_task_group() as group:
        group.start_soon(steady)
        with anyio.move_on_after(0.5):
            await bash(sandbox, "yes >/dev/null & yes >/dev/null")
        assert (await bash(sandbox, f"{COUNT}; touch /tmp/go")).text == "0\n"

    assert other[0].text == "steady\n", other[0]
    assert not sandbox.dead


async def test_what_a_command_leaves_behind_lives_on_and_disturbs_no_other_until_it_is_swept(sandbox: Sandbox) -> None:
    await bash(sandbox, "yes noise & echo started")
    await bash(sandbox, "nohup yes >/dev/null 2>&1 &")

    for _ in range(5):
        assert (await bash(sandbox, "echo next")).text == "next\n"
    assert (await bash(sandbox, "sleep 100", timeout_s=0.3)).result.timed_out
    assert (await bash(sandbox, COUNT)).text == "2\n"
    await sandbox.sweep()
    assert (await bash(sandbox, COUNT)).text == "0\n"


async def test_a_sweep_spares_what_runs(sandbox: Sandbox) -> None:
    ran: list[Ran] = []

    async def running() -> None:
        ran.append(await bash(sandbox, "touch /tmp/up; until test -e /tmp/swept; do :; done; echo spared"))

    async with anyio.create_task_group() as group:
        group.start_soon(running)
        await bash(sandbox, "until test -e /tmp/up; do :; done")
        await sandbox.sweep()
        await bash(sandbox, "touch /tmp/swept")

    assert ran[0].text == "spared\n"


async def test_files_are_read_in_pieces(sandbox: Sandbox) -> None:
    whole = bytes(range(256)) * 1000
    await sandbox.write("bytes", whole)
    await bash(sandbox, "ln -sfn bytes in; ln -sfn /etc/hostname out")

    piece = await sandbox.read("bytes", 100_000, 1000)
    assert (piece.data, piece.size) == (whole[100_000:101_000], len(whole))
    assert (await sandbox.read("bytes", 0, 1 << 20)).data == whole
    assert (await sandbox.read("in", 0, 3)).data == whole[:3]
    assert (await sandbox.read("bytes", 10**9, 10)).data == b""


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000, 6_000_000])
async def test_files_of_any_size_are_written_whole_with_their_folders(sandbox: Sandbox, size: int) -> None:
    data = os.urandom(size)
    await sandbox.write(f"new-{size}/er/file", data)
    await sandbox.write(f"new-{size}/er/file", data[::-1])

    assert (await sandbox.read(f"new-{size}/er/file", 0, 10 << 20)).data == data[::-1]
    assert [entry.path for entry in (await sandbox.list(f"new-{size}", 3, 100)).entries] == ["er", "er/file"]


async def test_a_file_keeps_its_mode_and_a_link_stays_one_when_it_is_written(sandbox: Sandbox) -> None:
    await bash(sandbox, "echo x > script; chmod 750 script; ln -sfn script link")
    await sandbox.write("link", b"y")

    assert (await bash(sandbox, "stat -c %a script; cat script; readlink link")).text == "750\nyscript\n"


async def test_names_may_hold_newlines_quotes_and_bytes_that_are_no_text(sandbox: Sandbox) -> None:
    names = ["new\nline", "trailing\n", "it's", "-dash", ".hidden", "\udcff\udcfe", "*", "a  b"]
    for name in names:
        await sandbox.write(f"odd/{name}", name.encode("utf-8", "surrogateescape"))

    listed = (await sandbox.list("odd", 1, 100)).entries
    assert [entry.path for entry in listed] == sorted(names, key=os.fsencode)
    for name in names:
        assert (await sandbox.read(f"odd/{name}", 0, 100)).data == os.fsencode(name)


REFUSED: Mapping[str, str] = {
    "none": "no such file",
    "../etc/passwd": "no such file|outside",
    "/etc/passwd": "outside|no such file|permission",
    "to-etc": "outside|leads nowhere",
    "folder": "not a regular file but a folder",
    "pipe": "not a regular file but a FIFO",
    "folder/../../etc/passwd": "no such file|outside|permission",
    "/proc/1/environ": ".",
    "plain/x": "Not a directory",
}


@pytest.mark.parametrize(("path", "said"), REFUSED.items())
async def test_what_is_no_file_of_the_workspace_is_refused(sandbox: Sandbox, path: str, said: str) -> None:
    await bash(sandbox, "mkdir -p folder; test -e pipe || mkfifo pipe; echo x > plain; ln -sfn /etc/passwd to-etc")

    with pytest.raises(PathError, match=said):
        await sandbox.read(path, 0, 10)
    if path != "none":
        with pytest.raises(PathError):
            await sandbox.write(path, b"x")
    assert not sandbox.dead


async def test_a_listing_is_bounded_and_says_what_is_what(sandbox: Sandbox) -> None:
    await bash(
        sandbox,
        "mkdir -p many; cd many; for n in $(seq 100 399); do : > $n; done; mkfifo a-pipe; ln -s x b-link; mkdir c; : > c/d",
    )

    listed = await sandbox.list("many", 2, 1000)
    assert [(entry.path, entry.kind) for entry in listed.entries[-4:]] == [
        ("a-pipe", "other"), ("b-link", "link"), ("c", "dir"), ("c/d", "file"),
    ]  # fmt: skip
    assert listed.seen == 304
    assert len((await sandbox.list("many", 1, 50)).entries) == 50
    with pytest.raises(PathError, match="not a folder"):
        await sandbox.list("plain", 1, 10)
    with pytest.raises(PathError, match="no such file"):
        await sandbox.list("nowhere", 1, 10)


async def test_limits_are_told(sandbox: Sandbox) -> None:
    assert {"memory", "processes", "cpu", "disk", "network"} <= set(sandbox.enforced)
    assert sandbox.enforced["network"].startswith("none")


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    assert (await bash(sandbox, "tail -n +3 /proc/net/dev | grep -v lo:")).text == ""


async def test_files_are_kept_and_nothing_else_when_it_is_opened_again(machines: Machines) -> None:
    async with machines.place(None) as place:
        async with place.opened() as first:
            await bash(first, "echo kept > kept; setsid yes >/dev/null 2>&1 &")
        async with place.opened() as again:
            assert (await bash(again, f"cat kept; {COUNT}")).text == "kept\n0\n"


async def test_one_that_is_killed_from_outside_says_so_to_everyone_and_can_be_opened_again(machines: Machines) -> None:
    async with machines.place(None) as place:
        async with place.opened() as sandbox:
            await bash(sandbox, "echo kept > kept")
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    with pytest.raises(SandboxDiedError, match=r"ended|killed"):
                        await bash(sandbox, "touch up; exec sleep 1000")

                group.start_soon(wait)
                await bash(sandbox, "until test -e up; do :; done")
                killing = place.kill()
                if killing is not None:
                    await killing  # type: ignore[misc]
            with pytest.raises(SandboxDiedError):
                await sandbox.read("kept", 0, 10)
            assert sandbox.dead
        async with place.opened() as again:
            assert (await again.read("kept", 0, 10)).data == b"kept\n"


BOMBS: Mapping[str, str] = {
    "memory": "python3 -c \"x = [bytearray(b'x' * (16 << 20)) for _ in range(1000)]\"",
    "processes": "bomb() { bomb | bomb & }; bomb; sleep 5; exit 1",
}


@pytest.mark.parametrize("script", BOMBS.values(), ids=BOMBS.keys())
async def test_what_uses_everything_up_is_held_and_the_files_can_be_used_again(machines: Machines, script: str) -> None:
    async with machines.place(SMALL) as place:
        async with place.opened() as sandbox:
            await bash(sandbox, "echo before > before")
            try:
                assert (await bash(sandbox, script, timeout_s=3)).result.exit_code != 0
            except SandboxDiedError as died:
                assert died.reason
        async with place.opened() as again:
            assert (await bash(again, "cat before")).text == "before\n"


async def test_one_that_ran_out_of_memory_says_so(machines: Machines) -> None:
    async with machines.place(SMALL) as place, place.opened() as sandbox:
        if "cgroup" not in sandbox.enforced["memory"]:
            pytest.skip("memory is only watched here")
        try:
            assert (await bash(sandbox, BOMBS["memory"], timeout_s=60)).result.out_of_memory
        except SandboxDiedError as died:
            assert "memory" in died.reason
        else:
            assert (await bash(sandbox, "echo fine; exit 1")).result.out_of_memory is False


async def test_many_can_be_open_at_once(machines: Machines) -> None:
    async def one() -> None:
        async with machines.place(SMALL) as place, place.opened() as sandbox:
            ran = await bash(sandbox, "echo here")
            assert (ran.text, {stream for stream, _ in ran.pieces}) == ("here\n", {STDOUT})

    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(one)
