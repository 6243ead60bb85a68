"""Docker alone: what it says where it cannot be used, copying in and out, single programs, removing what was left."""

import io
import tarfile
from collections.abc import AsyncGenerator

import dockers
import pytest

from server.sandboxes import containers
from server.sandboxes.base import CommandResult, PathError
from server.sandboxes.containers import ChangeKind, ContainerSpec
from server.sandboxes.daemon import Daemon, DockerError, connect
from server.sandboxes.streams import Frames

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def daemon() -> AsyncGenerator[Daemon]:
    connected = dockers.daemon_or_skip()
    try:
        await dockers.image_or_skip(connected)
        yield connected
    finally:
        connected.close()


@pytest.fixture(scope="module")
async def running(daemon: Daemon) -> AsyncGenerator[str]:
    async with dockers.container(daemon, dockers.spec()) as id:
        await containers.start(daemon, id)
        yield id


async def execute(daemon: Daemon, id: str, *argv: str, **given: object) -> tuple[CommandResult, list[tuple[int, bytes]]]:
    pieces: list[tuple[int, bytes]] = []
    options: dict[str, object] = {"env": {}, "user": "", "cwd": "", "timeout_s": 60, **given}
    result = await containers.execute(
        daemon, id, argv, on_output=lambda stream, data: pieces.append((stream, data)), **options  # type: ignore[arg-type]
    )  # fmt: skip
    return result, pieces


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("unix:///no/such/docker.sock", "No Docker daemon answers at .*/no/such/docker.sock.*Start Docker"),
        ("tcp://127.0.0.1:1", "No Docker daemon answers"),
        ("ssh://me@there", "over ssh cannot be used"),
    ],
)
def test_without_a_daemon_the_text_says_what_to_do(monkeypatch: pytest.MonkeyPatch, host: str, said: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)

    with pytest.raises(DockerError, match=said):
        connect()


def test_frames_are_taken_apart_however_they_are_cut() -> None:
    whole = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x01d\x01\0\0\0\0\0\0\x02ef"
    for size in range(1, len(whole) + 1):
        frames, found = Frames(), [b"", b""]
        for at in range(0, len(whole), size):
            for stream, data in frames.take(whole[at : at + size]):
                found[stream - 1] += data
        assert found == [b"abcef", b"d"]


def test_what_is_no_docker_stream_is_refused() -> None:
    with pytest.raises(DockerError, match="broken stream"):
        Frames().take(b"HTTP/1.1 200 OK")


async def test_an_image_that_is_missing_is_named(daemon: Daemon) -> None:
    with pytest.raises(DockerError, match=r"no-such-image.*Build, load or pull"):
        await containers.create(daemon, ContainerSpec("no-such-image:1", "seatrial-test-none", dockers.LABELS))


async def test_a_program_has_streams_apart_and_an_exit_code(daemon: Daemon, running: str) -> None:
    result, pieces = await execute(
        daemon, running, "sh", "-c", 'echo out; echo "$A" >&2; pwd; exit 3', env={"A": "err"}, cwd="/srv"
    )

    assert result.exit_code == 3
    assert b"".join(data for stream, data in pieces if stream == 1) == b"out\n/srv\n"
    assert b"".join(data for stream, data in pieces if stream == 2) == b"err\n"


async def test_a_program_gets_its_input_and_its_user(daemon: Daemon, running: str) -> None:
    data = bytes(range(256)) * 4000

    result, pieces = await execute(daemon, running, "cat", stdin=data)
    assert (result.exit_code, b"".join(piece for _, piece in pieces)) == (0, data)
    assert (await execute(daemon, running, "id", "-u", user="65534:65534"))[1] == [(1, b"65534\n")]


@pytest.mark.parametrize(("argv", "cwd"), [("/no/such/program", ""), ("true", "/no/such/folder")])
async def test_a_program_that_cannot_be_started_is_refused(daemon: Daemon, running: str, argv: str, cwd: str) -> None:
    with pytest.raises(PathError, match="no such file"):
        await execute(daemon, running, argv, cwd=cwd)


async def test_a_program_out_of_time_goes_with_all_it_started(daemon: Daemon, running: str) -> None:
    script = "setsid yes >/dev/null & (yes & yes) >/dev/null & exec yes >/dev/null"
    result, _ = await execute(daemon, running, "sh", "-c", script, timeout_s=0.7, user="65534:65534")

    assert result.timed_out
    assert b"yes" not in (await execute(daemon, running, "sh", "-c", "cat /proc/[0-9]*/comm"))[1][0][1].split()


async def test_files_go_in_and_out_and_show_as_changes(daemon: Daemon, running: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        one = tarfile.TarInfo("one")
        one.size = 5
        tar.addfile(one, io.BytesIO(b"12345"))
    await containers.put(daemon, running, "/srv", packed.getvalue())

    back = await containers.get(daemon, running, "/srv/one", 1 << 20)
    assert back is not None
    with tarfile.open(fileobj=io.BytesIO(back)) as tar:
        assert tar.extractfile("one").read() == b"12345"  # type: ignore[union-attr]
    assert ("/srv/one", ChangeKind.ADDED) in await containers.changes(daemon, running)
    assert await containers.get(daemon, running, "/srv/none", 1 << 20) is None
    with pytest.raises(DockerError, match="larger than 10000"):
        await containers.get(daemon, running, "/usr/bin", 10_000)
    with pytest.raises(DockerError, match="/none"):  # which must not wait for the one that was broken off
        await containers.put(daemon, running, "/none", packed.getvalue())


async def test_rights_are_dropped_and_limits_set(daemon: Daemon, running: str) -> None:
    host = (await containers.inspect(daemon, running))["HostConfig"]

    assert (host["CapDrop"], host["SecurityOpt"], host["Init"]) == (["ALL"], ["no-new-privileges"], True)
    assert host["Memory"] == host["MemorySwap"] == 4 << 30
    assert (host["PidsLimit"], host["CpuQuota"], host["NetworkMode"]) == (1024, 200_000, "none")


async def test_what_was_left_is_removed_unless_it_is_to_be_kept(daemon: Daemon) -> None:
    labels = {**dockers.LABELS, "seatrial-test-reap": "yes"}
    kept, gone = [
        await containers.create(daemon, ContainerSpec(dockers.IMAGE, f"{dockers.spec().name}-{one}", {**labels, "one": one}))
        for one in ("kept", "gone")
    ]

    await containers.reap(daemon, {"seatrial-test-reap": "yes"}, lambda found: found["one"] == "kept")

    assert (await containers.inspect(daemon, kept))["Id"] == kept
    with pytest.raises(DockerError, match="No such container"):
        await containers.inspect(daemon, gone)
    await containers.remove(daemon, kept)
    await containers.remove(daemon, kept)
    await containers.kill(daemon, kept)
