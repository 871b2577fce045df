"""Tornado's stream, read as a socket of our own is."""

import asyncio
import socket

import pytest
from tornado.iostream import IOStream

from kbridge.link.reading import TornadoReader
from tests.link.ends import Taker
from tests.support.waiting import TIMEOUT


class Ends(Taker):
    def __init__(self) -> None:
        super().__init__()
        ours, self.peer = socket.socketpair()
        self.stream = IOStream(ours)
        self.reader = TornadoReader(self.stream)
        self.pauses = False
        self.running = asyncio.create_task(self.reader.run(self.on_data))

    def on_data(self, data: bytes) -> None:
        super().on_data(data)
        if self.pauses:
            self.reader.pause()


@pytest.fixture
async def ends():
    made = Ends()
    yield made
    made.stream.close()
    made.peer.close()
    async with asyncio.timeout(TIMEOUT):
        await made.running


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_pauses_gets_nothing_until_they_resume(ends) -> None:
    ends.pauses = True
    ends.peer.send(b"one")
    await ends.until(b"one")
    ends.peer.send(b"two")
    await turns()
    assert ends.came == b"one"
    ends.reader.resume()
    ends.reader.pause()  # before anybody woke up
    await turns()
    assert ends.came == b"one"
    ends.reader.resume()
    await ends.until(b"onetwo")
    ends.reader.resume()


async def test_who_stops_may_run_again(ends) -> None:
    ends.reader.stop()
    ends.peer.send(b"one")
    await ends.running
    assert ends.came == b"one"
    assert not ends.stream.closed()
    ends.running = asyncio.create_task(ends.reader.run(ends.on_data))
    ends.peer.send(b"two")
    await ends.until(b"onetwo")


async def test_run_ends_when_the_peer_hangs_up(ends) -> None:
    ends.peer.close()
    async with asyncio.timeout(TIMEOUT):
        await ends.running
    assert ends.stream.closed()
