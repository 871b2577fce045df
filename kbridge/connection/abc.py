"""The interface of a kernel's websocket connection, as in jupyter_server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["KernelWebsocketConnectionABC"]


class KernelWebsocketConnectionABC(ABC):
    """The interface of the class that connects one websocket to one kernel.

    Attributes
    ----------
    websocket_handler : tornado.websocket.WebSocketHandler
        The websocket.
    """

    websocket_handler: Any

    @abstractmethod
    async def connect(self) -> None:
        """Connect the websocket to the kernel."""

    @abstractmethod
    async def disconnect(self) -> None:
        """Disconnect the websocket from the kernel."""

    @abstractmethod
    def handle_incoming_message(self, incoming_msg: str | bytes) -> Any:
        """Send the message of a websocket frame to the kernel."""

    @abstractmethod
    def handle_outgoing_message(self, stream: str, outgoing_msg: list[Any]) -> None:
        """Send a message of the kernel over the websocket."""
