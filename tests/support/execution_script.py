"""Executions on a hub with a kernel in memory, in each state."""

from __future__ import annotations

from kbridge.hub.hub import Hub
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize

__all__ = ["ExecutionScript"]

DATE = "2030-01-01T00:00:00.000000Z"


class ExecutionScript:
    """Sends requests as a page, and answers as a kernel.

    Parameters
    ----------
    hub : Hub
        The hub.
    kernel : MemoryKernel
        Its kernel.
    key : bytes
        The key of the kernel.

    Attributes
    ----------
    hub : Hub
        As above.
    """

    def __init__(self, hub: Hub, kernel: MemoryKernel, key: bytes) -> None:
        self.hub = hub
        self._kernel = kernel
        self._signer = Signer(key)
        self._requests: dict[str, Message] = {}

    def submit(self, msg_id: str, *, session: str = "a-page", cell: str = "") -> None:
        """Send the request of a page, which then goes."""
        cursor = self.hub.attach(MemoryClient(), V1, session)
        self._requests[msg_id] = build(
            Channel.SHELL,
            "execute_request",
            {"code": "1 + 1"},
            session=session,
            date=DATE,
            msg_id=msg_id,
            metadata={"cellId": cell} if cell else {},
        )
        self.hub.submit(cursor, self._requests[msg_id])
        self.hub.detach(cursor)

    def begin(self, msg_id: str) -> None:
        """Begin to run it."""
        self._say(msg_id, Channel.IOPUB, "status", {"execution_state": "busy"})

    def finish(self, msg_id: str, status: str = "ok") -> None:
        """Run it to its end."""
        self.begin(msg_id)
        self._say(msg_id, Channel.SHELL, "execute_reply", {"status": status})
        self._say(msg_id, Channel.IOPUB, "status", {"execution_state": "idle"})

    def _say(self, msg_id: str, channel: Channel, msg_type: str, content: dict[str, str]) -> None:
        parent = self._requests[msg_id].header
        msg = build(channel, msg_type, content, session="a-kernel", date=DATE, parent_header=parent)
        self._kernel.say(channel, list(serialize(msg, self._signer)))
