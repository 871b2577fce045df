"""A relay between real sockets; the test is the client and the server."""

import asyncio
import gc
import os
import socket
import struct
import sys
import weakref

import pytest

from kbridge.link.relay import Relay
from kbridge.link.transport import CHUNK, SocketTransport
from kbridge.wire import frames
from kbridge.wire.frames import BINARY
from tests.link.ends import connected
from tests.support.waiting import TIMEOUT, until

BIG = os.urandom(8 << 20)


class Relayed:
    """A relay, and the far ends of both connections."""

    def __init__(self) -> None:
        near_client, self.client = connected()
        near_server, self.server = connected()
        for near in (near_client, near_server):
            near.setblocking(False)
        self.near = (near_client, near_server)
        transports = SocketTransport(near_client), SocketTransport(near_server)
        self.transports = [weakref.ref(transport) for transport in transports]
        self.relay = Relay(*transports)

    async def read(self, end: socket.socket, count: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        async with asyncio.timeout(TIMEOUT):
            while len(data) < count and (
                more := await loop.sock_recv(end, min(count - len(data), 1 << 20))
            ):
                data += more
        return bytes(data)

    async def rest(self, end: socket.socket) -> bytes:
        """Read to the end of a connection."""
        return await self.read(end, sys.maxsize)

    async def send(self, end: socket.socket, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(end, data)

    async def until_ended(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self.relay.ended
        assert [near.fileno() for near in self.near] == [-1, -1]


@pytest.fixture
async def relayed():
    made = Relayed()
    made.relay.start()
    yield made
    made.relay.abort()
    made.client.close()
    made.server.close()
    await made.until_ended()


async def test_bytes_pass_in_both_directions_unchanged(relayed) -> None:
    request, answer = frames.frame(BIG, BINARY), frames.frame(BIG[::-1], BINARY)
    sending = [
        asyncio.create_task(relayed.send(relayed.client, request)),
        asyncio.create_task(relayed.send(relayed.server, answer)),
    ]
    got = await asyncio.gather(
        relayed.read(relayed.server, len(request)), relayed.read(relayed.client, len(answer))
    )
    assert got == [request, answer]
    await asyncio.gather(*sending)


@pytest.mark.parametrize("slow", ["client", "server"])
async def test_a_side_that_does_not_read_stops_the_other(relayed, slow) -> None:
    reader = getattr(relayed, slow)
    writer = relayed.server if slow == "client" else relayed.client
    data = frames.frame(BIG, BINARY)
    sending = asyncio.create_task(relayed.send(writer, data))
    await until(lambda: relayed.relay.unsent_bytes, "the relay waits for the slow side")
    for _ in range(1000):
        await asyncio.sleep(0)
        assert relayed.relay.unsent_bytes <= CHUNK
    assert not sending.done()
    # The other direction is not held up.
    other = b"\x8a\x01p"
    await relayed.send(reader, other)
    assert await relayed.read(writer, len(other)) == other
    assert await relayed.read(reader, len(data)) == data
    await sending


async def test_the_end_of_the_client_ends_the_server_side(relayed) -> None:
    await relayed.send(relayed.client, b"last")
    relayed.client.close()
    assert await relayed.rest(relayed.server) == b"last"
    relayed.server.close()
    await relayed.until_ended()


async def test_a_client_that_closes_only_its_writing_side_is_ended(relayed) -> None:
    relayed.client.shutdown(socket.SHUT_WR)
    assert await relayed.rest(relayed.server) == b""
    relayed.server.close()
    await relayed.until_ended()
    assert await relayed.rest(relayed.client) == b""


@pytest.mark.parametrize("how", ["closes", "resets"])
async def test_if_the_server_is_lost_the_client_gets_1012(relayed, how) -> None:
    whole = frames.frame(b"output", BINARY)
    await relayed.send(relayed.server, whole)
    assert await relayed.read(relayed.client, len(whole)) == whole
    if how == "resets":
        relayed.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    relayed.server.close()
    rest = await relayed.rest(relayed.client)
    assert rest[:1] == b"\x88"
    assert struct.unpack("!H", rest[2:4]) == (1012,)
    relayed.client.close()
    await relayed.until_ended()


async def test_a_torn_frame_is_followed_by_no_close_frame(relayed) -> None:
    torn = frames.frame(b"output", BINARY)[:-1]
    await relayed.send(relayed.server, torn)
    relayed.server.close()
    assert await relayed.rest(relayed.client) == torn


async def test_the_close_frame_of_the_server_is_the_only_one(relayed) -> None:
    last = frames.frame(b"output", BINARY) + frames.close(1001, "the server shuts down")
    await relayed.send(relayed.server, last)
    relayed.server.close()
    assert await relayed.rest(relayed.client) == last


async def test_a_close_frame_follows_the_frame_that_is_under_way(relayed) -> None:
    data = frames.frame(BIG, BINARY)
    sending = asyncio.create_task(relayed.send(relayed.server, data[: len(data) // 2]))
    got = await relayed.read(relayed.client, 1 << 20)
    await until(sending.done, "the first half is sent")
    relayed.relay.close(1012, "draining")
    relayed.relay.close(1001, "again")
    await relayed.send(relayed.client, b"a request")
    rest = data[len(data) // 2 :] + frames.frame(b"the next", BINARY)
    sending = asyncio.create_task(relayed.send(relayed.server, rest))
    got += await relayed.rest(relayed.client)
    assert got == data + frames.close(1012, "draining")
    await asyncio.wait({sending})
    sending.exception()  # a reset connection, perhaps
    relayed.client.close()
    await relayed.until_ended()


async def test_a_close_frame_between_frames_is_sent_at_once(relayed) -> None:
    relayed.relay.close(1001, "going away")
    assert await relayed.rest(relayed.client) == frames.close(1001, "going away")
    assert await relayed.rest(relayed.server) == b""
    relayed.relay.close(1001, "going away")


async def test_a_connection_that_has_ended_before_the_start_ends_the_relay() -> None:
    near, client = connected()
    near.setblocking(False)
    relay = Relay(SocketTransport(near), SocketTransport())
    relay.start()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(TIMEOUT):
        assert (await loop.sock_recv(client, 100))[:1] == b"\x88"
        client.close()
        await relay.ended
    assert near.fileno() == -1


async def test_nothing_is_left_of_a_relay(relayed) -> None:
    relayed.relay.abort()
    relayed.relay.abort()
    await relayed.until_ended()
    relayed.relay = Relay(SocketTransport(), SocketTransport())
    gc.collect()
    assert [transport() for transport in relayed.transports] == [None, None]
