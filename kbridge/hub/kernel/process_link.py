"""The link to the present process of a kernel: opened, drained to its end, closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from kbridge.errors import KernelError
from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import KernelEvents, KernelSockets
from kbridge.link.sockets import new_identity
from kbridge.wire.message import Buffer, Channel

__all__ = ["LinkFactory", "ProcessLink"]

LinkFactory: TypeAlias = Callable[[Endpoints, KernelEvents, bytes], KernelSockets]
"""Makes a link from the endpoints, the receiver of its events, and the hub's identity."""

_FORMER: Final = 4  # former identities that still receive replies; each takes three sockets
_FLUSH_TIMEOUT: Final = 1.0  # seconds to wait for the last messages of a kernel that has ended


class ProcessLink:
    """The sockets of one kernel process; at most one set at a time.

    Parameters
    ----------
    make : callable
        Makes the links.
    events : KernelEvents
        Receives the events of the links.
    former : sequence of bytes
        Identities of earlier bridges, to which the kernel may owe replies.
    log : logging.Logger or adapter
        The logger.

    Attributes
    ----------
    identity : bytes
        The ZeroMQ identity of the hub. Each kernel process and each set of sockets gets a new one:
        a ROUTER that has not noticed the end of a peer ignores a new peer with the same identity.
    former : list of bytes
        Identities to which this process of the kernel may owe replies.
    """

    def __init__(
        self,
        make: LinkFactory,
        events: KernelEvents,
        former: Sequence[bytes],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self.identity = new_identity()
        self.former = list(former[-_FORMER:])
        self.link: KernelSockets | None = None
        self._make = make
        self._events = events
        self._log = log
        self._disconnected = asyncio.Event()

    def open(self, endpoints: Endpoints) -> None:
        """Make the sockets; call after `close`."""
        self._disconnected.clear()
        self.link = self._make(endpoints, self._events, self.identity)
        try:
            for identity in self.former:
                self.link.receive_for(identity)
        except KernelError as error:  # replies of the past are not vital
            self._log.warning(
                "Replies to requests of an earlier connection cannot be received: %s", error
            )

    def renew(self, *, keep: bool) -> None:
        """Send requests under a new identity; with `keep`, still receive for the present one."""
        if self.link is None:
            return
        identity = new_identity()
        self.link.renew(identity, keep=keep)
        if keep:
            self.former = [*self.former, self.identity][-_FORMER:]
        self.identity = identity

    def drop_former(self) -> None:
        """Stop receiving for former identities."""
        self.former.clear()
        if self.link is not None:
            self.link.drop_former()

    def set_connected(self, connected: bool) -> None:
        """Note that iopub is connected or disconnected."""
        if connected:
            self._disconnected.clear()
        else:
            self._disconnected.set()

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Send a message; return False if there is no link or its queue is full."""
        return self.link is not None and self.link.send(channel, frames)

    def drain(self) -> None:
        """Deliver all messages that have arrived."""
        if self.link is not None and not self.link.closed:
            self.link.drain()

    async def drain_until_disconnect(self) -> None:
        """Deliver all messages of a process that has ended: wait until it is disconnected."""
        if self.link is None or self.link.closed:
            return
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._disconnected.wait()
        except TimeoutError:
            self._log.debug("A kernel process that has ended is still connected")
        self.drain()

    def close(self) -> None:
        """Close the link, if there is one. Replies owed to its identities are lost."""
        if self.link is not None:
            self.link.close()
            self.link = None
            self.former.clear()
            self.identity = new_identity()
