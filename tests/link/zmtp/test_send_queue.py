"""The queue of messages, over a pair of sockets."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.link.zmtp.send_queue import SendQueue


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def received(theirs: socket.socket) -> bytes:
    found = bytearray()
    try:
        while data := theirs.recv(1 << 20):
            found += data
    except BlockingIOError:
        pass
    return bytes(found)


def send_all(queue: SendQueue, pair) -> bytes:
    """Send the whole queue to a peer that reads when the system takes no more."""
    ours, theirs = pair
    found = b""
    while True:
        try:
            done = queue.send(ours)
        except BlockingIOError:
            done = False
        found += received(theirs)
        if done:
            return found


def test_messages_leave_in_order(pair) -> None:
    queue = SendQueue()
    for number in range(1000):
        queue.append((b"<%d" % number, b">"), len(b"<%d>" % number))
    expected = b"".join(b"<%d>" % number for number in range(1000))
    assert queue.size == len(expected)
    assert send_all(queue, pair) == expected
    assert queue.size == 0


def test_a_message_larger_than_the_buffers_of_the_system_leaves_in_parts(pair) -> None:
    queue = SendQueue()
    data = bytes(range(256)) * 16384
    queue.append((b"head", memoryview(data).cast("I"), b"tail"), len(data) + 8)
    assert not queue.send(pair[0])
    assert 0 < queue.size < len(data)
    assert send_all(queue, pair) == b"head" + data + b"tail"


def test_what_was_sent_before_is_not_sent_again(pair) -> None:
    queue = SendQueue()
    queue.append((b"message",), 7, sent=4)
    assert queue.size == 3
    assert send_all(queue, pair) == b"age"


def test_a_command_goes_before_messages_and_never_into_one(pair) -> None:
    queue = SendQueue()
    queue.append((b"message",), 7, sent=4)
    queue.append((b"next",), 4)
    assert not queue.has_command
    queue.insert(b"[pong]")
    assert queue.has_command
    assert send_all(queue, pair) == b"age[pong]next"
    assert not queue.has_command
    queue.append((b"message",), 7)
    queue.insert(b"[pong]")
    assert send_all(queue, pair) == b"[pong]message"


def test_after_a_lost_connection_a_message_is_sent_again_whole_and_commands_are_forgotten(
    pair,
) -> None:
    queue = SendQueue()
    queue.append((b"message",), 7, sent=4)
    queue.insert(b"[pong]")
    queue.append((b"next",), 4)
    queue.rewind()
    assert queue.size == 11
    assert send_all(queue, pair) == b"messagenext"


def test_a_cleared_queue_is_empty(pair) -> None:
    queue = SendQueue()
    queue.append((b"message",), 7, sent=4)
    queue.clear()
    assert queue.size == 0
    queue.append((b"new",), 3)
    assert send_all(queue, pair) == b"new"


@given(st.lists(st.lists(st.integers(0, 300_000), max_size=3), max_size=20))
def test_any_messages_arrive_unchanged(sizes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        queue = SendQueue()
        expected = b""
        for number, message in enumerate(sizes):
            pieces = [bytes([number, size % 251]) * (size // 2) for size in message]
            queue.append(pieces, sum(map(len, pieces)))
            expected += b"".join(pieces)
        assert send_all(queue, (ours, theirs)) == expected
        assert queue.size == 0
