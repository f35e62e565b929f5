"""Memory that is used again, and never while anyone can still see what was in it."""

from runtime.averaging.buffers import LEAST_BYTES, Buffers


def where(view: memoryview) -> int:
    return id(view.obj)


def test_what_nobody_looks_at_any_more_is_handed_out_again() -> None:
    buffers = Buffers()
    view = buffers.take(LEAST_BYTES)
    first = where(view)
    del view
    assert where(buffers.take(LEAST_BYTES)) == first


def test_a_slice_that_a_stream_still_sends_keeps_its_memory() -> None:
    buffers = Buffers()
    view = buffers.take(LEAST_BYTES)
    first, sending = where(view), view[100:200]
    sending[:] = b"x" * 100
    del view
    other = buffers.take(LEAST_BYTES)
    assert where(other) != first
    other[:] = bytes(LEAST_BYTES)
    assert sending == b"x" * 100
    del sending
    assert where(buffers.take(LEAST_BYTES)) == first


def test_lengths_that_differ_a_little_share_their_memory_and_none_gets_too_little() -> None:
    buffers = Buffers()
    first = where(buffers.take(20 * LEAST_BYTES))
    view = buffers.take(20 * LEAST_BYTES + 1000)
    assert len(view) == 20 * LEAST_BYTES + 1000
    again = where(view)
    del view
    assert where(buffers.take(20 * LEAST_BYTES + 2000)) == again
    assert first != 0
    for n_bytes in (0, 1, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 1, (1 << 24) - 1, 1 << 24):
        assert len(Buffers().take(n_bytes)) == n_bytes


def test_what_two_rounds_have_not_wanted_is_let_go() -> None:
    buffers = Buffers()
    buffers.take(LEAST_BYTES)
    buffers.trim()
    buffers.take(4 * LEAST_BYTES)
    buffers.trim()
    assert [len(buffer) for buffer in buffers._buffers] == [4 * LEAST_BYTES]


def test_what_a_later_round_gives_back_is_there_for_the_next() -> None:
    """As the results of the last committed steps are: each round takes one and the oldest comes free at its end."""
    buffers, kept = Buffers(), list[memoryview]()
    for _ in range(8):
        kept = [*kept, buffers.take(LEAST_BYTES)][-3:]
        buffers.trim()
    assert len(buffers._buffers) == 4
