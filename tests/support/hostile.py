"""Hostile clients of a live server, and a cooperative one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

import psutil

from tests.support.client import KernelClient, attach
from tests.support.dialects import CODECS
from tests.support.server import TOKEN, Server
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["Heard", "Honest", "RawConnection", "honest", "open_files", "unharmed"]

# Descriptors that the server may have opened itself in the meantime; attacks use hundreds.
OWN_FILES = 4
_STATUS = re.compile(rb"(?:^|\r\n|[\]}])HTTP/1\.[01] (\d{3}) ")


@dataclass(slots=True)
class Heard:
    """The data that a server sent on one connection."""

    closes: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    ended: bool = False


class RawConnection:
    """A connection that can send any bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def dial(cls, server: Server) -> RawConnection:
        return cls(*await asyncio.open_connection("127.0.0.1", server.port))

    @classmethod
    async def upgrade(
        cls, server: Server, kernel: str, dialect: str = "v1", query: str = ""
    ) -> RawConnection:
        """Open a websocket."""
        wire = await cls.dial(server)
        lines = [
            f"GET /api/kernels/{kernel}/channels?{query} HTTP/1.1",
            f"Host: 127.0.0.1:{server.port}",
            f"Authorization: token {TOKEN}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        if CODECS[dialect].subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {CODECS[dialect].subprotocol}")
        await wire.send("\r\n".join([*lines, "", ""]).encode())
        async with asyncio.timeout(TIMEOUT):
            head = await wire.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return wire

    async def send(self, *pieces: bytes) -> None:
        """Write each piece separately; ignore a closed connection."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()

    async def until_end(self, patience: float = TIMEOUT) -> bytes:
        """Read until the server closes the connection; AssertionError after `patience` seconds."""
        came = await self.listen(patience)
        assert came[1], f"still open after {patience} s: {came[0][-300:]!r}"
        return came[0]

    async def listen(self, patience: float) -> tuple[bytes, bool]:
        """Read until the server closes the connection or has been silent for `patience` seconds."""
        came = bytearray()
        while True:
            try:
                async with asyncio.timeout(patience):
                    data = await self.reader.read(1 << 16)
            except TimeoutError:
                return bytes(came), False
            except ConnectionError:
                return bytes(came), True
            if not data:
                return bytes(came), True
            came += data

    async def statuses(self, patience: float) -> list[int]:
        """Return the statuses of all answers."""
        came, _ = await self.listen(patience)
        return [int(code) for code in _STATUS.findall(came)]

    async def hear(self, until: bytes, patience: float) -> Heard:
        """Read websocket frames up to a close, the pong `until`, the end, or silence."""
        heard = Heard()
        while not heard.closes and until not in heard.pongs:
            try:
                async with asyncio.timeout(patience):
                    first, size = await self.reader.readexactly(2)
                    if size >= 126:
                        size = int.from_bytes(
                            await self.reader.readexactly(2 if size == 126 else 8), "big"
                        )
                    payload = await self.reader.readexactly(size)
            except TimeoutError:
                break
            except (ConnectionError, asyncio.IncompleteReadError):
                heard.ended = True
                break
            if first & 0x0F == 8:
                heard.reasons.append(payload[2:].decode())
                heard.closes.append(struct.unpack("!H", payload[:2])[0] if payload else 1005)
            elif first & 0x0F == 10:
                heard.pongs.append(payload)
        return heard

    def cut(self) -> None:
        self.writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cut()


class Honest:
    """Executes cells one after the other and checks their output."""

    def __init__(self, client: KernelClient) -> None:
        self.client = client
        self.done = 0
        self._progress = asyncio.Event()

    async def run(self) -> None:
        while True:
            cell = await self.client.execute(f"print({self.done} * 7)")
            assert cell.text() == f"{self.done * 7}\n"
            assert cell.reply["status"] == "ok"
            self.done += 1
            self._progress.set()

    async def goes_on(self, cells: int = 3) -> None:
        """Wait until some more cells have been answered."""
        wanted = self.done + cells
        async with asyncio.timeout(TIMEOUT):
            while self.done < wanted:
                self._progress.clear()
                await self._progress.wait()


@asynccontextmanager
async def honest(server: Server, kernel: str) -> AsyncIterator[Honest]:
    """Run a cooperative client for a `with` block; it fails if an answer is wrong."""
    async with attach(server, kernel) as client, asyncio.TaskGroup() as group:
        one = Honest(client)
        task = group.create_task(one.run())
        await one.goes_on()
        yield one
        await one.goes_on()
        task.cancel()


def open_files(server: Server) -> int:
    """Return the number of file descriptors of the server process."""
    return int(psutil.Process(server.process.pid).num_fds())


@asynccontextmanager
async def unharmed(server: Server, kernel: str, grows: int) -> AsyncIterator[Honest]:
    """Check during an attack that other clients work, memory is bounded, descriptors are released,
    and the log is clean.

    Parameters
    ----------
    grows : int
        Maximum growth of the server's memory in bytes.
    """
    async with honest(server, kernel) as one:
        files, memory = open_files(server), server.rss()
        peak = memory

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, server.rss())
                await one.goes_on(1)

        watching = asyncio.create_task(watch())
        yield one
        await one.goes_on()
        watching.cancel()
        peak = max(peak, server.rss())
        assert server.process.poll() is None, server.tail()
        await asyncio.to_thread(
            eventually,
            lambda: open_files(server) <= files + OWN_FILES,
            f"descriptors are back at {files}",
        )
        assert peak - memory < grows, f"grew by {(peak - memory) / 2**20:.1f} MiB"
        server.assert_clean_log()
