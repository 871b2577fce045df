"""A kernel's ports as plain sockets, so that a test decides about each byte and its time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel, RawMessage
from kbridge.wire.zmtp.decoder import Decoder
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.greeting import GREETING, GREETING_SIZE
from tests.support.waiting import TIMEOUT

__all__ = ["Connected", "PlainKernel", "ready"]

_TYPES = {
    Channel.IOPUB: b"PUB",
    Channel.SHELL: b"ROUTER",
    Channel.CONTROL: b"ROUTER",
    Channel.STDIN: b"ROUTER",
}
_MANY = 1 << 40


def ready(kind: bytes) -> bytes:
    """Return the command READY of a socket of that type."""
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return bytes((4, len(body))) + body


class Connected:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, kind: bytes) -> None:
        self.sock = sock
        self.kind = kind
        self.decoder = Decoder(_MANY, _MANY, _MANY)
        self.greeted = b""  # greeting and READY of the bridge
        self._loop = asyncio.get_running_loop()
        self._messages: list[RawMessage] = []

    async def shake_hands(self, more: bytes = b"") -> None:
        """Complete the handshake; `more` follows in the same write."""
        await self.send_bytes(GREETING + ready(self.kind) + more)
        while len(self.greeted) < GREETING_SIZE + 2 or len(self.greeted) < self._end:
            data = await self._loop.sock_recv(self.sock, 1)
            assert data, "the bridge has hung up"
            self.greeted += data
        if self.kind == b"PUB":
            while not self.decoder.commands:
                self.decoder.feed(await self._receive())
            self.decoder.take_commands()

    @property
    def _end(self) -> int:
        return GREETING_SIZE + 2 + self.greeted[GREETING_SIZE + 1]

    async def send_bytes(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def send(self, *messages: Sequence[bytes]) -> None:
        await self.send_bytes(b"".join(map(encode, messages)))

    async def receive(self) -> list[bytes]:
        """Return the next message of the bridge."""
        while not self._messages:
            self._messages += self.decoder.feed(await self._receive())
            while self.decoder.more:
                self._messages += self.decoder.feed(b"")
            while (place := self.decoder.pending) is not None:
                count = await self._loop.sock_recv_into(self.sock, place)
                assert count, "the bridge has hung up"
                self._messages += self.decoder.received(count)
        return [bytes(part) for part in self._messages.pop(0)]

    async def ended(self) -> bool:
        """Read to the end of the connection."""
        try:
            while await self._loop.sock_recv(self.sock, 1 << 20):
                pass
        except ConnectionError:
            pass
        return True

    async def _receive(self) -> bytes:
        data = await self._loop.sock_recv(self.sock, 1 << 20)
        assert data, "the bridge has hung up"
        return data

    def close(self) -> None:
        self.sock.close()


class PlainKernel:
    """Four listening sockets.

    Attributes
    ----------
    connected : dict of Channel to Connected
        The latest accepted connection of each channel.
    """

    def __init__(self, ports: dict[Channel, int] | None = None) -> None:
        self.connected: dict[Channel, Connected] = {}
        self._all: list[Connected] = []
        self.listening = {
            channel: socket.create_server(("127.0.0.1", (ports or {}).get(channel, 0)))
            for channel in Channel
        }
        for sock in self.listening.values():
            sock.setblocking(False)
        self.ports = {c: sock.getsockname()[1] for c, sock in self.listening.items()}

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints("tcp", "127.0.0.1", self.ports, b"key")

    async def accept(self, channel: Channel) -> Connected:
        """Accept the next connection of a channel."""
        async with asyncio.timeout(TIMEOUT):
            sock, _ = await asyncio.get_running_loop().sock_accept(self.listening[channel])
        sock.setblocking(False)
        made = self.connected[channel] = Connected(sock, _TYPES[channel])
        self._all.append(made)
        return made

    async def accept_all(self) -> None:
        """Accept a connection on each channel, and complete its handshake."""
        for channel in Channel:
            async with asyncio.timeout(TIMEOUT):
                await (await self.accept(channel)).shake_hands()

    def hang_up(self) -> None:
        """Close all connections, as the end of a process does."""
        for each in self._all:
            each.close()
        self._all.clear()

    def close(self) -> None:
        self.hang_up()
        for sock in self.listening.values():
            sock.close()
