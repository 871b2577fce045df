"""A socket that carries a websocket, over real sockets whose other end does what the test wants."""

import asyncio
import errno
import socket
import struct
import weakref

import pytest
from tornado.iostream import IOStream, StreamClosedError

from kbridge.link.stream import CHUNK, SocketStream
from tests.link.ends import Taker, connected
from tests.support.waiting import TIMEOUT

BIG = b"x" * (4 << 20)  # more than the sockets' buffers take


class Ends(Taker):
    """Both ends of a connection, and a stream on one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted, self.peer = connected()
        self.accepted.setblocking(False)
        self.stream = SocketStream(self.accepted)
        self.running: asyncio.Task[None] | None = None

    def run(self) -> asyncio.Task[None]:
        self.running = asyncio.create_task(self.stream.run(self.on_data))
        return self.running

    async def read(self, count: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(TIMEOUT):
            while len(data) < count:
                data += await loop.sock_recv(self.peer, 1 << 20)
        return bytes(data)

    def reset(self) -> None:
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()


@pytest.fixture
async def ends():
    made = Ends()
    yield made
    made.stream.close()
    made.peer.close()
    if made.running is not None:
        async with asyncio.timeout(TIMEOUT):
            await made.running


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_comes_is_handed_on_in_the_turn_in_which_it_came(ends) -> None:
    ends.run()
    await turns()
    ends.peer.send(b"one")
    await ends.until(b"one")
    ends.peer.send(b"two")
    await ends.until(b"onetwo")


async def test_more_than_a_chunk_comes_whole_and_leaves_others_their_turn(ends) -> None:
    ends.run()
    data = bytes(range(256)) * 4096
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(ends.peer, data))
    await ends.until(data)
    await sending
    assert len(data) > 8 * CHUNK


async def test_nothing_is_read_while_paused(ends) -> None:
    ends.run()
    await turns()
    ends.stream.pause()
    ends.peer.send(b"later")
    await turns(20)
    assert not ends.came
    ends.stream.resume()
    await ends.until(b"later")


async def test_a_pause_within_a_read_holds(ends) -> None:
    def on_data(data: bytes) -> None:
        ends.on_data(data)
        ends.stream.pause()

    ends.running = asyncio.create_task(ends.stream.run(on_data))
    ends.peer.send(b"one")
    await ends.until(b"one")
    ends.peer.send(b"two")
    await turns(20)
    assert ends.came == b"one"
    ends.stream.resume()
    await ends.until(b"onetwo")


async def test_who_stops_may_run_again_and_nothing_is_lost(ends) -> None:
    first = ends.run()
    ends.peer.send(b"one")
    await ends.until(b"one")
    ends.stream.stop()
    ends.peer.send(b"two")
    await first
    assert ends.came == b"one"
    assert not ends.stream.closed()
    ends.run()
    await ends.until(b"onetwo")


@pytest.mark.parametrize("how", ["hangs up", "resets", "shuts its side"])
async def test_run_ends_when_the_peer(ends, how) -> None:
    running = ends.run()
    await turns()
    if how == "hangs up":
        ends.peer.close()
    elif how == "resets":
        ends.reset()
    else:
        ends.peer.shutdown(socket.SHUT_WR)
    async with asyncio.timeout(TIMEOUT):
        await running
    assert ends.stream.closed()
    assert ends.stream.socket is None


async def test_run_on_a_closed_stream_ends_at_once(ends) -> None:
    ends.stream.close()
    ends.stream.close()
    await ends.run()
    assert not ends.came


async def test_what_the_taker_raises_ends_run_and_nothing_else(ends) -> None:
    def on_data(data: bytes) -> None:
        raise LookupError(data)

    running = asyncio.create_task(ends.stream.run(on_data))
    ends.peer.send(b"one")
    with pytest.raises(LookupError, match="one"):
        async with asyncio.timeout(TIMEOUT):
            await running
    assert not ends.stream.closed()


async def test_a_write_that_fits_is_done_at_once(ends) -> None:
    assert ends.stream.write(b"one").done()
    assert ends.stream.write(b"").done()
    assert ends.stream.write(memoryview(b"two")).done()
    assert not ends.stream.writing()
    assert await ends.read(6) == b"onetwo"


async def test_writes_that_do_not_fit_are_done_in_order_when_they_have_gone(ends) -> None:
    order = []
    for name, data in (("big", BIG), ("small", b"small"), ("none", b"")):
        written = ends.stream.write(data)
        assert not written.done()
        written.add_done_callback(lambda _, name=name: order.append(name))
    assert ends.stream.writing()
    assert len(BIG) > ends.stream.waiting - 5 > 0
    assert await ends.read(len(BIG) + 5) == BIG + b"small"
    await turns()
    assert order == ["big", "small", "none"]
    assert not ends.stream.writing()
    assert ends.stream.waiting == 0


async def test_it_reads_while_a_write_waits(ends) -> None:
    ends.run()
    written = ends.stream.write(BIG)
    ends.peer.send(b"a pong")
    await ends.until(b"a pong")
    assert not written.done()
    assert await ends.read(len(BIG)) == BIG
    await written


@pytest.mark.parametrize("who", ["we", "the peer"])
async def test_a_write_that_waits_fails_when_the_stream_is_closed_by(ends, who) -> None:
    written = ends.stream.write(BIG)
    if who == "we":
        ends.stream.close()
    else:
        ends.reset()
    with pytest.raises(StreamClosedError):
        async with asyncio.timeout(TIMEOUT):
            await written
    assert ends.stream.closed()
    assert not ends.stream.writing()
    with pytest.raises(StreamClosedError):
        ends.stream.write(b"late")


async def test_nothing_is_left_in_the_loop_or_of_the_descriptor(ends) -> None:
    ends.run()
    ends.stream.write(BIG)
    await turns()
    number = ends.accepted.fileno()
    assert number in ends.stream.io_loop.handlers
    ends.stream.close()
    assert number not in ends.stream.io_loop.handlers
    assert ends.accepted.fileno() == -1


async def test_an_idle_stream_holds_no_future_but_its_own(ends) -> None:
    ends.run()
    written = weakref.ref(ends.stream.write(b"one"))
    assert written() is None


async def test_nagle_is_off_where_there_is_nagle(ends) -> None:
    ends.stream.set_nodelay(True)
    assert ends.accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    ours, theirs = socket.socketpair()
    stream = SocketStream(ours)
    stream.set_nodelay(True)
    assert stream.write(b"x").done()
    assert theirs.recv(1) == b"x"
    stream.close()
    stream.set_nodelay(True)
    theirs.close()


# -- in Tornado's place ----------------------------------------------------------------------


@pytest.fixture
async def tornado(ends):
    stream = IOStream(ends.accepted)
    yield stream
    stream.close()


def take_over(ends: Ends, stream: IOStream) -> SocketStream:
    taken = SocketStream.take_over(stream)
    assert taken is not None
    ends.stream = taken
    return taken


async def test_a_connection_goes_on_with_what_had_come_already(ends, tornado) -> None:
    ends.peer.send(b"head\r\n\r\nframes")
    async with asyncio.timeout(TIMEOUT):
        assert await tornado.read_until(b"\r\n\r\n") == b"head\r\n\r\n"
    taken = take_over(ends, tornado)
    assert tornado.closed()
    ends.run()
    await ends.until(b"frames")
    ends.peer.send(b" and more")
    await ends.until(b"frames and more")
    assert taken.write(b"answer").done()
    assert await ends.read(6) == b"answer"


async def test_nobody_is_told_that_tornados_stream_was_closed(ends, tornado) -> None:
    told = []
    tornado.set_close_callback(lambda: told.append("closed"))
    take_over(ends, tornado)
    await turns()
    assert told == []


async def test_what_is_closed_or_in_mid_write_is_left_to_tornado(ends, tornado) -> None:
    tornado.write(BIG)
    assert SocketStream.take_over(tornado) is None
    assert not tornado.closed()
    tornado.close()
    assert SocketStream.take_over(tornado) is None


async def test_a_peer_that_has_gone_is_left_to_tornado(ends, tornado) -> None:
    ends.peer.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    loop.add_reader(ends.accepted, gone.set_result, None)
    async with asyncio.timeout(TIMEOUT):
        await gone
    loop.remove_reader(ends.accepted)
    assert SocketStream.take_over(tornado) is None
    assert tornado.closed()


async def test_without_a_descriptor_it_is_left_to_tornado(ends, tornado, monkeypatch) -> None:
    def dup(_sock: socket.socket) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket.socket, "dup", dup)
    assert SocketStream.take_over(tornado) is None
    assert not tornado.closed()
