"""Layer 0: convert bytes to messages and back. Standard library only; no I/O, clock or async."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports

if TYPE_CHECKING:
    from kbridge.wire.dialects import LEGACY as LEGACY
    from kbridge.wire.dialects import V1 as V1
    from kbridge.wire.dialects import Dialect as Dialect
    from kbridge.wire.message import Channel as Channel
    from kbridge.wire.message import Message as Message
    from kbridge.wire.reader import FrameReader as FrameReader
    from kbridge.wire.signing import Signer as Signer

__all__ = [
    "LEGACY",
    "V1",
    "Channel",
    "Dialect",
    "FrameReader",
    "Message",
    "Signer",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "Channel": "kbridge.wire.message",
        "Dialect": "kbridge.wire.dialects",
        "FrameReader": "kbridge.wire.reader",
        "LEGACY": "kbridge.wire.dialects",
        "Message": "kbridge.wire.message",
        "Signer": "kbridge.wire.signing",
        "V1": "kbridge.wire.dialects",
    },
)
