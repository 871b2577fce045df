"""Requests that wait for a kernel which is not ready, or does not read.

They wait as messages and are signed as they go: what the kernel's key and protocol are is known
only once it has answered.

One queue a channel, so that an interrupt on control does not wait behind the cells on shell.
Bounded in bytes over all channels: whoever puts in more than there is room for is given a future
to wait on, and reads no further from its websocket meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from kbridge.errors import HubClosed
from kbridge.wire.message import Channel, Message

__all__ = ["Outbox"]


class Outbox:
    """The queues.

    Parameters
    ----------
    limit : int
        Bytes that may wait before senders must.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._queues: dict[Channel, deque[Message]] = {channel: deque() for channel in Channel}
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False

    def waits(self, channel: Channel) -> bool:
        """Whether something waits on a channel."""
        return bool(self._queues[channel])

    def put(self, msg: Message) -> asyncio.Future[None] | None:
        """Add a request.

        Returns
        -------
        Future or None
            What to await before the next one, where the limit is passed.

        Raises
        ------
        HubClosed
            After `close`.
        """
        if self._closed:
            raise HubClosed("the kernel is gone")
        self._queues[msg.channel].append(msg)
        self.nbytes += msg.nbytes
        if self.nbytes <= self.limit:
            return None
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def flush(self, channel: Channel, send: Callable[[Message], bool]) -> None:
        """Send what waits on a channel, until `send` refuses."""
        queue = self._queues[channel]
        while queue and send(queue[0]):
            self.nbytes -= queue.popleft().nbytes
        if self.nbytes <= self.limit:
            self._release()

    def clear(self) -> None:
        """Forget all that waits."""
        for queue in self._queues.values():
            queue.clear()
        self.nbytes = 0
        self._release()

    def close(self) -> None:
        """Forget all that waits, and let those who wait know; may be called twice."""
        self._closed = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(HubClosed("the kernel is gone"))
                waiter.exception()  # seen: a websocket that is gone too awaits it no more
        self.clear()

    def statistics(self) -> dict[str, int]:
        """Bytes and requests that wait, and senders that wait for room."""
        return {
            "bytes": self.nbytes,
            "limit": self.limit,
            "requests": sum(len(q) for q in self._queues.values()),
            "senders_waiting": len(self._waiters),
        }

    def _release(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
