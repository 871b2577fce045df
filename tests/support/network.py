"""A network between a client and a server that a test can interrupt."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

__all__ = ["Network", "network_to"]


_RESET = struct.pack("ii", 1, 0)  # on close: no lingering, an RST


class Network:
    """A TCP proxy on 127.0.0.1. Made by `network_to`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._held: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passes = asyncio.Event()
        self._passes.set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def restore(self) -> None:
        """Forward all data again, on the same port as before."""
        self._passes.set()
        if self._held is None:
            # Never listens: while the network is cut, no other program gets the port.
            self._held = _bound(0)
            self.port = self._held.getsockname()[1]
        if self._server is None:
            # Small buffers, so that held data stays in the sockets of the operating system.
            self._server = await asyncio.start_server(
                self._serve, sock=_bound(self.port), limit=4096
            )

    def swallow(self) -> None:
        """Stop forwarding without closing connections, as after unplugging a cable."""
        self._passes.clear()

    async def cut(self) -> None:
        """Reset all connections and refuse new ones, as if the server's host were down."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.reset()

    async def aclose(self) -> None:
        """Cut the network, and give the port back."""
        await self.cut()
        if self._held is not None:
            self._held.close()
            self._held = None

    async def reset(self) -> None:
        """Reset all connections and drop data in transit; accept new ones."""
        broken = set(self._tasks)
        for writer in list(self._writers):
            link = writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        self._passes.set()
        if broken:
            await asyncio.wait(broken)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(back)
        try:
            far, forth = await asyncio.open_connection("127.0.0.1", self._target, limit=4096)
            self._writers.add(forth)
            try:
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(self._pump(near, forth))
                    pumps.create_task(self._pump(far, back))
            finally:
                await self._close(forth)
        except* OSError:
            pass  # one end has closed the connection; the other end is closed below
        finally:
            await self._close(back)
            self._tasks.discard(task)

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(65536):
            await self._passes.wait()
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof() and not sink.is_closing():
            sink.write_eof()


def _bound(port: int) -> socket.socket:
    """Return a socket that has a port on 127.0.0.1, which it may share with others of these."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


@asynccontextmanager
async def network_to(port: int) -> AsyncIterator[Network]:
    """Open a local port that leads to the server."""
    network = Network(port)
    await network.restore()
    try:
        yield network
    finally:
        await network.aclose()
