"""The least that a kernel's websocket connection does.

As jupyter_server's class of the same name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["KernelWebsocketConnectionABC"]


class KernelWebsocketConnectionABC(ABC):
    """What a server needs of the class that bridges one websocket to one kernel.

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
        """Send what came over the websocket to the kernel's channel."""

    @abstractmethod
    def handle_outgoing_message(self, stream: str, outgoing_msg: list[Any]) -> None:
        """Send what the kernel said over the websocket."""
