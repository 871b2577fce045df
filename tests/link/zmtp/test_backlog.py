"""Bytes that were received in advance."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from kbridge.link.zmtp.backlog import Backlog
from kbridge.link.zmtp.receive import CHUNK, ReceiveBuffer
from tests.support.waiting import TIMEOUT


class Owner:
    """A backlog and the other end of its connection."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.near = near
        self.backlog = Backlog(near, ReceiveBuffer(), self)
        self.called = asyncio.Event()
        self.calls = 0

    def on_backlog(self) -> None:
        self.calls += 1
        self.called.set()

    async def until_called(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self.called.wait()


@pytest.fixture
async def owner():
    made = Owner()
    yield made
    made.backlog.close()
    made.far.close()


def receive_elsewhere(owner: Owner) -> None:
    """Receive in another thread, while the event loop is blocked."""
    thread = threading.Thread(target=owner.backlog.collect_late)
    thread.start()
    thread.join(TIMEOUT)


def fill(owner: Owner, data: bytes) -> None:
    """Send more than a socket holds, and receive it in pieces."""
    rest = memoryview(data)
    owner.far.setblocking(False)
    while rest:
        rest = rest[owner.far.send(rest[:100_000]) :]
        owner.backlog.collect()


async def test_bytes_are_taken_in_order_in_slices(owner) -> None:
    data = b"".join(n.to_bytes(4, "big") for n in range(500_000))
    fill(owner, data)
    assert owner.backlog.size == owner.backlog.waiting == len(data)
    with pytest.raises(BlockingIOError):
        owner.near.recv(1)
    slices = []
    while owner.backlog.size:
        slices.append(owner.backlog.take())
    assert b"".join(slices) == data
    assert max(map(len, slices)) == CHUNK
    assert len(slices) == -(-len(data) // CHUNK)
    assert owner.backlog.take() == b""


async def test_one_call_receives_once_however_much_arrives_meanwhile(owner) -> None:
    """The event loop may wait for the lock."""

    class Endless(ReceiveBuffer):
        def collect(self, sock: socket.socket, size: int) -> bytes:
            data = super().collect(sock, size)
            owner.far.send(b"more")
            return data

    owner.backlog.buffer = Endless()
    owner.far.send(b"bytes")
    owner.backlog.collect()
    assert owner.backlog.take() == b"bytes"
    receive_elsewhere(owner)
    assert owner.backlog.take() == b"more"


async def test_a_long_part_is_copied_to_its_place(owner) -> None:
    data = bytes(range(256)) * 1000
    fill(owner, data)
    place = memoryview(bytearray(len(data)))
    at = 0
    while owner.backlog.size:
        at += owner.backlog.take_into(place[at:])
    assert place == data
    fill(owner, data)
    assert owner.backlog.take_into(place[:10]) == 10
    assert owner.backlog.take() == data[10 : 10 + CHUNK]


async def test_bytes_that_another_thread_received_are_announced_once(owner) -> None:
    for _ in range(3):
        owner.far.send(b"bytes")
        receive_elsewhere(owner)
    await owner.until_called()
    assert owner.calls == 1
    assert owner.backlog.take() == b"bytesbytesbytes"
    owner.called.clear()
    owner.far.send(b"more")
    receive_elsewhere(owner)
    await owner.until_called()
    assert owner.calls == 2


async def test_nothing_is_announced_if_nothing_waits(owner) -> None:
    receive_elsewhere(owner)
    owner.backlog.announce()
    owner.backlog.announce()
    await owner.until_called()
    assert owner.calls == 1


async def test_the_end_is_left_to_the_event_loop(owner) -> None:
    owner.far.send(b"last")
    owner.far.close()
    owner.backlog.collect()
    owner.backlog.collect()
    assert owner.backlog.take() == b"last"
    assert owner.near.recv(10) == b""


async def test_a_closed_backlog_calls_nothing(owner) -> None:
    owner.far.send(b"bytes")
    receive_elsewhere(owner)
    owner.backlog.close()
    owner.backlog.collect()
    receive_elsewhere(owner)
    assert (owner.calls, owner.backlog.waiting, owner.backlog.fileno()) == (0, 0, -1)
    owner.backlog.close()
    assert owner.far.recv(10) == b""


async def test_the_socket_stays_open_while_another_thread_has_the_lock(owner) -> None:
    with owner.backlog.lock:
        closing = asyncio.ensure_future(asyncio.to_thread(owner.backlog.close))
        await asyncio.sleep(0)
        assert owner.near.fileno() >= 0
    await closing
    assert owner.near.fileno() == -1
