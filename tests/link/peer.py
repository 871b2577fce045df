"""A websocket client that sends any frames, valid or not."""

import asyncio
import os
import ssl
import struct
from contextlib import suppress

from tests.support.waiting import TIMEOUT

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class Peer:
    """The client's side of a websocket, without a library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(
        cls, port: int, path: str = "/", *headers: str, tls: ssl.SSLContext | None = None
    ) -> "Peer":
        """Open a websocket on 127.0.0.1; `headers` are lines."""
        peer = cls(*await asyncio.open_connection("127.0.0.1", port, ssl=tls))
        lines = (
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
            *headers,
            "\r\n",
        )
        peer.writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(TIMEOUT):
            head = await peer.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        return peer

    def send(self, opcode: int, payload: bytes, *, final: bool = True) -> None:
        mask = os.urandom(4)
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else struct.pack("!BQ", 0x80 | 127, size)
        head = bytes((opcode | (0x80 if final else 0),))
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.writer.write(head + length + mask + masked)

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        self.send(CLOSE, struct.pack("!H", code) + reason.encode())

    async def frame(self) -> tuple[int, bytes]:
        """Read one frame: its opcode and its payload. Numbered pings are answered."""
        while True:
            opcode, payload = await self._frame()
            if opcode != PING or not payload.isdigit():
                return opcode, payload
            self.send(PONG, payload)

    async def _frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(TIMEOUT):
            first, size = await self.reader.readexactly(2)
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def close_frame(self) -> tuple[int, str]:
        """Read the next frame, which must be a close: code and reason."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE, (opcode, payload)
        return struct.unpack("!H", payload[:2])[0], payload[2:].decode()

    async def answered(self) -> None:
        """Wait until the server has read all sent data; it answers pings in order."""
        self.send(PING, b"?")
        assert await self.frame() == (PONG, b"?")

    async def end(self) -> bytes:
        """Read all data until the server closes the connection properly."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.read()

    async def hang_up(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):  # the server closed the connection first
            await self.writer.wait_closed()
