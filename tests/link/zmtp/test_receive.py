import socket
import threading

import pytest

from kbridge.link.zmtp.receive import CHUNK, ReceiveBuffer


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_bytes_that_were_received_are_not_changed_by_the_next_read(pair) -> None:
    ours, theirs = pair
    buffer, other = ReceiveBuffer(), ReceiveBuffer()
    theirs.send(b"first")
    first = buffer.receive(ours)
    theirs.send(b"other")
    assert other.receive(ours) == b"other"
    assert first == b"first"
    with pytest.raises(BlockingIOError):
        buffer.receive(ours)
    theirs.close()
    assert buffer.receive(ours) == b""


def test_a_read_takes_at_most_a_chunk(pair) -> None:
    ours, theirs = pair
    sending = threading.Thread(target=theirs.sendall, args=(bytes(3 * CHUNK),))
    sending.start()
    ours.setblocking(True)
    total = 0
    while total < 3 * CHUNK:
        data = ReceiveBuffer().receive(ours)
        assert 0 < len(data) <= CHUNK
        total += len(data)
    sending.join()


def test_a_long_part_is_received_in_its_place(pair) -> None:
    ours, theirs = pair
    theirs.send(b"0123456789")
    place = bytearray(4)
    with memoryview(place) as view:
        assert ReceiveBuffer().receive_long(ours, view) == 4
    assert place == b"0123"
    assert ReceiveBuffer().receive(ours) == b"456789"


def test_threads_do_not_share_memory(pair) -> None:
    ours, theirs = pair
    theirs.send(b"x" * 10)
    results: list[bytes] = []
    mine = ReceiveBuffer()

    def elsewhere() -> None:
        results.append(ReceiveBuffer().receive(ours))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert results == [b"x" * 10]
    with pytest.raises(BlockingIOError):
        mine.receive(ours)
