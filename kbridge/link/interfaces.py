"""What a hub needs of a kernel and of a client, and what it is told: real links and twins alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from kbridge.wire.message import Buffer, Channel

__all__ = [
    "ClientLink",
    "KernelEvents",
    "KernelSockets",
    "RawMessage",
    "TransportEvents",
    "noop",
]

RawMessage: TypeAlias = list[Buffer]
"""The parts of one message as they came over ZeroMQ."""


class KernelEvents(Protocol):
    """What a link to a kernel tells its owner. All are called on the event loop."""

    def on_messages(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Messages came, in order."""

    def on_drained(self) -> None:
        """All batches of this wake-up were told: a good time to write them out."""

    def on_writable(self, channel: Channel) -> None:
        """A channel that refused a message may take one again."""

    def on_connected(self, channel: Channel) -> None:
        """The kernel's side of a channel has finished its handshake."""

    def on_disconnected(self, channel: Channel) -> None:
        """The kernel's side of a channel went away, and all that it sent there was told."""

    def on_gone(self, channel: Channel) -> None:
        """A channel was disconnected, and is not connected again.

        Iopub has a new socket; the others get theirs by `KernelSockets.renew`.
        """


class KernelSockets(Protocol):
    """A link to a kernel."""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        ...

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Hand over a message; False if the channel is full or the link closed."""
        ...

    def drain(self) -> None:
        """Tell all that has arrived, now."""
        ...

    def renew(self, identity: bytes, *, keep: bool) -> None:
        """Send requests under another identity; `keep` receiving for the one before."""
        ...

    def receive_for(self, identity: bytes) -> None:
        """Also receive what the kernel sends to an identity of the past."""
        ...

    def drop_former(self) -> None:
        """Receive nothing more for identities of the past."""
        ...

    def close(self) -> None:
        """Close; may be called twice."""
        ...


class ClientLink(Protocol):
    """A websocket, from the writing side."""

    on_writable: Callable[[], None]
    """Called when a link that was blocked has written all; set by its owner."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        ...

    def write(self, data: bytes) -> bool:
        """Write whole frames; False if they did not all go at once, or not at all."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the websocket."""
        ...


class TransportEvents(Protocol):
    """Notifications of a `SocketTransport`. All are called on the event loop."""

    def on_data(self, data: bytes) -> None:
        """Take bytes that were read."""

    def on_drained(self) -> None:
        """Note that all queued data was written."""

    def on_closed(self) -> None:
        """Note that the connection has ended; the last call."""


def noop() -> None:
    """Do nothing: the default of callbacks."""
