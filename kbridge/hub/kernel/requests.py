"""Requests to one kernel: those that wait, the client of each reply, and replies that were lost.

Owns the outbox, the routing table, the futures of the bridge's own requests, and the requests whose
replies may be lost. It sends requests over the link below it; the caller has the clock and the
timers, and delivers the messages of the kernel.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from kbridge.errors import HubClosed, InvalidMessage
from kbridge.flow.execution import Execution
from kbridge.flow.journal import EVERYONE
from kbridge.flow.lost_replies import LostReplies, Owed
from kbridge.flow.routing import Routing
from kbridge.hub.context import HubContext
from kbridge.hub.counts import Counts
from kbridge.hub.kernel.outbox import Outbox
from kbridge.hub.kernel.process_link import ProcessLink
from kbridge.wire.message import Channel, Message

__all__ = ["Requests"]

_BRIDGE: Final = -1  # the client number of the bridge's own requests
# The order in which waiting requests are sent when a kernel becomes ready.
_ORDER: Final = (Channel.CONTROL, Channel.STDIN, Channel.SHELL)


class Requests:
    """The requests to one kernel.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.
    link : ProcessLink
        Sends the requests.

    Attributes
    ----------
    owed : bool
        True while replies may be lost, and the sockets of former identities are open for them.
        Pass iopub messages to `observe` during that time, and call `build_lost` when it is due.
    """

    def __init__(self, context: HubContext, link: ProcessLink) -> None:
        self._context = context
        self._link = link
        self._trace = context.trace
        self._outbox = Outbox(context.settings.request_limit)
        self._routing = Routing()
        # Replies to the bridge's own requests.
        self._replies: dict[str, asyncio.Future[Message]] = {}
        self._lost = LostReplies(
            adopted=context.adopted and not context.following, routing=self._routing
        )
        self.owed = self._lost.active
        # Requests that were sent, by channel, without probes.
        self._sent = dict.fromkeys(Channel, 0)
        self._sent_bytes = dict.fromkeys(Channel, 0)

    @property
    def waiting(self) -> frozenset[str]:
        """The `msg_id` of each request that was not sent yet."""
        return self._outbox.ids()

    # -- requests ---------------------------------------------------------------------------

    def submit(
        self, msg: Message, client: int, *, ready: bool, first: bool = False
    ) -> asyncio.Future[None] | None:
        """Send a request, or queue it.

        Parameters
        ----------
        msg : Message
            The request.
        client : int
            The number of the client that its replies belong to.
        ready : bool
            False to queue it in any case: the kernel is not ready.
        first : bool
            True to send it before the requests that wait.

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
        msg_id = msg.msg_id
        self._routing.note(msg_id, client)
        outbox = self._outbox
        behind = not first and outbox.nbytes and outbox.waits(msg.channel)
        if ready and not behind and self._send(msg, msg_id):
            return None
        return outbox.put(msg)

    async def ask(
        self, msg: Message, timeout: float | None, *, ready: bool, first: bool = False
    ) -> Message:
        """Send a request of the bridge itself, and return its reply; see also `submit`.

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
                room = self.submit(msg, _BRIDGE, ready=ready, first=first)
                if room is not None:
                    await room
                return await reply
        finally:
            self._replies.pop(msg.msg_id, None)

    def flush(self, channels: Iterable[Channel] = _ORDER) -> None:
        """Send the requests that wait for some channels, as far as the kernel reads them."""
        outbox = self._outbox
        if not outbox.nbytes:
            return
        for channel in channels:
            while (msg := outbox.first(channel)) is not None and self._send_late(msg):
                outbox.remove_first(channel)

    def _send(self, msg: Message, msg_id: str) -> bool:
        """Send a request; return False if the kernel does not read."""
        adapter = self._link.adapter
        if not self._link.send(msg if adapter is None else adapter.to_kernel(msg)):
            return False
        self._sent[msg.channel] += 1
        self._sent_bytes[msg.channel] += msg.nbytes
        if msg.msg_type == "execute_request":
            self._lost.sent(msg_id, msg.header)
            if self._trace is not None:
                self._trace.on_sent(msg_id)
        return True

    def _send_late(self, msg: Message) -> bool:
        """Send a request that has waited; drop it if the kernel's protocol does not have it."""
        try:
            return self._send(msg, msg.msg_id)
        except InvalidMessage as error:
            self._context.log.warning("A request was dropped: %s", error.reason)
            return True

    def take_waiting(self) -> list[tuple[Message, int]]:
        """Remove the requests to execute code that wait; return them with their clients' numbers.

        The bridge's own requests stay.
        """
        taken = self._outbox.take(Channel.SHELL, "execute_request")
        found: list[tuple[Message, int]] = []
        for msg in taken:
            owner = self._routing.owner(msg.msg_id)
            if owner == _BRIDGE:
                self._outbox.put(msg)
            else:
                found.append((msg, EVERYONE if owner is None else owner))
        return found

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
        self.forget_lost()

    def close(self) -> None:
        """Forget all requests, and fail their senders with HubClosed; may be called twice."""
        self._outbox.close()
        self.forget("the kernel is gone")

    def statistics(self) -> dict[str, Any]:
        """Return the figures of the requests that wait."""
        return {"outbox": self._outbox.statistics()}

    def counters(self) -> Counts:
        """Return the numbers that only grow, see `kbridge.hub.counts`."""
        counts: Counts = Counter()
        for channel in _ORDER:
            counts["kernel_messages", "to_kernel", channel] = self._sent[channel]
            counts["kernel_bytes", "to_kernel", channel] = self._sent_bytes[channel]
        return counts

    # -- replies ----------------------------------------------------------------------------

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

    def replied(self, msg: Message, now: float) -> bool:
        """Note an execute_reply; return False to drop it because one was built before."""
        return self._lost.replied(msg.parent_id, now)

    # -- lost replies: while `owed`, or to begin it -------------------------------------------

    def restore(self, requests: Iterable[Execution], now: float) -> None:
        """Note requests of an earlier bridge that have not ended, and their clients."""
        for request in requests:
            self._routing.note(request.msg_id, request.client)
            self._lost.restore(request, now)
        self.owed = self._lost.active

    def take_over(self, requests: Sequence[Owed], now: float) -> None:
        """Note the requests of another replica that have no reply, and their clients."""
        for request in requests:
            self._routing.note(request.execution.msg_id, request.execution.client)
        self._lost.take_over(requests, now)
        self.owed = self._lost.active

    def connection_lost(self, *, iopub: bool = False) -> None:
        """Note that the replies to all open requests may be lost; with `iopub`, also output."""
        self._lost.connection_lost(iopub=iopub)
        self.owed = self._lost.active

    def mark_cut(self) -> list[Message]:
        """Return a notice for the cell that ran while iopub was disconnected, if there is one."""
        header = self._lost.cut()
        return [] if header is None else [self._context.notices.disconnected(header)]

    def observe(self, msg: Message, msg_type: str, now: float) -> None:
        """Note a message on iopub."""
        self._lost.observe(msg, msg_type, now)

    def shell_answered(self, now: float) -> bool:
        """Note that the kernel answered a probe over the present shell socket.

        Returns
        -------
        bool
            True if another answer would help to decide whether replies were lost.
        """
        self._lost.shell_answered(now)
        return not self._lost.calm

    def build_lost(self, now: float) -> list[Message]:
        """Build the replies that are due, and statuses that go with them.

        Closes the sockets of former identities when no other replies may be lost.
        """
        notices = self._context.notices
        built: list[Message] = []
        for due in self._lost.due(now):
            if due.unheard:
                built.append(notices.taken_over(due.request))
            if due.lost:
                built.append(notices.not_run(due.request))
            if due.content is not None:
                self._context.log.info(
                    "A reply of kernel %s was lost; it is made from the kernel's iopub messages",
                    self._context.kernel_id,
                )
                built.append(notices.reply(due.request, due.content))
            if not due.idle:
                built.append(notices.status("idle", due.request))
        if self.owed and not self._lost.active:
            self._end_recovery()
        return built

    def next_at(self) -> float | None:
        """Return the time of the next call of `build_lost`; None if it is unknown."""
        return self._lost.next_at() if self.owed else None

    def forget_lost(self) -> None:
        """Forget the requests whose replies may be lost: their process has ended."""
        self._lost.clear()
        self._end_recovery()

    def _end_recovery(self) -> None:
        self.owed = False
        if self._link.former:
            self._link.drop_former()
