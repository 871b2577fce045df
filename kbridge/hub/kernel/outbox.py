"""Requests that wait for a kernel that is not ready, or does not read.

They wait as messages and are signed when they are sent: the key and the protocol of the kernel are
known only once it has answered.

There is one queue per channel, so that an interrupt on control does not wait behind the cells on
shell. The queues are bounded in bytes, over all channels: a sender that exceeds the limit gets a
future to await, and its websocket is not read from until then.
"""

from __future__ import annotations

import asyncio
from collections import deque

from kbridge.errors import HubClosed
from kbridge.wire.message import Channel, Message

__all__ = ["Outbox"]


class Outbox:
    """The queues of requests for one kernel.

    Parameters
    ----------
    limit : int
        Bytes that may wait before their senders have to wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self._queues: dict[Channel, deque[Message]] = {channel: deque() for channel in Channel}
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False

    def waits(self, channel: Channel) -> bool:
        """Return True if a request waits for a channel."""
        return bool(self._queues[channel])

    def put(self, msg: Message) -> asyncio.Future[None] | None:
        """Add a request.

        Returns
        -------
        Future or None
            The sender must await it before its next request; None below the limit.

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

    def first(self, channel: Channel) -> Message | None:
        """Return the next request for a channel; None if none waits."""
        queue = self._queues[channel]
        return queue[0] if queue else None

    def remove_first(self, channel: Channel) -> None:
        """Remove the request that `first` returned: it was sent."""
        self.nbytes -= self._queues[channel].popleft().nbytes
        if self.nbytes <= self.limit:
            self._release()

    def ids(self) -> frozenset[str]:
        """Return the `msg_id` of each request that waits."""
        return frozenset(msg.msg_id for queue in self._queues.values() for msg in queue)

    def take(self, channel: Channel, msg_type: str) -> list[Message]:
        """Remove and return the requests of a type that wait for a channel, oldest first."""
        queue = self._queues[channel]
        taken = [msg for msg in queue if msg.msg_type == msg_type]
        if taken:
            self._queues[channel] = deque(msg for msg in queue if msg.msg_type != msg_type)
            self.nbytes -= sum(msg.nbytes for msg in taken)
            if self.nbytes <= self.limit:
                self._release()
        return taken

    def clear(self) -> None:
        """Drop all requests."""
        for queue in self._queues.values():
            queue.clear()
        self.nbytes = 0
        self._release()

    def close(self) -> None:
        """Drop all requests, and fail the senders that wait; may be called twice."""
        self._closed = True
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(HubClosed("the kernel is gone"))
                waiter.exception()  # retrieved: a closed websocket does not await it
        self.clear()

    def statistics(self) -> dict[str, int]:
        """Return the number of requests that wait, their bytes, and the senders that wait."""
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
