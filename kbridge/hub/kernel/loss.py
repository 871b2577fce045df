"""Output that a kernel has made and not sent: makes the messages that stand for it.

A PUB socket drops messages when its queue is full. A frontend would show too little output, and
nothing would say so, or show a cell as running for ever.
"""

from __future__ import annotations

from kbridge.flow.activity import QUIET, state_of
from kbridge.flow.lost_idle import LostIdle
from kbridge.flow.unsent import UnsentMessages
from kbridge.hub.context import HubContext
from kbridge.wire.message import Message, scan

__all__ = ["KernelLoss"]

_EXECUTE = "execute_request"


class KernelLoss:
    """Compares what a kernel has sent with what it must have made.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.

    Attributes
    ----------
    unsent : UnsentMessages
        Counts the messages; the owner raises its `arrived`.
    """

    def __init__(self, context: HubContext) -> None:
        self._context = context
        self.unsent = UnsentMessages()
        self._idle = LostIdle()

    @property
    def next_at(self) -> float | None:
        """The time of the next call of `due`; None if it is unknown."""
        return self._idle.next_at

    def on_status(self, status: Message) -> list[Message]:
        """Note a status of the kernel; return the notice to deliver before it, if there is one."""
        if state_of(status.content) != "idle":
            return []
        parent = scan(status.parent_header, "msg_type")
        if parent == _EXECUTE:
            self._idle.ended(status.parent_id)
        self.unsent.check(status.header)
        return [] if parent in QUIET else self._notice(status.parent_header)

    def on_reply(self, reply: Message, now: float) -> None:
        """Note the reply to an execute request."""
        self._idle.replied(reply.parent_id, reply.parent_header, now)

    def due(self, now: float) -> bool:
        """Return True if the owner must probe the shell now, and call `ask`."""
        return self._idle.due(now)

    def ask(self, probe: str) -> None:
        """Note that a probe with this id was sent to the shell."""
        self._idle.ask(probe)

    def on_probe_status(self, status: Message) -> list[Message]:
        """Note the status of a probe; return the messages that end cells without an idle status."""
        if state_of(status.content) != "idle":
            return []
        self.unsent.check(status.header)
        built: list[Message] = []
        for header in self._idle.answered(status.parent_id):
            built += [*self._notice(header), self._context.notices.status("idle", header)]
        if built:
            self._context.log.warning(
                "Kernel %s did not say that a cell has ended; the server says it in its name",
                self._context.kernel_id,
            )
        return built

    def restarted(self) -> None:
        """Forget all requests, because the process of the kernel has ended."""
        self.unsent.reset()
        self._idle.clear()

    def _notice(self, parent_header: bytes) -> list[Message]:
        count = self.unsent.take()
        if not count:
            return []
        self._context.log.warning(
            "Kernel %s seems to have dropped about %d messages: it made them faster than it could"
            " send them",
            self._context.kernel_id,
            count,
        )
        return [self._context.notices.dropped(count, parent_header)]
