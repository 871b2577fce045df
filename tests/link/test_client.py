"""The writing side of a websocket on a real socket; the test decides when the other end reads."""

import asyncio
import socket

import pytest
from tornado.iostream import IOStream

from kbridge.link.client import StreamClient
from kbridge.link.interfaces import ClientLink, noop
from tests.link.ends import connected
from tests.support.waiting import TIMEOUT

BIG = b"x" * (2 << 20)  # more than fits into the buffers of the sockets


class Ends:
    """Both ends of a connection, one of them with a link."""

    def __init__(self) -> None:
        accepted, self.peer = connected()
        self.stream = IOStream(accepted)
        self.closes: list[tuple[int, str]] = []
        self.link = StreamClient(self.stream, lambda *how: self.closes.append(how))
        self.writable = asyncio.Event()
        self.told = 0
        self.link.on_writable = self._on_writable

    def _on_writable(self) -> None:
        self.told += 1
        self.writable.set()

    async def read(self, count: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(TIMEOUT):
            while len(data) < count:
                data += await loop.sock_recv(self.peer, 1 << 20)
        return bytes(data)

    async def told_writable(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self.writable.wait()
        self.writable.clear()

    def close(self) -> None:
        self.stream.close()
        self.peer.close()


@pytest.fixture
async def ends():
    made = Ends()
    yield made
    made.close()


async def test_a_write_that_fits_is_done_without_a_callback(ends) -> None:
    link: ClientLink = ends.link
    for data in (b"one", b"two"):
        assert link.write(data)
    assert await ends.read(6) == b"onetwo"
    assert ends.told == 0


async def test_a_write_that_does_not_fit_blocks_until_the_peer_has_read(ends) -> None:
    assert not ends.link.write(BIG)
    assert ends.told == 0
    assert await ends.read(len(BIG)) == BIG
    await ends.told_writable()
    assert ends.told == 1
    assert ends.link.write(b"more")
    assert await ends.read(4) == b"more"
    assert ends.told == 1, "reported a write that was never blocked"


async def test_each_blocked_write_is_reported_once(ends) -> None:
    for count in (1, 2, 3):
        assert not ends.link.write(BIG)
        await ends.read(len(BIG))
        await ends.told_writable()
        assert ends.told == count


async def test_frames_of_tornado_are_written_between_whole_frames(ends) -> None:
    """A pong that is sent while a write is blocked follows that write."""
    assert not ends.link.write(BIG)
    pong = ends.stream.write(b"pong")
    assert await ends.read(len(BIG) + 4) == BIG + b"pong"
    await pong
    await ends.told_writable()


async def test_writing_to_a_closed_stream_returns_false(ends) -> None:
    ends.stream.close()
    assert ends.link.closed
    assert not ends.link.write(b"late")
    assert ends.told == 0


async def test_a_blocked_stream_that_closes_calls_no_callback(ends) -> None:
    assert not ends.link.write(BIG)
    ends.stream.close()
    for _ in range(3):  # the write's callbacks run on the loop's next turn
        await asyncio.sleep(0)
    assert ends.told == 0
    assert ends.link.closed


async def test_a_peer_that_hangs_up_closes_the_link(ends) -> None:
    hung_up = asyncio.Event()
    ends.stream.set_close_callback(hung_up.set)
    assert not ends.link.write(BIG)
    ends.peer.close()
    async with asyncio.timeout(TIMEOUT):
        await hung_up.wait()
    assert ends.link.closed
    assert not ends.link.write(b"late")
    assert ends.told == 0


async def test_nothing_is_written_once_the_closing_handshake_has_begun(ends) -> None:
    """A server sends no data behind its close frame (RFC 6455, section 5.5.1)."""
    begun = False
    link = StreamClient(ends.stream, lambda *_: None, lambda: begun)
    assert link.write(b"data")
    begun = True
    assert link.closed
    assert not link.write(b"behind the close frame")
    await ends.stream.write(b"end")
    assert await ends.read(7) == b"dataend"


async def test_close_calls_the_close_of_the_websocket(ends) -> None:
    ends.link.close(1001, "going away")
    assert ends.closes == [(1001, "going away")]


async def test_nagle_is_off_and_callbacks_are_optional(ends) -> None:
    assert ends.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert StreamClient(ends.stream, lambda *_: None).on_writable is noop


async def test_a_unix_socket_has_no_nagle_to_turn_off() -> None:
    ours, theirs = socket.socketpair()
    stream = IOStream(ours)
    try:
        assert StreamClient(stream, lambda *_: None).write(b"x")
        assert theirs.recv(1) == b"x"
    finally:
        stream.close()
        theirs.close()
