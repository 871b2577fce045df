"""A websocket client on a socket, which can read slowly, disconnect in any way, and send wrong
pongs.

It implements frames and uses the two dialects of `tests.support`, which share no code with kbridge.
Pings are answered in order with the frames before them, as browsers do.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

from tests.support.dialects import CODECS

__all__ = [
    "BINARY",
    "CLOSE",
    "PING",
    "PONG",
    "TEXT",
    "Closed",
    "RawWebsocket",
    "Refused",
    "frame",
    "upgrade",
]

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_RESET = struct.pack("ii", 1, 0)  # on close: no lingering, an RST


class Closed(Exception):
    """The server closed the websocket (`code`, `reason`), or only the connection (code 0)."""

    def __init__(self, code: int = 0, reason: str = "") -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Refused(Exception):
    """The reply to the upgrade has another `status` than 101."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


def frame(opcode: int, payload: bytes, *, masked: bool = True, first: int = 0x80) -> bytes:
    """A client's frame (RFC 6455, section 5.2), masked with a key of zeros."""
    size, bit = len(payload), 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", first | opcode, bit | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first | opcode, bit | 127, size)
    return head + (bytes(4) if masked else b"") + payload


def upgrade(port: int, path: str, token: str, dialect: str = "v1") -> bytes:
    """Return the upgrade request."""
    protocol = CODECS[dialect].subprotocol
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Authorization: token {token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    ]
    if protocol:
        lines.append(f"Sec-WebSocket-Protocol: {protocol}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class RawWebsocket:
    """One connection to the server; `open` makes a websocket of it, `dial` does not.

    Parameters
    ----------
    reader, writer
        The options of the connection.
    dialect : str
        v1 or legacy.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dialect: str = "v1"
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.codec = CODECS[dialect]
        self.bite = 1 << 16  # bytes per read
        self.pause: Callable[[], float] = lambda: 0.0  # seconds before a read
        self._data = bytearray()
        self._at = 0

    @classmethod
    async def dial(cls, port: int, dialect: str = "v1", window: int = 0) -> RawWebsocket:
        """Connect; `window` is the receive buffer, which must be small for a slow client."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            if window:  # must be set before the TCP window is negotiated
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            limit = window or 1 << 16
            reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        except BaseException:
            sock.close()
            raise
        return cls(reader, writer, dialect)

    @classmethod
    async def open(
        cls, port: int, path: str, token: str, dialect: str = "v1", window: int = 0
    ) -> RawWebsocket:
        """Open a websocket.

        Raises
        ------
        Refused
            If the answer is not 101.
        Closed
            If there is no answer.
        """
        websocket = await cls.dial(port, dialect, window)
        try:
            websocket.writer.write(upgrade(port, path, token, dialect))
            await websocket.opened()
        except BaseException:
            websocket.reset()
            raise
        return websocket

    async def opened(self) -> None:
        """Wait for the reply to the upgrade."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Closed from None
        status = int(head.split(b" ", 2)[1])
        if status != 101:
            raise Refused(status)

    def send(self, msg: dict[str, Any]) -> None:
        """Send a message in the dialect."""
        payload = self.codec.encode(msg)
        opcode, data = (TEXT, payload.encode()) if isinstance(payload, str) else (BINARY, payload)
        self.writer.write(frame(opcode, data))

    async def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """Return the next data frame or ping (which is answered already); None if `timeout` seconds
        pass without one.

        Raises
        ------
        Closed
            If the connection has ended.
        """
        while (found := self._take()) is None:
            if not await self._more(timeout):
                return None
        opcode, payload = found
        if opcode == PING:
            self.writer.write(frame(PONG, payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") or 1005
            raise Closed(code, payload[2:].decode(errors="replace"))
        return found

    async def drain(self) -> None:
        """Read until the server ends the connection; raise `Closed` with the code and reason."""
        while await self.receive(60.0) is not None:
            pass
        raise AssertionError("the server did not end a connection for 60 s")

    async def _more(self, timeout: float) -> bool:
        pause = self.pause()
        if pause:
            await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(timeout):
                chunk = await self.reader.read(self.bite)
        except TimeoutError:
            return False
        except ConnectionError:
            chunk = b""
        if not chunk:
            raise Closed
        del self._data[: self._at]
        self._at = 0
        self._data += chunk
        return True

    def _take(self) -> tuple[int, bytes] | None:
        """Return the next complete frame of the received data."""
        data, at = self._data, self._at
        left = len(data) - at
        if left < 2:
            return None
        size, start = data[at + 1], at + 2
        if size >= 126:
            width = 2 if size == 126 else 8
            if left < 2 + width:
                return None
            start += width
            size = int.from_bytes(data[at + 2 : start], "big")
        if len(data) < start + size:
            return None
        assert data[at] & 0xF0 == 0x80, f"not a whole frame: {data[at]:#x}"
        self._at = start + size
        return data[at] & 0x0F, bytes(data[start : self._at])

    # -- ends -------------------------------------------------------------------------------

    def begin_close(self, code: int = 1000) -> None:
        """Send a close frame; `frames` raises `Closed` once the server has answered it."""
        self.writer.write(frame(CLOSE, code.to_bytes(2, "big")))

    def reset(self) -> None:
        """Reset the connection; data in transit is lost in both directions."""
        link = self.writer.get_extra_info("socket")
        if link is not None and link.fileno() >= 0:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()

    def drop(self) -> None:
        """Close a connection that may have ended already."""
        if not self.writer.transport.is_closing():
            self.reset()

    def hang_up(self) -> None:
        """Close the connection without a close frame (FIN, or RST if there is unread data)."""
        self.writer.close()

    def half_frame(self) -> None:
        """Send the beginning of a frame."""
        self.writer.write(frame(BINARY, os.urandom(4000))[:1000])
