"""The base class of websocket connections, as in jupyter_server."""

from __future__ import annotations

from typing import Any

from jupyter_client.session import Session
from tornado.websocket import WebSocketHandler
from traitlets import Float, Instance, Unicode, default
from traitlets.config import LoggingConfigurable

from kbridge.connection.abc import KernelWebsocketConnectionABC
from kbridge.connection.messages import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
    serialize_binary_message,
    serialize_msg_to_ws_v1,
)

__all__ = [
    "BaseKernelWebsocketConnection",
    "deserialize_binary_message",
    "deserialize_msg_from_ws_v1",
    "serialize_binary_message",
    "serialize_msg_to_ws_v1",
]


class BaseKernelWebsocketConnection(LoggingConfigurable):
    """A configurable base for classes that connect a kernel's websocket to its ZMQ sockets.

    Its `parent` is the kernel's manager, whose own parent is the manager of all kernels.
    """

    kernel_ws_protocol = Unicode(
        None,
        allow_none=True,
        config=True,
        help=(
            "The preferred websocket subprotocol. None: the newest that both sides support. "
            "An empty string: the legacy dialect, whatever the client offers."
        ),
    )

    kernel_info_timeout = Float(
        config=True,
        help="Seconds to wait for a kernel to answer; then its requests are sent nevertheless.",
    )

    session = Instance(
        Session, config=True, help="The session for messages that the bridge itself sends."
    )

    websocket_handler = Instance(WebSocketHandler, help="The websocket.")

    @default("kernel_info_timeout")
    def _default_kernel_info_timeout(self) -> float:
        return float(getattr(self.multi_kernel_manager, "kernel_info_timeout", 60.0))

    @default("session")
    def _default_session(self) -> Session:
        return Session(config=self.config)

    @property
    def kernel_manager(self) -> Any:
        """The manager of the kernel."""
        return self.parent

    @property
    def multi_kernel_manager(self) -> Any:
        """The manager of all kernels."""
        return getattr(self.kernel_manager, "parent", None)

    @property
    def kernel_id(self) -> str:
        """The kernel's id."""
        return str(self.kernel_manager.kernel_id)

    @property
    def session_id(self) -> str:
        """The session id, with which the client can resume."""
        return str(self.session.session)

    async def connect(self) -> None:
        """Connect to the kernel."""
        raise NotImplementedError

    async def disconnect(self) -> None:
        """Disconnect from the kernel."""
        raise NotImplementedError

    def handle_incoming_message(self, incoming_msg: str | bytes) -> Any:
        """Take the message of a websocket frame."""
        raise NotImplementedError

    def handle_outgoing_message(self, stream: str, outgoing_msg: list[Any]) -> None:
        """Take a message of the kernel."""
        raise NotImplementedError


KernelWebsocketConnectionABC.register(BaseKernelWebsocketConnection)
