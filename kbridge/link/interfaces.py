"""The interfaces between a hub and its links to a kernel and to clients."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeAlias

from kbridge.errors import ZmtpError
from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Buffer, Channel, RawMessage

__all__ = [
    "ClientLink",
    "KernelEvents",
    "KernelSockets",
    "LinkFactory",
    "RawMessage",
    "TransportEvents",
    "noop",
]


class KernelEvents(Protocol):
    """Notifications of a link to a kernel. All are called on the event loop."""

    def on_messages(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Take messages that have arrived, in order."""

    def on_drained(self) -> None:
        """Note that all batches of this wake-up were delivered, and may be written out."""

    def on_writable(self, channel: Channel) -> None:
        """Note that a channel whose queue was full may accept messages again."""

    def on_connected(self, channel: Channel) -> None:
        """Note that the ZeroMQ handshake of a channel has succeeded."""

    def on_disconnected(self, channel: Channel) -> None:
        """Note that a channel was disconnected; all its messages were delivered before."""

    def on_gone(self, channel: Channel, fault: ZmtpError | None = None) -> None:
        """Note that the connection of a channel was ended, or refused, and is made again now.

        Parameters
        ----------
        channel : Channel
            The channel. A link with libzmq has made a new socket for iopub only; the other channels
            need `KernelSockets.renew`.
        fault : ZmtpError or None
            The fault of the peer; None if it is not known.
        """

    def on_unsupported(self, channel: Channel) -> None:
        """Note that the kernel speaks ZMTP 1.0 or 2.0 only: it needs a link with libzmq."""


class KernelSockets(Protocol):
    """A link to a kernel."""

    @property
    def closed(self) -> bool:
        """True after `close` was called."""
        ...

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Send a message; return False if the channel's queue is full or the link is closed."""
        ...

    def drain(self) -> None:
        """Deliver all messages that have arrived, now."""
        ...

    def drain_slices(self) -> Generator[None, None, None]:
        """Deliver all messages that have arrived: a slice of them in each step of the iterator.

        The caller lets the event loop run between the steps, which may deliver other slices.
        """
        ...

    def renew(self, identity: bytes, *, keep: bool) -> None:
        """Send requests under a new identity; `keep` receiving for the former one."""
        ...

    def receive_for(self, identity: bytes) -> None:
        """Also receive messages that the kernel sends to a former identity."""
        ...

    def drop_former(self) -> None:
        """Stop receiving for former identities."""
        ...

    def close(self) -> None:
        """Close the sockets; may be called twice."""
        ...


LinkFactory: TypeAlias = Callable[[Endpoints, KernelEvents, bytes], KernelSockets]
"""Makes a link from the endpoints, the receiver of its events, and the identity of the bridge."""


class ClientLink(Protocol):
    """The link to a client: the writing side of a websocket."""

    on_writable: Callable[[], None]
    """Called when a blocked link has written everything; set by the owner of the link."""

    @property
    def closed(self) -> bool:
        """True if no more data can be written."""
        ...

    def write(self, data: bytes) -> bool:
        """Write whole frames; return False if the link is now blocked, or closed."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Close the websocket."""
        ...


class TransportEvents(Protocol):
    """Callbacks of the event loop to the owner of a `SocketTransport`, which calls none itself."""

    def on_input(self) -> None:
        """Read from the transport."""

    def on_room(self) -> None:
        """Flush the transport."""

    def on_closed(self) -> None:
        """Note that the connection has ended; the last call."""


def noop() -> None:
    """Do nothing: the default of callbacks."""
