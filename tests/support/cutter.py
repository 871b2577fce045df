"""A websocket client whose connection a test can cut at any byte.

It processes only the bytes that have arrived before the cut, which may be in the middle of a frame.
It answers pings, as every websocket client does.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import socket
import struct
import uuid
from typing import Any
from urllib.parse import quote

from tests.support.dialects import Codec
from tests.support.server import TOKEN
from tests.support.waiting import TIMEOUT

__all__ = ["Cutter"]

_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_RESET = struct.pack("ii", 1, 0)  # on close: no lingering, an RST
_NUMBER = re.compile(r"#(\d{8}) ")


class Cutter:
    """One session on one kernel, over many connections.

    Parameters
    ----------
    port, kernel_id, codec
        The server, the kernel, and the dialect.
    says_since : bool
        True to name the last received message when it reconnects.
    chance : random.Random
        The random numbers for the cuts.

    Attributes
    ----------
    numbers : list of list of int
        The numbered lines of each connection.
    replies, idles : int
        The number of replies to the request, and of its idle messages.
    cuts : int
        The number of cuts.
    """

    def __init__(
        self, port: int, kernel_id: str, codec: Codec, *, says_since: bool, chance: random.Random
    ) -> None:
        self._port = port
        self._path = f"/api/kernels/{kernel_id}/channels"
        self._codec = codec
        self._says_since = says_since
        self._chance = chance
        self._session = uuid.uuid4().hex
        self._last = ""
        self._abandoned: list[asyncio.StreamWriter] = []
        self.request = ""
        self.numbers: list[list[int]] = []
        self.other: list[str] = []
        self.replies = self.idles = self.cuts = 0

    async def connect(self) -> None:
        path = f"{self._path}?session_id={self._session}&token={TOKEN}"
        if self._says_since and self._last:
            path += f"&since={quote(self._last)}"
        lines = [
            f"GET {path} HTTP/1.1",
            "Host: localhost",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            "Sec-WebSocket-Version: 13",
        ]
        if self._codec.subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {self._codec.subprotocol}")
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        async with asyncio.timeout(TIMEOUT):
            head = await self.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
        self._buffer = bytearray()
        self.numbers.append([])

    def execute(self, code: str) -> None:
        self.request = uuid.uuid4().hex
        header = {
            "msg_id": self.request,
            "msg_type": "execute_request",
            "session": self._session,
            "username": "tester",
            "date": "2026-01-01T00:00:00Z",
            "version": "5.3",
        }
        frame = self._codec.encode(
            {
                "channel": "shell",
                "header": header,
                "parent_header": {},
                "metadata": {},
                "content": {"code": code, "silent": False},
                "buffers": [],
            }
        )
        if isinstance(frame, str):
            self._send(_TEXT, frame.encode())
        else:
            self._send(_BINARY, frame)

    @property
    def done(self) -> bool:
        return self.replies > 0 and self.idles > 0

    async def read(self, lines: int) -> None:
        """Read until some numbered lines have arrived, or the request has ended."""
        while not self.done and len(self.numbers[-1]) < lines:
            async with asyncio.timeout(TIMEOUT):
                data = await self.reader.read(self._chance.choice((100, 1 << 10, 1 << 12)))
            assert data, (
                f"the server closed the connection; lines so far: {sum(map(len, self.numbers))}"
            )
            self._buffer += data
            self._take()

    def cut(self) -> None:
        """Cut the connection: with a reset, or silently, so that the server does not notice."""
        self.cuts += 1
        if self._chance.random() < 0.2:
            self.writer.transport.pause_reading()  # type: ignore[attr-defined]
            self._abandoned.append(self.writer)
            return
        link: socket.socket = self.writer.get_extra_info("socket")
        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()

    def close(self) -> None:
        for writer in (*self._abandoned, self.writer):
            writer.transport.abort()

    def _take(self) -> None:
        """Remove the complete frames from the received bytes."""
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2:
            size, start = buffer[at + 1], at + 2
            if size >= 126:
                width = 2 if size == 126 else 8
                size = int.from_bytes(buffer[start : start + width], "big")
                start += width
            if len(buffer) < start + size:
                break
            self._hear(buffer[at] & 0x0F, bytes(buffer[start : start + size]))
            at = start + size
        del buffer[:at]

    def _hear(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self._send(_PONG, payload)
            return
        assert opcode in (_TEXT, _BINARY), (opcode, payload)
        msg = self._codec.decode(payload.decode() if opcode == _TEXT else payload)
        self._last = msg["header"]["msg_id"]
        if msg["parent_header"].get("msg_id") != self.request:
            return
        self._note(msg["header"]["msg_type"], msg["content"])

    def _note(self, msg_type: str, content: dict[str, Any]) -> None:
        if msg_type == "stream":
            found = _NUMBER.findall(content["text"])
            self.numbers[-1] += map(int, found)
            if not found:
                self.other.append(content["text"])
        elif msg_type == "execute_reply":
            self.replies += 1
        elif msg_type == "status" and content["execution_state"] == "idle":
            self.idles += 1

    def _send(self, opcode: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        length = bytes((0x80 | size,)) if size < 126 else struct.pack("!BH", 0x80 | 126, size)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
        self.writer.write(bytes((0x80 | opcode,)) + length + mask + masked)
