"""A channel of the hub, as one websocket sees it."""

from __future__ import annotations

from kbridge.hub.hub import Hub
from kbridge.wire.message import Channel

__all__ = ["HubChannel"]


class HubChannel:
    """One channel of a kernel that many websockets share.

    Attributes
    ----------
    channel : str
        shell, iopub, stdin or control.
    """

    __slots__ = ("_hub", "_open", "channel")

    def __init__(self, hub: Hub, channel: Channel) -> None:
        self._hub = hub
        self._open = True
        self.channel = str(channel)

    def closed(self) -> bool:
        """Whether this websocket has left it."""
        return not self._open

    def close(self) -> None:
        """Leave it; the hub's socket stays open for the others."""
        self._open = False

    def flush(self) -> None:
        """Take in all that has arrived for it."""
        self._hub.drain()
