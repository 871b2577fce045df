"""Links in memory, for tests and for programs without sockets."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Final

from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import KernelEvents, RawMessage, noop
from kbridge.wire.message import Buffer, Channel

__all__ = ["MemoryClient", "MemoryKernel"]


class MemoryClient:
    """A `ClientLink` that records the data written to it.

    Attributes
    ----------
    written : bytearray
        All data that was written.
    stalled : bool
        While true, the next write blocks the link, as with a peer that does not read.
    closed_with : tuple of (int, str) or None
        Code and reason of the close.
    """

    def __init__(self) -> None:
        self.written = bytearray()
        self.writes = 0
        self.stalled = False
        self.closed = False
        self.closed_with: tuple[int, str] | None = None
        self.on_writable: Callable[[], None] = noop
        self._pending = b""

    def write(self, data: bytes) -> bool:
        """Take whole frames; False while stalled or closed."""
        if self.closed:
            return False
        assert not self._pending, "written to while blocked"
        self.writes += 1
        if self.stalled:
            self._pending = data
            return False
        self.written += data
        return True

    def resume(self) -> None:
        """Complete the blocked write, and call `on_writable`."""
        self.stalled = False
        self.written += self._pending
        self._pending = b""
        self.on_writable()

    def close(self, code: int, reason: str) -> None:
        """Close, once."""
        if not self.closed:
            self.closed = True
            self.closed_with = (code, reason)


class MemoryKernel:
    """A link to a kernel that a test or the same program simulates.

    Attributes
    ----------
    sent : list of (Channel, list)
        The messages sent to the kernel.
    identity : bytes
        The identity of this link at the kernel.
    former : list of bytes
        Former identities for which the link also receives.
    full : bool
        While true, `send` returns False, as if the kernel's queue were full.
    without_stdin : bool
        While true, the handshake on stdin does not finish.
    """

    def __init__(
        self, endpoints: Endpoints, events: KernelEvents, identity: bytes = b"memory"
    ) -> None:
        self.endpoints: Final = endpoints
        self.identity = identity
        self.former: list[bytes] = []
        self.sent: list[tuple[Channel, RawMessage]] = []
        self.full = False
        self.without_stdin = False
        self.closed = False
        self._events = events
        self._connected = False  # on stdin
        self._arrived: deque[tuple[Channel, list[RawMessage]]] = deque()

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Take a message for the kernel; False while full or closed."""
        if self.full or self.closed:
            return False
        self.sent.append((channel, list(frames)))
        return True

    def drain(self) -> None:
        """Deliver the messages of `arrive`, and report the end of them."""
        while self._arrived and not self.closed:
            self._events.on_messages(*self._arrived.popleft())
        self._events.on_drained()

    def drain_slices(self) -> Generator[None, None, None]:
        """Deliver the messages of `arrive`, one batch in each step."""
        while self._arrived and not self.closed:
            self._events.on_messages(*self._arrived.popleft())
            self._events.on_drained()
            yield

    def renew(self, identity: bytes, *, keep: bool) -> None:
        """Change the identity; the handshake on stdin starts again."""
        if keep:
            self.former.append(self.identity)
        self.identity = identity
        self._connected = False

    def receive_for(self, identity: bytes) -> None:
        """Also receive for a former identity."""
        self.former.append(identity)

    def drop_former(self) -> None:
        """Stop receiving for former identities."""
        self.former.clear()

    def close(self) -> None:
        """Close; may be called twice."""
        self.closed = True

    # -- the kernel's side ------------------------------------------------------------------

    def say(self, channel: Channel, *batch: RawMessage) -> None:
        """Send messages from the kernel in one wake-up; connect stdin unless `without_stdin`."""
        self._connect_stdin()
        self._events.on_messages(channel, list(batch))
        self._events.on_drained()

    def arrive(self, channel: Channel, *batch: RawMessage) -> None:
        """Send messages from the kernel that wait until the hub drains the link."""
        self._arrived.append((channel, list(batch)))

    def connect(self) -> None:
        """Finish the handshakes on stdin and on iopub."""
        self._connect_stdin()
        self._events.on_connected(Channel.IOPUB)

    def disconnect(self) -> None:
        """Disconnect the kernel."""
        self._connected = False
        for channel in (Channel.STDIN, Channel.IOPUB):
            self._events.on_disconnected(channel)

    def _connect_stdin(self) -> None:
        if not self._connected and not self.without_stdin:
            self._connected = True
            self._events.on_connected(Channel.STDIN)

    def make_room(self) -> None:
        """Read what filled the queues."""
        self.full = False
        for channel in (Channel.SHELL, Channel.CONTROL, Channel.STDIN):
            self._events.on_writable(channel)
