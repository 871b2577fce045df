"""Recovery of replies that were lost with an earlier bridge or a connection.

Drives `kbridge.flow.owed` and owns its timer. Tells its owner when former identities are no longer
needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from kbridge.flow.owed import Owed
from kbridge.hub.clock import Clock
from kbridge.hub.notices import Notices
from kbridge.link.interfaces import nobody
from kbridge.wire.message import Message

__all__ = ["Recovery"]


class Recovery:
    """Makes the replies that a kernel owes to former identities and that were lost.

    Parameters
    ----------
    owed : Owed
        Decides which replies to make.
    notices : Notices
        Makes the replies.
    clock, log
        The source of the time, and the logger.

    Attributes
    ----------
    on_reply : callable
        Called with each reply that was made, and with the idle status if that is missing, too.
    on_settled : callable
        Called when no replies are owed to former identities.
    on_unsure : callable
        Called when another answer on shell would help to decide.
    """

    def __init__(
        self,
        owed: Owed,
        notices: Notices,
        clock: Clock,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self._owed = owed
        self._notices = notices
        self._clock = clock
        self._log = log
        self._timer: asyncio.TimerHandle | None = None
        self._pending = owed.active
        self.on_reply: Callable[[Message], None] = _ignore
        self.on_settled: Callable[[], None] = nobody
        self.on_unsure: Callable[[], None] = nobody

    @property
    def active(self) -> bool:
        """True while replies may be lost; pass iopub messages to `observe` during that time."""
        return self._pending

    def sent(self, msg: Message) -> None:
        """Note a request that is being sent."""
        if msg.msg_type == "execute_request":
            self._owed.sent(msg.msg_id, msg.header)

    def replied(self, msg: Message) -> bool:
        """Note a reply on shell; return False to drop it because the bridge already made one."""
        return msg.msg_type != "execute_reply" or self._owed.replied(msg.parent_id)

    def observe(self, msg: Message, msg_type: str) -> None:
        """Note a message on iopub."""
        self._owed.observe(msg, msg_type, self._clock.monotonic())
        if msg_type == "status":
            self._schedule()

    def shell_answered(self) -> None:
        """Note that the kernel answered a request over the present shell socket."""
        if self._pending:
            self._owed.shell_answered(self._clock.monotonic())
            self._schedule()
            if not self._owed.calm:
                self.on_unsure()

    def connection_lost(self, *, iopub: bool = False) -> None:
        """Note that the replies to all requests under way may be lost; output, too, if `iopub`."""
        self._owed.connection_lost(iopub=iopub)
        self._pending = self._owed.active
        self._schedule()

    def iopub_connected(self) -> None:
        """Tell the reader of a cell that ran while iopub was disconnected what may be missing."""
        header = self._owed.cut()
        if header is not None:
            self.on_reply(self._notices.disconnected(header))

    def clear(self) -> None:
        """Forget all: the process that owed the replies is gone. May be called twice."""
        self._owed.clear()
        self._settle()

    def statistics(self) -> dict[str, Any]:
        """As `Owed.statistics`."""
        return self._owed.statistics()

    def check(self) -> None:
        """Make the replies that are due."""
        for due in self._owed.due(self._clock.monotonic()):
            if due.content is not None:
                self._log.info("The reply to a request was lost; it is made from what iopub said")
                self.on_reply(self._notices.reply(due.request, due.content))
            if not due.idle:
                self.on_reply(self._notices.status("idle", due.request))
        if self._pending and not self._owed.active:
            self._settle()
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_at = self._owed.next_at() if self._pending else None
        if due_at is not None:
            delay = max(0.0, due_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self.check)

    def _settle(self) -> None:
        self._pending = False
        self._schedule()
        self.on_settled()


def _ignore(msg: Message) -> None:
    """Stand in until an owner wants to be told."""
