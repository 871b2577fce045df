"""A channel of the hub, as one websocket sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kbridge.hub.hub import Hub
from kbridge.wire.message import Buffer, Channel, Message
from kbridge.wire.zmq import message, split

__all__ = ["HubChannel"]


class HubChannel:
    """One channel of a kernel that many websockets share.

    It has what Jupyter Server's connections use of a `ZMQStream`, so that a `Session` can send on
    it.

    Parameters
    ----------
    hub : Hub
        Whose channel it is.
    channel : Channel
        Which.
    submit : callable
        Takes what is sent on it.

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
        """Whether this websocket has left it."""
        return not self._open

    def close(self, linger: int | None = None) -> None:  # noqa: ARG002  # as a ZMQStream has it
        """Leave it; the hub's socket stays open for the others."""
        self._open = False

    def flush(self) -> None:
        """Take in all that has arrived for it."""
        self._hub.drain()

    def send_multipart(self, msg: Sequence[Buffer], *_flags: Any, **_how: Any) -> None:
        """Send a message, given as it goes over ZeroMQ; it is signed anew.

        Flags and copying are ZeroMQ's business, and are not looked at.

        Raises
        ------
        KernelMessageError
            If the parts are no message.
        InvalidMessage
            If the kernel could not take it.
        """
        if self._open:
            _, _, parts = split(list(msg))
            self._submit(message(Channel(self.channel), parts))
