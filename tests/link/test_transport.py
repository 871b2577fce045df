"""A transport on real sockets; the test controls the other end."""

import asyncio
import gc
import socket
import ssl
import struct
import weakref

import pytest
from tornado.iostream import IOStream, SSLIOStream

from kbridge.link.transport import CHUNK, SocketTransport
from tests.link.ends import Taker, connected
from tests.support.waiting import TIMEOUT

BIG = b"x" * (4 << 20)  # more than fits into the buffers of the sockets


class Ends(Taker):
    """Both ends of a connection, one of them with a transport."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted, self.peer = connected()
        self.accepted.setblocking(False)
        self.transport = SocketTransport(self.accepted)
        self.transport.attach(self)

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
    made.transport.close()
    made.peer.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_nothing_is_read_before_the_first_resume(ends) -> None:
    ends.peer.send(b"early")
    await turns(20)
    assert not ends.came
    ends.transport.resume()
    await ends.until(b"early")


async def test_data_is_read_in_the_turn_in_which_it_arrives(ends) -> None:
    ends.transport.resume()
    ends.peer.send(b"one")
    await ends.until(b"one")
    ends.peer.send(b"two")
    await ends.until(b"onetwo")


async def test_one_read_takes_at_most_one_chunk(ends) -> None:
    ends.transport.resume()
    data = bytes(range(256)) * 4096
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(ends.peer, data))
    await ends.until(data)
    await sending
    assert max(ends.sizes) <= CHUNK
    assert len(ends.sizes) >= len(data) // CHUNK


async def test_nothing_is_read_while_paused(ends) -> None:
    ends.transport.resume()
    ends.transport.pause()
    ends.transport.pause()
    ends.peer.send(b"later")
    await turns(20)
    assert not ends.came
    ends.transport.resume()
    ends.transport.resume()
    await ends.until(b"later")


async def test_a_pause_within_a_read_holds(ends) -> None:
    ends.then = ends.transport.pause
    ends.transport.resume()
    ends.peer.send(b"one")
    await ends.until(b"one")
    ends.peer.send(b"two")
    await turns(20)
    assert ends.came == b"one"
    ends.transport.resume()
    await ends.until(b"onetwo")


@pytest.mark.parametrize("how", ["hangs up", "resets", "shuts its side"])
async def test_the_transport_closes_when_the_peer(ends, how) -> None:
    ends.transport.resume()
    if how == "hangs up":
        ends.peer.close()
    elif how == "resets":
        ends.reset()
    else:
        ends.peer.shutdown(socket.SHUT_WR)
    await ends.until_closed()
    assert ends.transport.closed
    assert ends.accepted.fileno() == -1


async def test_closing_is_reported_once_in_a_later_turn(ends) -> None:
    ends.transport.close()
    ends.transport.close()
    assert ends.closed == 0
    await turns()
    assert ends.closed == 1
    ends.transport.resume()
    ends.transport.pause()
    ends.transport.write_eof()
    ends.transport.set_nodelay(True)
    assert not ends.transport.write(b"late")
    await turns()
    assert ends.closed == 1
    assert not ends.came


async def test_a_write_that_fits_is_done_at_once(ends) -> None:
    for data in (b"one", b"", memoryview(b"two")):
        assert ends.transport.write(data)
    assert not ends.transport.writing
    assert await ends.read(6) == b"onetwo"
    assert ends.drained == 0


async def test_writes_that_do_not_fit_go_out_in_order(ends) -> None:
    for data in (BIG, b"small", b""):
        assert not ends.transport.write(data)
    assert ends.transport.writing
    assert len(BIG) > ends.transport.unsent_bytes - 5 > 0
    assert await ends.read(len(BIG) + 5) == BIG + b"small"
    await ends.until_drained()
    assert ends.drained == 1
    assert not ends.transport.writing
    assert ends.transport.unsent_bytes == 0
    assert ends.transport.write(b"more")
    assert await ends.read(4) == b"more"


async def test_it_reads_while_a_write_waits(ends) -> None:
    ends.transport.resume()
    ends.transport.write(BIG)
    ends.peer.send(b"a pong")
    await ends.until(b"a pong")
    assert ends.transport.writing
    assert await ends.read(len(BIG)) == BIG
    await ends.until_drained()


@pytest.mark.parametrize("who", ["we", "the peer"])
async def test_a_queue_is_dropped_when_the_connection_is_closed_by(ends, who) -> None:
    ends.transport.write(BIG)
    if who == "we":
        ends.transport.close()
    else:
        ends.reset()
    await ends.until_closed()
    assert not ends.transport.writing
    assert ends.drained == 0
    assert not ends.transport.write(b"late")


async def test_a_write_that_meets_a_reset_connection_closes_it(ends) -> None:
    ends.reset()
    for _ in range(1_000_000):
        if not ends.transport.write(b"x"):
            break
    await ends.until_closed()
    assert ends.drained == 0


async def test_nothing_is_left_in_the_loop_or_of_the_descriptor(ends) -> None:
    loop = asyncio.get_running_loop()
    ends.transport.resume()
    ends.transport.write(BIG)
    number = ends.accepted.fileno()
    ends.transport.close()
    assert not loop.remove_reader(number)
    assert not loop.remove_writer(number)
    assert ends.accepted.fileno() == -1
    await turns()
    gone = weakref.ref(ends.transport)
    ends.transport = SocketTransport()
    gc.collect()
    assert gone() is None


async def test_the_peer_sees_the_end_and_may_still_send(ends) -> None:
    ends.transport.resume()
    assert ends.transport.write(b"last")
    ends.transport.write_eof()
    assert await ends.read(4) == b"last"
    assert await asyncio.get_running_loop().sock_recv(ends.peer, 1) == b""
    ends.peer.send(b"more")
    await ends.until(b"more")


async def test_nagle_is_turned_off_for_tcp(ends) -> None:
    ends.transport.set_nodelay(True)
    assert ends.accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours)
    transport.set_nodelay(True)
    assert transport.write(b"x")
    assert theirs.recv(1) == b"x"
    transport.close()
    theirs.close()


async def test_keepalive_is_turned_on_for_tcp(ends) -> None:
    ends.transport.set_keepalive()
    assert ends.accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert ends.accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours)
    transport.set_keepalive()
    assert not ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    transport.close()
    transport.set_keepalive()
    theirs.close()


# -- in the place of a Tornado stream --------------------------------------------------------


@pytest.fixture
async def tornado(ends):
    stream = IOStream(ends.accepted)
    yield stream
    stream.close()


def take_over(ends: Ends, stream: IOStream) -> SocketTransport:
    taken = ends.transport = SocketTransport.take_over(stream)
    taken.attach(ends)
    return taken


async def test_bytes_that_arrived_before_the_take_over_are_read(ends, tornado) -> None:
    ends.peer.send(b"head\r\n\r\nframes")
    async with asyncio.timeout(TIMEOUT):
        assert await tornado.read_until(b"\r\n\r\n") == b"head\r\n\r\n"
    taken = take_over(ends, tornado)
    assert tornado.closed()
    taken.resume()
    await ends.until(b"frames")
    ends.peer.send(b" and more")
    await ends.until(b"frames and more")
    assert taken.write(b"answer")
    assert await ends.read(6) == b"answer"


async def test_the_take_over_calls_no_close_callback(ends, tornado) -> None:
    told = []
    tornado.set_close_callback(lambda: told.append("closed"))
    take_over(ends, tornado)
    await turns()
    assert told == []
    assert ends.closed == 0


async def test_a_connection_that_has_ended_is_not_taken_over(ends, tornado) -> None:
    ends.peer.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    loop.add_reader(ends.accepted, gone.set_result, None)
    async with asyncio.timeout(TIMEOUT):
        await gone
    loop.remove_reader(ends.accepted)
    for _ in range(2):  # the first write detects it
        assert SocketTransport.take_over(tornado).closed
        assert tornado.closed()


# -- TLS -------------------------------------------------------------------------------------


class SecureEnds(Taker):
    """A transport with TLS, and asyncio's streams at the other end."""

    def __init__(self, stream: SSLIOStream, reader, writer) -> None:
        super().__init__()
        self.reader, self.writer = reader, writer
        self.transport = SocketTransport.take_over(stream)
        self.transport.attach(self)


