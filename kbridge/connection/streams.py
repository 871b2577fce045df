"""A channel of a kernel for the connection of one websocket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.zmq import message, split

if TYPE_CHECKING:
    from kbridge.hub.hub import Hub

__all__ = ["HubChannel"]


class HubChannel:
    """One channel of a kernel; its socket belongs to the hub and serves all websockets.

    It has the methods of `ZMQStream` that Jupyter Server's connections use, so that a `Session` can
    send on it.

    Parameters
    ----------
    hub : Hub
        The hub of the kernel.
    channel : Channel
        The channel.
    submit : callable
        Sends a message to the kernel.

    Attributes
    ----------
    channel : str
        shell, iopub, stdin or control.
    """

    __slots__ = ("_hub", "_open", "_submit", "channel")

    def __init__(self, hub: Hub, channel: Channel, submit: Callable[[Message], object]) -> None:
        self._hub = hub
        self._submit = submit
        self._open = True
        self.channel = str(channel)

    def closed(self) -> bool:
        """Return True if `close` was called."""
        return not self._open

    def close(self, linger: int | None = None) -> None:  # noqa: ARG002  # as a ZMQStream has it
        """Close the channel for this websocket; the socket of the hub stays open."""
        self._open = False

    def flush(self) -> None:
        """Deliver all messages that have arrived from the kernel."""
        self._hub.drain()

    def send_multipart(self, msg: Sequence[Buffer], *_flags: Any, **_how: Any) -> None:
        """Send a message, given as ZeroMQ parts; it is signed again.

        Flags and options of ZeroMQ have no effect.

        Raises
        ------
        KernelMessageError
            If the parts are not a message.
        InvalidMessage
            If the kernel's protocol has no such message.
        """
        if self._open:
            _, _, parts = split(list(msg))
            self._submit(message(Channel(self.channel), parts))
