"""What the tests of sockets have in common: two ends, and somebody who takes what comes."""

import asyncio
import socket

from tests.support.waiting import TIMEOUT

__all__ = ["Taker", "connected"]


def connected() -> tuple[socket.socket, socket.socket]:
    """Our end of a TCP connection, and the peer's; both hold little on their way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.socket()
        # A size that is set does not grow by itself.
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        peer.connect(listener.getsockname())
        accepted, _ = listener.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    peer.setblocking(False)
    return accepted, peer


class Taker:
    """Keeps the bytes that it is handed."""

    def __init__(self) -> None:
        self.came = bytearray()
        self.news = asyncio.Event()

    def on_data(self, data: bytes) -> None:
        self.came += data
        self.news.set()

    async def until(self, data: bytes) -> None:
        async with asyncio.timeout(TIMEOUT):
            while bytes(self.came) != data:
                self.news.clear()
                await self.news.wait()
