"""Recovery of replies that were lost with an earlier bridge or a connection.

Drives `kbridge.flow.lost_replies` and owns its timer.
"""

from __future__ import annotations

import asyncio

from kbridge.flow.lost_replies import LostReplies
from kbridge.hub.context import HubContext
from kbridge.hub.kernel.events import RecoveryEvents
from kbridge.wire.message import Message

__all__ = ["Recovery"]


class Recovery:
    """Makes the replies that a kernel owes to former identities and that were lost.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.
    replies : LostReplies
        Decides which replies to make.
    events : RecoveryEvents
        Receives the replies.

    Attributes
    ----------
    active : bool
        True while replies may be lost; pass iopub messages to `observe` during that time.
    """

    def __init__(self, context: HubContext, replies: LostReplies, events: RecoveryEvents) -> None:
        self._context = context
        self._replies = replies
        self._events = events
        self._timer: asyncio.TimerHandle | None = None
        self.active = replies.active

    def sent(self, msg: Message) -> None:
        """Note a request that was sent."""
        if msg.msg_type == "execute_request":
            self._replies.sent(msg.msg_id, msg.header)

    def replied(self, msg: Message) -> bool:
        """Note a reply on shell; return False to drop it because the bridge already made one."""
        if msg.msg_type != "execute_reply":
            return True
        wanted = self._replies.replied(msg.parent_id, self._now())
        if self.active:
            self._schedule()
        return wanted

    def observe(self, msg: Message, msg_type: str) -> None:
        """Note a message on iopub."""
        self._replies.observe(msg, msg_type, self._now())
        if msg_type == "status":
            self._schedule()

    def shell_answered(self) -> None:
        """Note that the kernel answered a request over the present shell socket."""
        if self.active:
            self._replies.shell_answered(self._now())
            self._schedule()
            if not self._replies.calm:
                self._events.on_unsure()

    def connection_lost(self, *, iopub: bool = False) -> None:
        """Note that the replies to all open requests may be lost; with `iopub`, also output."""
        self._replies.connection_lost(iopub=iopub)
        self.active = self._replies.active
        self._schedule()

    def iopub_connected(self) -> None:
        """Mark the cell that ran while iopub was disconnected: its output may be missing."""
        header = self._replies.cut()
        if header is not None:
            self._events.on_reply_recovered(self._context.notices.disconnected(header))

    def clear(self) -> None:
        """Forget all requests, because the process has ended; may be called twice."""
        self._replies.clear()
        self._settle()

    def check(self) -> None:
        """Make the replies that are due."""
        notices = self._context.notices
        for due in self._replies.due(self._now()):
            if due.content is not None:
                self._context.log.info(
                    "A reply of kernel %s was lost; it is made from the kernel's iopub messages",
                    self._context.kernel_id,
                )
                self._events.on_reply_recovered(notices.reply(due.request, due.content))
            if not due.idle:
                self._events.on_reply_recovered(notices.status("idle", due.request))
        if self.active and not self._replies.active:
            self._settle()
        self._schedule()

    def _now(self) -> float:
        return self._context.clock.monotonic()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_at = self._replies.next_at() if self.active else None
        if due_at is not None:
            delay = max(0.0, due_at - self._now())
            self._timer = asyncio.get_running_loop().call_later(delay, self.check)

    def _settle(self) -> None:
        self.active = False
        self._schedule()
        self._events.on_recovered()
