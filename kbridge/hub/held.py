"""Requests of clients that are held back while a kernel may be given to another replica.

The state for the next owner is written before: it does not have these requests, so the kernel must
not receive them from this hub. They are sent if the kernel stays here. Otherwise they are dropped
with their websocket. The clients of kbridge then send them again. Other clients do not, so a
request to execute code gets a reply which says that the code was not run.

A comm message has no reply that could be lost, and an interrupt must not wait: both are sent at
once.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from kbridge.hub.kernel.outbox import Outbox
from kbridge.wire.message import Message, scan

__all__ = ["Held", "HeldRequests"]

_AT_ONCE: Final = frozenset({"comm_open", "comm_msg", "comm_close", "interrupt_request"})
# In the headers of clients that ask the server, after a reconnection, which requests it knows.
_SEND_AGAIN: Final = frozenset({"kbridge-client", "kbridge.js"})


class Held(NamedTuple):
    """A request that was held back, and the number of its client."""

    msg: Message
    client: int

    @property
    def needs_reply(self) -> bool:
        """True if the client would wait without end for this request once it is dropped."""
        msg = self.msg
        return msg.msg_type == "execute_request" and scan(msg.header, "username") not in _SEND_AGAIN


class HeldRequests:
    """The requests of clients that the kernel does not get for now, bounded as those that wait.

    Parameters
    ----------
    limit : int
        Bytes that may be held before their senders have to wait.

    Attributes
    ----------
    active : bool
        True while requests are held back.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._outbox = Outbox(limit)
        self._held: list[Held] = []
        self.active = False

    def takes(self, msg_type: str) -> bool:
        """Return True if requests of a type are held back."""
        return self.active and msg_type not in _AT_ONCE

    def put(self, msg: Message, client: int) -> asyncio.Future[None] | None:
        """Hold a request back; the result is as of `Outbox.put`."""
        room = self._outbox.put(msg)
        self._held.append(Held(msg, client))
        return room

    def take(self) -> list[Held]:
        """Return the requests that are held, in their order, and hold no more."""
        held, self._held = self._held, []
        self.active = False
        self._outbox.clear()
        return held

    def close(self) -> list[Held]:
        """Return the requests that are held; their senders fail with HubClosed."""
        held, self._held = self._held, []
        self._outbox.close()
        return held
