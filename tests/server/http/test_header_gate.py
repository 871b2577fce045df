"""The header gate, with real sockets on 127.0.0.1."""

import asyncio
import select
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.iostream import IOStream

from kbridge.server.http.connection_limiter import ConnectionLimiter, ConnectionLimits
from kbridge.server.http.header_gate import READS_PER_TURN, HeaderGate, ReadAhead
from tests.support.waiting import TIMEOUT

pytestmark = pytest.mark.skipif(not HeaderGate.available(), reason="needs epoll, which Linux has")

MOST = 2_000
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


class Counted(ReadAhead):
    """Records the turn of the loop in which it was read."""

    __slots__ = ("harness",)

    def read_ahead(self, room: memoryview) -> int:
        self.harness.looks[self.harness.turn] += 1
        self.harness.news.set()
        return super().read_ahead(room)


class Harness:
    def __init__(self) -> None:
        self.entered: list[tuple[IOStream, Any]] = []
        self.lost: list[IOStream] = []
        self.news = asyncio.Event()
        self.turn = 0
        self.entries: Counter[int] = Counter()
        self.looks: Counter[int] = Counter()
        self.gate = HeaderGate(MOST, self, self)
        self.clients: list[socket.socket] = []
        self.streams: list[IOStream] = []
        self._count()

    def _count(self) -> None:
        self.turn += 1
        self._next = asyncio.get_running_loop().call_soon(self._count)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        self.entered.append((stream, address))
        self.entries[self.turn] += 1
        self.news.set()

    def closed(self, stream: IOStream) -> None:
        self.lost.append(stream)
        self.news.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not done():
                self.news.clear()
                await self.news.wait()

    def dial(
        self, said: bytes = b"", pair: tuple[socket.socket, socket.socket] | None = None
    ) -> tuple[socket.socket, IOStream]:
        """A connection that is accepted after the client has sent these bytes."""
        client, here = pair or connected()
        if said:
            client.sendall(said)
        sock = Counted.take_over(here)
        sock.harness = self
        stream = IOStream(sock)
        self.clients.append(client)
        self.streams.append(stream)
        self.gate.add(stream, sock, f"client {len(self.streams)}")
        return client, stream

    @contextmanager
    def instant(self) -> Iterator[None]:
        """No time passes for the gate, however busy the machine is; nothing may be awaited."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        loop.time = lambda: now
        try:
            yield
        finally:
            del loop.time

    async def seen(self, count: int) -> None:
        """Wait until the socket was read so many times."""
        await self.until(lambda: self.looks.total() >= count)

    def close(self) -> None:
        self._next.cancel()
        self.gate.close()
        for one in (*self.clients, *self.streams):
            one.close()


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        return client, listening.accept()[0]


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness()
    yield made
    made.close()


async def read_all(awaited: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(TIMEOUT):
        return await awaited


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
async def test_a_complete_head_enters_at_once(harness: Harness, end: bytes) -> None:
    _, stream = harness.dial(b"GET / HTTP/1.1" + end + b"the body")
    assert harness.entered == [(stream, "client 1")]
    assert await read_all(stream.read_until_regex(b"\r?\n\r?\n")) == b"GET / HTTP/1.1" + end
    assert await read_all(stream.read_bytes(8)) == b"the body"


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_head_in_single_bytes_enters_when_it_is_complete(
    harness: Harness, end: bytes, unix: bool
) -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a" + end
    client, stream = harness.dial(pair=socket.socketpair() if unix else None)
    for at, byte in enumerate(whole):
        assert not harness.entered, whole[:at]
        client.sendall(bytes([byte]))
        await harness.seen(at + 2)
    assert [entered for entered, _ in harness.entered] == [stream]
    client.sendall(b"more")
    assert await read_all(stream.read_bytes(len(whole) + 4)) == whole + b"more"
    assert harness.gate.pending_connections == 0
    assert harness.looks.total() == len(whole) + 1, "bytes are looked at more than once"


async def test_bytes_read_ahead_can_be_read_in_any_portions(harness: Harness) -> None:
    client, stream = harness.dial(REQUEST)
    client.sendall(b"x" * 10)
    came = await read_all(stream.read_bytes(5))
    came += await read_all(stream.read_bytes(1000, partial=True))
    buffer = bytearray(len(REQUEST) + 10 - len(came))
    async with asyncio.timeout(TIMEOUT):
        if buffer:
            await stream.read_into(buffer)
    assert came + buffer == REQUEST + b"x" * 10


async def test_a_head_that_is_too_long_enters_to_be_refused(harness: Harness) -> None:
    client, stream = harness.dial(b"x" * MOST)
    assert not harness.entered
    client.sendall(b"x")
    await harness.until(lambda: bool(harness.entered))
    assert len(await read_all(stream.read_bytes(MOST + 1))) == MOST + 1


async def test_at_most_one_read_of_a_stream_is_read_ahead() -> None:
    entered: asyncio.Queue[IOStream] = asyncio.Queue()
    server = SimpleNamespace(handle_stream=lambda stream, _: entered.put_nowait(stream))
    gate = HeaderGate(1 << 20, server, ConnectionLimiter(ConnectionLimits()))
    client, here = connected()
    sock = ReadAhead.take_over(here)
    stream = IOStream(sock)
    gate.add(stream, sock, None)
    client.sendall(b"x" * 100_000)
    async with asyncio.timeout(TIMEOUT):
        assert await entered.get() is stream
        assert len(sock.ahead) == 64 << 10
        client.sendall(b"the end")
        assert (await stream.read_until(b"the end")) == b"x" * 100_000 + b"the end"
    stream.close()
    client.close()
    gate.close()


@pytest.mark.parametrize("said", [b"", b"GET / HT"], ids=["silence", "half"])
@pytest.mark.parametrize("how", ["fin", "shutdown", "reset"])
async def test_a_client_that_hangs_up_is_removed(harness: Harness, said: bytes, how: str) -> None:
    client, stream = harness.dial(said)
    assert harness.gate.pending_connections == 1
    if how == "shutdown":
        client.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
    await harness.until(lambda: harness.lost == [stream])
    assert stream.closed()
    assert harness.gate.pending_connections == 0


async def test_a_client_that_has_hung_up_is_not_added(harness: Harness) -> None:
    pair = connected()
    pair[0].shutdown(socket.SHUT_WR)
    _, stream = harness.dial(pair=pair)
    assert harness.lost == [stream]
    assert stream.closed()


async def test_a_request_followed_by_the_end_of_input_enters(harness: Harness) -> None:
    pair = connected()
    pair[0].sendall(REQUEST)
    pair[0].shutdown(socket.SHUT_WR)
    _, stream = harness.dial(pair=pair)
    assert [entered for entered, _ in harness.entered] == [stream]
    assert await read_all(stream.read_until_close()) == REQUEST


async def test_one_turn_of_the_loop_reads_from_a_few_connections(harness: Harness) -> None:
    count = 5 * READS_PER_TURN
    for _ in range(count):
        harness.dial()
    harness.looks.clear()
    for client in harness.clients:
        client.sendall(b"GET ")
    await harness.seen(count)
    assert max(harness.looks.values()) <= READS_PER_TURN
    assert harness.looks.total() == count
    for _ in range(20):  # turns of the loop: bytes that were read are not read again
        await asyncio.sleep(0)
    assert harness.looks.total() == count


async def test_requests_enter_one_by_one_and_in_order(harness: Harness) -> None:
    with harness.instant():
        first = [harness.dial(REQUEST)[1] for _ in range(8)]
    assert harness.gate.busy
    await harness.until(lambda: len(harness.entered) == 8)
    assert not harness.gate.busy
    assert [stream for stream, _ in harness.entered] == first
    # One on time, and one that compensates for a late timer.
    assert max(harness.entries.values()) <= 2


async def test_an_authenticated_request_does_not_delay_the_next(harness: Harness) -> None:
    with harness.instant():
        for _ in range(8):
            harness.dial(REQUEST)
        assert harness.gate.busy
        for _ in range(8):
            harness.gate.mark_authenticated(harness.entered[-1][0])
    assert len(harness.entered) == 8
    assert not harness.gate.busy


async def test_an_earlier_authenticated_request_has_no_effect(harness: Harness) -> None:
    with harness.instant():
        for _ in range(8):
            harness.dial(REQUEST)
        known = harness.entered[-1][0]
        harness.gate.mark_authenticated(known)
        count = len(harness.entered)
        harness.gate.mark_authenticated(known)
    assert len(harness.entered) == count < 8


async def test_a_connection_closed_while_it_waits_does_not_enter(harness: Harness) -> None:
    with harness.instant():
        streams = [harness.dial(REQUEST)[1] for _ in range(8)]
    half = harness.dial(b"GET")[1]
    for stream in (streams[-2], half):
        harness.gate.discard(stream)
        stream.close()
    assert harness.gate.pending_connections == 8 - len(harness.entered)
    await harness.until(lambda: len(harness.entered) == 7)
    harness.gate.discard(half)
    harness.gate.discard(streams[0])
    assert [s for s, _ in harness.entered] == [*streams[:6], streams[7]]


async def test_close_closes_only_the_pending_connections(harness: Harness) -> None:
    with harness.instant():
        inside = harness.dial(REQUEST)[1]
        waiting = [harness.dial(said)[1] for said in (b"", b"GET", REQUEST, REQUEST, REQUEST)]
    late = [stream for stream in waiting if stream not in [s for s, _ in harness.entered]]
    assert len(late) >= 4
    harness.gate.close()
    harness.gate.close()
    assert all(stream.closed() for stream in late)
    assert sorted(map(id, harness.lost)) == sorted(map(id, late))
    assert not inside.closed()
    assert harness.gate.pending_connections == 0


async def test_the_gate_may_be_closed_during_a_pause(harness: Harness) -> None:
    for _ in range(3 * READS_PER_TURN):
        harness.dial()
    harness.looks.clear()
    for client in harness.clients:
        client.sendall(b"G")
    await harness.seen(READS_PER_TURN)
    harness.gate.close()
    assert len(harness.lost) == 3 * READS_PER_TURN
    seen = harness.looks.total()
    for _ in range(5):
        await asyncio.sleep(0)
    assert harness.looks.total() == seen


def test_without_epoll_there_is_no_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    assert not HeaderGate.available()
