"""The websockets that this replica passes on to others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kbridge.kernels.registry.models import ClusterKernel
from kbridge.wire.closing import SERVER_RESTARTS, SERVICE_RESTART

__all__ = ["PassedWebsocket", "Relays"]


class PassedWebsocket(Protocol):
    """A websocket that is passed on."""

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close the websocket of the client, and the connection to the other replica."""


class Relays:
    """Websockets by kernel, with the replica that each is connected to.

    Attributes
    ----------
    opened : int
        The number of websockets that were passed on so far.
    """

    def __init__(self) -> None:
        self.opened = 0
        self._by_kernel: dict[str, dict[PassedWebsocket, str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_kernel.values()))

    def add(self, websocket: PassedWebsocket, kernel_id: str, replica_id: str) -> None:
        """Add a websocket that is connected to a replica."""
        self.opened += 1
        self._by_kernel.setdefault(kernel_id, {})[websocket] = replica_id

    def discard(self, websocket: PassedWebsocket, kernel_id: str) -> None:
        """Remove a websocket that has ended; a second call has no effect."""
        websockets = self._by_kernel.get(kernel_id, {})
        websockets.pop(websocket, None)
        if not websockets:
            self._by_kernel.pop(kernel_id, None)

    def follow(self, changed: Iterable[ClusterKernel]) -> None:
        """Close the websockets of kernels that another replica serves now.

        The former owner may not know that, or not be able to close them: it was stopped, or its
        machine has no network.
        """
        for kernel in changed:
            for websocket, replica_id in list(self._by_kernel.get(kernel.kernel_id, {}).items()):
                if replica_id != kernel.replica_id:
                    websocket.close(SERVICE_RESTART, SERVER_RESTARTS)
