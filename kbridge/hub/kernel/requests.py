"""Requests to one kernel: those that wait, and the client that each reply belongs to.

Owns the outbox, the routing table, and the futures of the bridge's own requests. It sends nothing
itself: the caller passes a function that does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from kbridge.errors import HubClosed
from kbridge.flow.journal import EVERYONE
from kbridge.flow.routing import Routing
from kbridge.hub.kernel.outbox import Outbox
from kbridge.wire.message import Channel, Message

__all__ = ["Requests", "Send"]

Send: TypeAlias = Callable[[Message], bool]
"""Sends a request; returns False if the kernel is not ready or does not read.

Raises InvalidMessage if the kernel's protocol has no such message."""

_BRIDGE: Final = -1  # the client number of the bridge's own requests
# The order in which waiting requests are sent when a kernel becomes ready.
_ORDER: Final = (Channel.CONTROL, Channel.STDIN, Channel.SHELL)


class Requests:
    """The requests to one kernel.

    Parameters
    ----------
    limit : int
        Bytes of requests that may wait before their senders have to wait.
    """

    def __init__(self, limit: int) -> None:
        self._outbox = Outbox(limit)
        self._routing = Routing()
        self._replies: dict[str, asyncio.Future[Message]] = {}  # to the bridge's own requests

    def submit(self, msg: Message, client: int, send: Send) -> asyncio.Future[None] | None:
        """Send a request, or queue it.

        Parameters
        ----------
        msg : Message
            The request.
        client : int
            The number of the client that its replies belong to.
        send : callable
            Sends it.

        Returns
        -------
        Future or None
            The sender must await it before its next request; None if there is room.

        Raises
        ------
        InvalidMessage
            If the kernel's protocol has no such message.
        HubClosed
            After `close`.
        """
        self._routing.note(msg.msg_id, client)
        if not self._outbox.waits(msg.channel) and send(msg):
            return None
        return self._outbox.put(msg)

    async def ask(self, msg: Message, timeout: float | None, send: Send) -> Message:
        """Send a request of the bridge itself, and return its reply.

        Raises
        ------
        TimeoutError
            If no reply came within `timeout` seconds.
        HubClosed
            If the kernel went away.
        """
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._replies[msg.msg_id] = reply
        try:
            async with asyncio.timeout(timeout):
                room = self.submit(msg, _BRIDGE, send)
                if room is not None:
                    await room
                return await reply
        finally:
            self._replies.pop(msg.msg_id, None)

    def flush(self, channels: Iterable[Channel] | None, send: Send) -> None:
        """Send the requests that wait for some channels, or for all; see `Outbox.flush`."""
        for channel in channels or _ORDER:
            self._outbox.flush(channel, send)

    def knows(self, msg_id: str) -> bool:
        """Return True if a request with that id was submitted here."""
        return self._routing.owner(msg_id) is not None

    def recipient(self, msg: Message) -> int | None:
        """Return the client that a message on shell, control or stdin belongs to.

        Returns
        -------
        int or None
            The number of a client; `EVERYONE` if the request is not known, because a reply that is
            seen twice is better than one that is not seen; None for a reply to the bridge itself,
            which is delivered by this call.
        """
        parent_id = msg.parent_id
        owner = self._routing.owner(parent_id)
        if owner != _BRIDGE:
            return EVERYONE if owner is None else owner
        reply = self._replies.get(parent_id)
        if reply is not None and not reply.done():
            reply.set_result(msg)
        return None

    def forget(self, why: str, *, waiting: bool = True) -> None:
        """Forget the requests that were sent: no replies will come.

        Parameters
        ----------
        why : str
            The reason that the bridge's own requests fail with.
        waiting : bool
            True to forget also the requests that wait, and the routes of all.
        """
        if waiting:
            self._routing.clear()
            self._outbox.clear()
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            if not reply.done():
                reply.set_exception(HubClosed(why))

    def close(self) -> None:
        """Forget all requests, and fail their senders with HubClosed; may be called twice."""
        self._outbox.close()
        self.forget("the kernel is gone")

    def statistics(self) -> dict[str, Any]:
        """Return the figures of the requests that wait."""
        return {"outbox": self._outbox.statistics()}
