"""An output is a window on an endless stream: every page shows what the stream had there, or says what is gone."""

import pytest

from server.outputs import HEAD_BYTES, TAIL_BYTES, Output

PIECES = ((1, b"out\n"), (2, b"err\n"), (1, b"\xff\0"), (1, b"more"))


def filled(size: int, piece: int = 50_000) -> tuple[Output, bytes]:
    """Return an output of ``size`` bytes and the stream that went into it."""
    stream = b"".join(b"%09d\n" % n for n in range(size // 10 + 1))[:size]
    output = Output()
    for start in range(0, size, piece):
        output.add(1, stream[start : start + piece])
    return output, stream


def test_streams_are_kept_in_order_and_apart() -> None:
    output = Output()
    for stream, data in PIECES:
        output.add(stream, data)

    head, tail, pieces = output.record()

    assert (head, tail) == (b"out\nerr\n\xff\0more", b"")
    assert pieces == [[1, 4], [2, 4], [1, 6]]
    assert output.page(0, 100).data == head
    assert output.page(4, 3).data == b"err"


@pytest.mark.parametrize("size", [0, 1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, HEAD_BYTES + TAIL_BYTES, HEAD_BYTES * 2])
def test_every_page_is_what_the_stream_had_there(size: int) -> None:
    output, stream = filled(size)

    for start in (0, 1, 4095, HEAD_BYTES - 10, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 5, size - 100, size - 1, size, size + 9):
        page = output.page(max(0, start), 1000)
        assert page.total == size
        assert page.data == stream[page.start : page.start + len(page.data)]
        assert page.start >= min(max(0, start), size)
        assert page.data or page.start >= size


def test_all_pages_together_are_what_was_kept() -> None:
    output, stream = filled(HEAD_BYTES * 2)
    at, read = 0, bytearray()
    while (page := output.page(at, 60_000)).data:
        read += page.data
        at = page.start + len(page.data)

    first, after = output.lost
    assert at == output.total
    assert bytes(read) == stream[:first] + stream[after:]
    assert (first, output.total - after >= TAIL_BYTES) == (HEAD_BYTES, True)


def test_memory_is_bounded_however_much_is_printed() -> None:
    output = Output()
    for _ in range(500):
        output.add(1, b"x" * 65_536)

    head, tail, _ = output.record()

    assert output.total == 500 * 65_536
    assert len(head) + len(tail) <= HEAD_BYTES + 2 * TAIL_BYTES


def test_streams_that_change_without_end_are_no_longer_told_apart() -> None:
    output = Output()
    for n in range(20_000):
        output.add(1 + n % 2, b"x")

    _, _, pieces = output.record()

    assert len(pieces) <= 4096
    assert pieces[-1][0] == 0
    assert sum(size for _, size in pieces) == 20_000


@pytest.mark.parametrize("size", [0, 5, HEAD_BYTES, HEAD_BYTES * 2])
def test_what_was_recorded_is_restored(size: int) -> None:
    output, _ = filled(size)
    head, tail, pieces = output.record()

    again = Output.restored(head, tail, output.total, pieces)

    assert again.record() == output.record()
    assert (again.total, again.lost) == (output.total, output.lost)
    for start in (0, HEAD_BYTES - 3, HEAD_BYTES + 3, max(0, size - 5)):
        assert again.page(start, 500) == output.page(start, 500)
