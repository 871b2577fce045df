"""Shared code of socket tests: two ends of a connection, and a receiver."""

import asyncio
import socket
from collections.abc import Callable

from kbridge.link.transport import SocketTransport
from tests.support.waiting import TIMEOUT

__all__ = ["Taker", "connected"]


def connected() -> tuple[socket.socket, socket.socket]:
    """Our end of a TCP connection, and the peer's; both have small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.socket()
        # The system does not enlarge a buffer whose size was set.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        peer.connect(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    peer.setblocking(False)
    return accepted, peer


class Taker:
    """Owns a transport, keeps the bytes that it reads, and counts the other events."""

    transport: SocketTransport

    def __init__(self) -> None:
        self.came = bytearray()
        self.sizes: list[int] = []
        self.drained = 0
        self.closed = 0
        self.then: Callable[[], None] = lambda: None
        """Called after each read."""
        self._news = asyncio.Event()

    def on_input(self) -> None:
        data = self.transport.read()
        if data:
            self.came += data
            self.sizes.append(len(data))
            self._news.set()
            self.then()

    def on_room(self) -> None:
        if self.transport.flush():
            self.drained += 1
            self._news.set()

    def on_closed(self) -> None:
        self.closed += 1
        self._news.set()

    async def until(self, data: bytes) -> None:
        await self._until(lambda: bytes(self.came) == data)

    async def until_more(self, count: int) -> None:
        await self._until(lambda: len(self.came) > count)

    async def until_drained(self) -> None:
        await self._until(lambda: self.drained > 0)

    async def until_closed(self) -> None:
        await self._until(lambda: self.closed > 0)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self._news.clear()
                await self._news.wait()
