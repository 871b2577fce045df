"""The link to the process that a kernel is at the moment: opened, drained to its end, closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import KernelEvents, KernelSockets
from kbridge.wire.message import Buffer, Channel

__all__ = ["Line", "LinkFactory"]

LinkFactory: TypeAlias = Callable[[Endpoints, KernelEvents, bytes], KernelSockets]
"""Makes a link: where to, who is told, and what the kernel is to know us by."""

_FLUSH_TIMEOUT: Final = 1.0  # seconds to wait for the last words of a kernel that has ended


class Line:
    """At most one link at a time.

    Parameters
    ----------
    make : callable
        Makes the links.
    events : KernelEvents
        Who is told.
    identity : bytes
        What the kernel knows us by, over restarts too.
    log : logging.Logger or adapter
        Where to say what happens.
    """

    def __init__(
        self,
        make: LinkFactory,
        events: KernelEvents,
        identity: bytes,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self.identity = identity
        self.link: KernelSockets | None = None
        self._make = make
        self._events = events
        self._log = log
        self._down = asyncio.Event()

    def open(self, endpoints: Endpoints) -> None:
        """Link, after `close`."""
        self._down.clear()
        self.link = self._make(endpoints, self._events, self.identity)

    def went(self, *, down: bool) -> None:
        """Note that the kernel's side of iopub went away, or is there."""
        if down:
            self._down.set()
        else:
            self._down.clear()

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Hand over a message; False if there is no link, or it does not take it."""
        return self.link is not None and self.link.send(channel, frames)

    def drain(self) -> None:
        """Take in all that has arrived."""
        if self.link is not None and not self.link.closed:
            self.link.drain()

    async def last_words(self) -> None:
        """Take in all that the kernel said before it ended."""
        if self.link is None or self.link.closed:
            return
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._down.wait()
        except TimeoutError:
            self._log.debug("a kernel that has ended did not hang up")
        self.drain()

    def close(self) -> None:
        """Close the link, where there is one."""
        if self.link is not None:
            self.link.close()
            self.link = None
