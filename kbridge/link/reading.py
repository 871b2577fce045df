"""A Tornado stream, read as `SocketStream` is: for TLS, which is Tornado's business."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from tornado.iostream import IOStream, StreamClosedError

from kbridge.link.stream import CHUNK

__all__ = ["Source", "TornadoReader"]


class Source(Protocol):
    """Where a websocket's bytes come from."""

    async def run(self, on_data: Callable[[bytes], None]) -> None:
        """Hand on what comes, until the connection or `stop` ends it."""
        ...

    def stop(self) -> None:
        """Let `run` end; the connection stays."""
        ...

    def pause(self) -> None:
        """Read no further for now."""
        ...

    def resume(self) -> None:
        """Read on."""
        ...


class TornadoReader:
    """Reads a Tornado stream (a `Source`).

    Parameters
    ----------
    stream : IOStream
    """

    __slots__ = ("_resumed", "_stopped", "_stream")

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self._resumed = asyncio.Event()
        self._stopped = False

    async def run(self, on_data: Callable[[bytes], None]) -> None:
        """As in `Source`."""
        self._stopped = False
        self._resumed.set()
        try:
            while not self._stopped:
                on_data(await self._stream.read_bytes(CHUNK, partial=True))
                await asyncio.sleep(0)  # what has come already is read without a turn for others
                while not self._resumed.is_set():  # it may be over again when this wakes up
                    await self._resumed.wait()
        except StreamClosedError:
            return

    def stop(self) -> None:
        """As in `Source`; from within `on_data`, or while paused."""
        self._stopped = True
        self._resumed.set()

    def pause(self) -> None:
        """As in `Source`."""
        self._resumed.clear()

    def resume(self) -> None:
        """As in `Source`."""
        self._resumed.set()
