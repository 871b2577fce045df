"""Tells clients why their kernel waits in a queue, and how it ended.

A kernel that waits has no sockets: the hub holds the requests. If the kernel never runs, those that
execute code are answered here, because they were not run.
"""

from __future__ import annotations

from kbridge.hub.broadcast.broadcaster import Broadcaster
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.context import HubContext
from kbridge.hub.kernel.connection import KernelConnection
from kbridge.wire.headers import type_and_key

__all__ = ["QueueWait"]


class QueueWait:
    """The wait of one kernel, as its clients see it.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.
    kernel : KernelConnection
        Has the requests that wait.
    broadcaster : Broadcaster
        Delivers the messages.

    Attributes
    ----------
    text : str
        Why the kernel waits; empty if it does not.
    """

    def __init__(
        self, context: HubContext, kernel: KernelConnection, broadcaster: Broadcaster
    ) -> None:
        self._clock = context.clock
        self._notices = context.notices
        self._kernel = kernel
        self._broadcaster = broadcaster
        self.text = ""

    def greet(self, cursor: Cursor) -> None:
        """Tell a new websocket why the kernel waits, if it does.

        It would otherwise hear nothing until the kernel runs.
        """
        if self.text:
            status = self._notices.status("starting", reason=self.text)
            self._broadcaster.append(status, cursor.session.number)
            self._broadcaster.on_drained()

    def abort(self, reason: str = "") -> None:
        """Answer the requests to execute code that wait for the kernel: they are not run.

        Parameters
        ----------
        reason : str
            A line for the output of each cell; by default none.
        """
        notices, broadcaster = self._notices, self._broadcaster
        waiting = self._kernel.take_waiting()
        for msg, client in waiting:
            if reason:
                broadcaster.on_notice(notices.ended(reason, msg.header))
            aborted = {"status": "aborted", "execution_count": None}
            reply = notices.reply(msg.header, aborted)
            broadcaster.on_reply(
                reply, *type_and_key(reply.header), client, self._clock.monotonic()
            )
            broadcaster.on_notice(notices.status("idle", msg.header))
        if waiting:
            broadcaster.on_drained()

    def explain_end(self, reason: str) -> None:
        """Write the reason why the kernel has ended to the output of the running cells."""
        if reason:
            for execution in self._broadcaster.tracker.executions.running:
                if execution.header:
                    self._broadcaster.on_notice(self._notices.ended(reason, execution.header))

    def ended(self, reason: str) -> None:
        """Note that the kernel has ended: no request that waits will run."""
        if self.text:
            self.abort(reason)
        self.text = ""
        self.explain_end(reason)
