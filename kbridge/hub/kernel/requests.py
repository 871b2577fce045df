"""The way to the kernel: who asked what, what waits, and who is owed the answer.

Owns the outbox, the routing table, and the bridge's own requests that are under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kbridge.errors import HubClosed, InvalidMessage
from kbridge.flow.journal import EVERYONE
from kbridge.flow.owed import Owed
from kbridge.flow.routing import Routing
from kbridge.hub.clock import Clock
from kbridge.hub.kernel.outbox import Outbox
from kbridge.hub.kernel.recovery import Recovery
from kbridge.hub.notices import Notices
from kbridge.wire.message import Channel, Message

__all__ = ["Requests"]

_OURSELVES = -1  # the client number of the bridge's own requests
# The order in which waiting requests are sent when a kernel becomes ready.
_ORDER = (Channel.CONTROL, Channel.STDIN, Channel.SHELL)


class Requests:
    """Requests to one kernel.

    Parameters
    ----------
    limit : int
        The maximum size of the waiting requests in bytes.
    send : callable
        Sends a message to the kernel; returns False if the kernel is not ready or does not
        take the message. Raises InvalidMessage if the kernel's protocol does not have the message.
    log : logging.Logger or adapter
        Logs failed requests whose sender can no longer be told.
    notices, clock
        The maker of the bridge's own messages, and the source of the time.
    adopted : bool
        True if the kernel may still run requests of an earlier bridge.

    Attributes
    ----------
    recovery : Recovery
        Makes replies in place of lost ones.
    """

    def __init__(
        self,
        limit: int,
        send: Callable[[Message], bool],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        *,
        notices: Notices,
        clock: Clock,
        adopted: bool = False,
    ) -> None:
        self._outbox = Outbox(limit)
        self._routing = Routing()
        self._send = send
        self._log = log
        self._ours: dict[str, asyncio.Future[Message]] = {}
        owed = Owed(adopted=adopted, knows=lambda msg_id: self._routing.owner(msg_id) is not None)
        self.recovery = Recovery(owed, notices, clock, log)

    def submit(self, msg: Message, client: int) -> asyncio.Future[None] | None:
        """Send a client's request, or let it wait.

        Returns
        -------
        Future or None
            What to await before the next one.

        Raises
        ------
        InvalidMessage
            If the kernel's protocol has no such message.
        HubClosed
            After `close`.
        """
        self._routing.note(msg.msg_id, client)
        if not self._outbox.waits(msg.channel) and self._send_now(msg):
            return None
        return self._outbox.put(msg)

    async def ask(self, msg: Message, timeout: float | None) -> Message:
        """Send a request of the bridge's own, and return its reply.

        Raises
        ------
        TimeoutError
            If none came in time.
        HubClosed
            If the kernel went away.
        """
        reply: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._ours[msg.msg_id] = reply
        try:
            async with asyncio.timeout(timeout):
                room = self.submit(msg, _OURSELVES)
                if room is not None:
                    await room
                return await reply
        finally:
            self._ours.pop(msg.msg_id, None)

    def audience(self, msg: Message) -> int | None:
        """Whom a message on shell, control or stdin is for.

        Returns
        -------
        int or None
            A client's number; `EVERYONE` where nobody knows, because better seen twice than not
            at all; None for an answer to the bridge itself, which is delivered with this call, and
            for one that comes a second time.
        """
        if msg.channel is Channel.SHELL and not self.recovery.replied(msg):
            return None
        return self.deliver(msg)

    def deliver(self, msg: Message) -> int | None:
        """As `audience`, for a reply that was not seen before."""
        parent_id = msg.parent_id
        owner = self._routing.owner(parent_id)
        if owner != _OURSELVES:
            return EVERYONE if owner is None else owner
        reply = self._ours.get(parent_id)
        if reply is not None and not reply.done():
            reply.set_result(msg)
        return None

    def flush(self, *channels: Channel) -> None:
        """Send what waits on some channels, or on all."""
        for channel in channels or _ORDER:
            self._outbox.flush(channel, self._send_late)

    def forget(self, why: str, *, waiting: bool = True) -> None:
        """Forget all that is under way: nobody will answer.

        Parameters
        ----------
        why : str
            Told to those who wait for an answer to the bridge.
        waiting : bool
            Whether to forget also what waits to be sent, and whose it is.
        """
        if waiting:
            self._routing.clear()
            self._outbox.clear()
        self.recovery.clear()
        ours, self._ours = self._ours, {}
        for reply in ours.values():
            if not reply.done():
                reply.set_exception(HubClosed(why))

    def close(self) -> None:
        """Forget all, and let those who wait for room know; may be called twice."""
        self._outbox.close()
        self.forget("the kernel is gone")

    def statistics(self) -> dict[str, Any]:
        """What waits, and what is under way."""
        return {
            "outbox": self._outbox.statistics(),
            "routing": self._routing.statistics(),
            "recovery": self.recovery.statistics(),
        }

    def _send_now(self, msg: Message) -> bool:
        if not self._send(msg):
            return False
        self.recovery.sent(msg)
        return True

    def _send_late(self, msg: Message) -> bool:
        try:
            return self._send_now(msg)
        except InvalidMessage as error:
            self._log.warning("a request was dropped: %s", error.reason)
            return True
