"""Layer 4: connection classes under the names of Jupyter Server; they use the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports

if TYPE_CHECKING:
    from kbridge.connection.abc import KernelWebsocketConnectionABC as KernelWebsocketConnectionABC
    from kbridge.connection.base import (
        BaseKernelWebsocketConnection as BaseKernelWebsocketConnection,
    )
    from kbridge.connection.channels import (
        ZMQChannelsWebsocketConnection as ZMQChannelsWebsocketConnection,
    )

__all__ = [
    "BaseKernelWebsocketConnection",
    "KernelWebsocketConnectionABC",
    "ZMQChannelsWebsocketConnection",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "BaseKernelWebsocketConnection": "kbridge.connection.base",
        "KernelWebsocketConnectionABC": "kbridge.connection.abc",
        "ZMQChannelsWebsocketConnection": "kbridge.connection.channels",
    },
)
