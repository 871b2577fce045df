"""Layer 3: the hubs, one per kernel.

`Hub` is the public face. `kbridge.hub.kernel` connects to the kernel, `kbridge.hub.broadcast`
delivers its output to websockets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports

if TYPE_CHECKING:
    from kbridge.hub.broadcast.cursor import Attachment as Attachment
    from kbridge.hub.broadcast.cursor import Cursor as Cursor
    from kbridge.hub.clock import Clock as Clock
    from kbridge.hub.context import HubEnvironment as HubEnvironment
    from kbridge.hub.events import HubObserver as HubObserver
    from kbridge.hub.events import StatusListener as StatusListener
    from kbridge.hub.hub import Hub as Hub
    from kbridge.hub.settings import HubSettings as HubSettings
    from kbridge.hub.table import HubTable as HubTable

__all__ = [
    "Attachment",
    "Clock",
    "Cursor",
    "Hub",
    "HubEnvironment",
    "HubObserver",
    "HubSettings",
    "HubTable",
    "StatusListener",
]

__getattr__, __dir__ = exports(
    __name__,
    {
        "Attachment": "kbridge.hub.broadcast.cursor",
        "Cursor": "kbridge.hub.broadcast.cursor",
        "Clock": "kbridge.hub.clock",
        "Hub": "kbridge.hub.hub",
        "HubEnvironment": "kbridge.hub.context",
        "HubObserver": "kbridge.hub.events",
        "StatusListener": "kbridge.hub.events",
        "HubSettings": "kbridge.hub.settings",
        "HubTable": "kbridge.hub.table",
    },
)
