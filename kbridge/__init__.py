"""A bridge between Jupyter frontends, which speak websocket, and kernels, which speak ZeroMQ.

docs/api.md lists the public names. Importing this package, `kbridge.hub`, `kbridge.link`,
`kbridge.connection` or `kbridge.wire` loads nothing else: each public name is loaded when it is
first used, so that a start stays short.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports
from kbridge._version import __version__

if TYPE_CHECKING:
    from kbridge.errors import KbridgeError as KbridgeError
    from kbridge.hub.hub import Hub as Hub
    from kbridge.hub.settings import HubSettings as HubSettings
    from kbridge.hub.table import HubTable as HubTable

__all__ = ["Hub", "HubSettings", "HubTable", "KbridgeError", "__version__"]

__getattr__ = exports(
    __name__,
    {
        "Hub": "kbridge.hub.hub",
        "HubSettings": "kbridge.hub.settings",
        "HubTable": "kbridge.hub.table",
        "KbridgeError": "kbridge.errors",
    },
)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Tell Jupyter Server where the extension is."""
    return [{"module": "kbridge.jupyter"}]
