"""Sockets: the links to kernels and to clients, and the only code that uses these."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports

if TYPE_CHECKING:
    from kbridge.link.choice import LinkKind as LinkKind
    from kbridge.link.client import StreamClient as StreamClient
    from kbridge.link.endpoints import Endpoints as Endpoints
    from kbridge.link.interfaces import ClientLink as ClientLink
    from kbridge.link.interfaces import KernelEvents as KernelEvents
    from kbridge.link.interfaces import KernelSockets as KernelSockets
    from kbridge.link.memory import MemoryClient as MemoryClient
    from kbridge.link.memory import MemoryKernel as MemoryKernel
    from kbridge.link.pyzmq.link import KernelLink as KernelLink
    from kbridge.link.pyzmq.link import PyzmqLink as PyzmqLink
    from kbridge.link.zmtp.link import ZmtpLink as ZmtpLink

__all__ = [
    "ClientLink",
    "Endpoints",
    "KernelEvents",
    "KernelLink",
    "KernelSockets",
    "LinkKind",
    "MemoryClient",
    "MemoryKernel",
    "PyzmqLink",
    "StreamClient",
    "ZmtpLink",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "ClientLink": "kbridge.link.interfaces",
        "Endpoints": "kbridge.link.endpoints",
        "KernelEvents": "kbridge.link.interfaces",
        "KernelLink": "kbridge.link.pyzmq.link",
        "KernelSockets": "kbridge.link.interfaces",
        "LinkKind": "kbridge.link.choice",
        "MemoryClient": "kbridge.link.memory",
        "MemoryKernel": "kbridge.link.memory",
        "PyzmqLink": "kbridge.link.pyzmq.link",
        "StreamClient": "kbridge.link.client",
        "ZmtpLink": "kbridge.link.zmtp.link",
    },
)
