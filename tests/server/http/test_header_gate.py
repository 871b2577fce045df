"""The lobby: real sockets on 127.0.0.1, and nobody behind the door."""

import asyncio
import select
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tornado.iostream import IOStream

from kbridge.server.http.header_gate import LOOKS, Lobby, ReadAhead

pytestmark = pytest.mark.skipif(not Lobby.available(), reason="needs epoll, which Linux has")

PATIENCE = 20
MOST = 2_000
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing resets


class Counted(ReadAhead):
    """Notes in which turn of the loop it was looked at."""

    __slots__ = ("house",)

    def read_ahead(self, room: memoryview) -> int:
        self.house.looks[self.house.turn] += 1
        self.house.news.set()
        return super().read_ahead(room)


class House:
    def __init__(self) -> None:
        self.entered: list[tuple[IOStream, Any]] = []
        self.hung_up: list[IOStream] = []
        self.news = asyncio.Event()
        self.turn = 0
        self.entries: Counter[int] = Counter()
        self.looks: Counter[int] = Counter()
        self.lobby = Lobby(MOST, self.enter, self.lose)
        self.clients: list[socket.socket] = []
        self.streams: list[IOStream] = []
        self._count()

    def _count(self) -> None:
        self.turn += 1
        self._next = asyncio.get_running_loop().call_soon(self._count)

    def enter(self, stream: IOStream, address: Any) -> None:
        self.entered.append((stream, address))
        self.entries[self.turn] += 1
        self.news.set()

    def lose(self, stream: IOStream) -> None:
        self.hung_up.append(stream)
        self.news.set()

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not done():
                self.news.clear()
                await self.news.wait()

    def dial(
        self, said: bytes = b"", pair: tuple[socket.socket, socket.socket] | None = None
    ) -> tuple[socket.socket, IOStream]:
        """A connection, taken when the client has said so much."""
        client, here = pair or connected()
        if said:
            client.sendall(said)
        sock = Counted.take_over(here)
        sock.house = self
        stream = IOStream(sock)
        self.clients.append(client)
        self.streams.append(stream)
        self.lobby.came(stream, sock, f"client {len(self.streams)}")
        return client, stream

    @contextmanager
    def instant(self) -> Iterator[None]:
        """No time passes for the lobby, however busy the machine is; nothing may be awaited."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        loop.time = lambda: now
        try:
            yield
        finally:
            del loop.time

    async def seen(self, count: int) -> None:
        """Wait until there were so many looks."""
        await self.until(lambda: self.looks.total() >= count)

    def close(self) -> None:
        self._next.cancel()
        self.lobby.close()
        for one in (*self.clients, *self.streams):
            one.close()


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        return client, listening.accept()[0]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.close()


async def read_all(awaited: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(PATIENCE):
        return await awaited


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
async def test_a_head_that_is_there_already_goes_in_at_once(house: House, end: bytes) -> None:
    _, stream = house.dial(b"GET / HTTP/1.1" + end + b"the body")
    assert house.entered == [(stream, "client 1")]
    assert await read_all(stream.read_until_regex(b"\r?\n\r?\n")) == b"GET / HTTP/1.1" + end
    assert await read_all(stream.read_bytes(8)) == b"the body"


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_a_head_in_single_bytes_goes_in_when_it_is_whole(
    house: House, end: bytes, unix: bool
) -> None:
    whole = b"GET / HTTP/1.1\r\nHost: a" + end
    client, stream = house.dial(pair=socket.socketpair() if unix else None)
    for at, byte in enumerate(whole):
        assert not house.entered, whole[:at]
        client.sendall(bytes([byte]))
        await house.seen(at + 2)
    assert [entered for entered, _ in house.entered] == [stream]
    client.sendall(b"more")
    assert await read_all(stream.read_bytes(len(whole) + 4)) == whole + b"more"
    assert house.lobby.statistics() == {"waiting": 0, "whole": 0}
    assert house.looks.total() == len(whole) + 1, "bytes are looked at more than once"


async def test_what_was_read_ahead_is_read_in_any_portions(house: House) -> None:
    client, stream = house.dial(REQUEST)
    client.sendall(b"x" * 10)
    came = await read_all(stream.read_bytes(5))
    came += await read_all(stream.read_bytes(1000, partial=True))
    buffer = bytearray(len(REQUEST) + 10 - len(came))
    async with asyncio.timeout(PATIENCE):
        if buffer:
            await stream.read_into(buffer)
    assert came + buffer == REQUEST + b"x" * 10


async def test_a_head_that_is_too_long_goes_in_to_be_refused(house: House) -> None:
    client, stream = house.dial(b"x" * MOST)
    assert not house.entered
    client.sendall(b"x")
    await house.until(lambda: bool(house.entered))
    assert len(await read_all(stream.read_bytes(MOST + 1))) == MOST + 1


async def test_a_huge_head_is_not_waited_for_beyond_what_a_stream_reads_at_once() -> None:
    entered: asyncio.Queue[IOStream] = asyncio.Queue()
    lobby = Lobby(1 << 20, lambda stream, _: entered.put_nowait(stream), entered.put_nowait)
    client, here = connected()
    sock = ReadAhead.take_over(here)
    stream = IOStream(sock)
    lobby.came(stream, sock, None)
    client.sendall(b"x" * 100_000)
    async with asyncio.timeout(PATIENCE):
        assert await entered.get() is stream
        assert len(sock.ahead) == 64 << 10
        client.sendall(b"the end")
        assert (await stream.read_until(b"the end")) == b"x" * 100_000 + b"the end"
    stream.close()
    client.close()
    lobby.close()


@pytest.mark.parametrize("said", [b"", b"GET / HT"], ids=["silence", "half"])
@pytest.mark.parametrize("how", ["fin", "shutdown", "reset"])
async def test_who_hangs_up_is_forgotten(house: House, said: bytes, how: str) -> None:
    client, stream = house.dial(said)
    assert house.lobby.statistics() == {"waiting": 1, "whole": 0}
    if how == "shutdown":
        client.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()
    await house.until(lambda: house.hung_up == [stream])
    assert stream.closed()
    assert house.lobby.statistics() == {"waiting": 0, "whole": 0}


async def test_who_has_hung_up_before_is_not_kept(house: House) -> None:
    pair = connected()
    pair[0].shutdown(socket.SHUT_WR)
    _, stream = house.dial(pair=pair)
    assert house.hung_up == [stream]
    assert stream.closed()


async def test_a_request_and_its_end_at_once_are_a_request(house: House) -> None:
    pair = connected()
    pair[0].sendall(REQUEST)
    pair[0].shutdown(socket.SHUT_WR)
    _, stream = house.dial(pair=pair)
    assert [entered for entered, _ in house.entered] == [stream]
    assert await read_all(stream.read_until_close()) == REQUEST


async def test_a_turn_of_the_loop_looks_at_a_few(house: House) -> None:
    count = 5 * LOOKS
    for _ in range(count):
        house.dial()
    house.looks.clear()
    for client in house.clients:
        client.sendall(b"GET ")
    await house.seen(count)
    assert max(house.looks.values()) <= LOOKS
    assert house.looks.total() == count
    for _ in range(20):  # turns: what was read is not news any more
        await asyncio.sleep(0)
    assert house.looks.total() == count


async def test_requests_go_in_one_by_one_and_in_order(house: House) -> None:
    with house.instant():
        first = [house.dial(REQUEST)[1] for _ in range(8)]
    assert house.lobby.crowded
    await house.until(lambda: len(house.entered) == 8)
    assert not house.lobby.crowded
    assert [stream for stream, _ in house.entered] == first
    # One, and one that is made up for.
    assert max(house.entries.values()) <= 2


async def test_who_is_let_in_makes_nobody_wait(house: House) -> None:
    with house.instant():
        for _ in range(8):
            house.dial(REQUEST)
        assert house.lobby.crowded
        for _ in range(8):
            house.lobby.let_in(house.entered[-1][0])
    assert len(house.entered) == 8
    assert not house.lobby.crowded


async def test_who_was_let_in_before_changes_nothing(house: House) -> None:
    with house.instant():
        for _ in range(8):
            house.dial(REQUEST)
        known = house.entered[-1][0]
        house.lobby.let_in(known)
        count = len(house.entered)
        house.lobby.let_in(known)
    assert len(house.entered) == count < 8


async def test_who_is_closed_while_waiting_is_passed_over(house: House) -> None:
    with house.instant():
        streams = [house.dial(REQUEST)[1] for _ in range(8)]
    half = house.dial(b"GET")[1]
    for stream in (streams[-2], half):
        house.lobby.left(stream)
        stream.close()
    assert house.lobby.statistics()["waiting"] == 0
    await house.until(lambda: len(house.entered) == 7)
    house.lobby.left(half)
    house.lobby.left(streams[0])
    assert [s for s, _ in house.entered] == [*streams[:6], streams[7]]


async def test_closing_it_closes_all_who_wait_and_nobody_else(house: House) -> None:
    with house.instant():
        inside = house.dial(REQUEST)[1]
        waiting = [house.dial(said)[1] for said in (b"", b"GET", REQUEST, REQUEST, REQUEST)]
    late = [stream for stream in waiting if stream not in [s for s, _ in house.entered]]
    assert len(late) >= 4
    house.lobby.close()
    house.lobby.close()
    assert all(stream.closed() for stream in late)
    assert sorted(map(id, house.hung_up)) == sorted(map(id, late))
    assert not inside.closed()
    assert house.lobby.statistics() == {"waiting": 0, "whole": 0}


async def test_it_may_be_closed_while_it_pauses(house: House) -> None:
    for _ in range(3 * LOOKS):
        house.dial()
    house.looks.clear()
    for client in house.clients:
        client.sendall(b"G")
    await house.seen(LOOKS)
    house.lobby.close()
    assert len(house.hung_up) == 3 * LOOKS
    seen = house.looks.total()
    for _ in range(5):
        await asyncio.sleep(0)
    assert house.looks.total() == seen


def test_without_epoll_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    assert not Lobby.available()