@pytest.fixture
async def secure(tls: ssl.SSLContext, trusting: ssl.SSLContext):
    accepted, peer = connected()
    accepted.setblocking(False)
    stream = SSLIOStream(tls.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False))
    connecting = asyncio.create_task(
        asyncio.open_connection(sock=peer, ssl=trusting, server_hostname="localhost")
    )
    async with asyncio.timeout(TIMEOUT):
        await stream.wait_for_handshake()
        made = SecureEnds(stream, *await connecting)
    yield made
    made.transport.close()
    made.writer.close()
    await asyncio.gather(made.writer.wait_closed(), return_exceptions=True)


async def test_tls_carries_data_both_ways_in_order(secure) -> None:
    secure.transport.resume()
    data = bytes(range(256)) * 8192  # many records
    secure.writer.write(data)
    await secure.until(data)
    assert max(secure.sizes) <= CHUNK
    secure.transport.write(BIG)
    secure.transport.write(b"small")
    assert secure.transport.writing
    async with asyncio.timeout(TIMEOUT):
        assert await secure.reader.readexactly(len(BIG) + 5) == BIG + b"small"
    await secure.until_drained()
    assert secure.transport.write(b"more")
    async with asyncio.timeout(TIMEOUT):
        assert await secure.reader.readexactly(4) == b"more"


async def test_a_record_that_arrives_while_paused_is_read_after_the_pause(secure) -> None:
    """OpenSSL never keeps decrypted bytes that the descriptor does not announce."""
    secure.then = secure.transport.pause
    secure.transport.resume()
    data = b"x" * 100_000
    secure.writer.write(data)
    for _ in range(len(data)):
        before = len(secure.came)
        if before == len(data):
            break
        secure.transport.resume()
        await secure.until_more(before)
    assert secure.came == data


@pytest.mark.parametrize("how", ["closes", "aborts"])
async def test_a_tls_transport_closes_when_the_peer(secure, how) -> None:
    secure.transport.resume()
    if how == "closes":
        secure.writer.close()
    else:
        secure.writer.transport.abort()
    await secure.until_closed()
    assert secure.transport.closed


async def test_bytes_that_are_not_tls_close_the_connection(secure) -> None:
    secure.transport.resume()
    with socket.socket(fileno=socket.dup(secure.writer.get_extra_info("socket").fileno())) as raw:
        raw.send(b"not a record" * 10)
    await secure.until_closed()
    assert not secure.came
