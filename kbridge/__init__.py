"""A bridge between Jupyter frontends, which use websockets, and kernels, which use ZeroMQ.

The names below are public, and so are those of the packages in docs/api.md; all other modules are
internal (docs/stability.md). Importing `kbridge` loads nothing else: each name is imported when it
is first used.

Hub
    The sockets, the output and the websockets of one kernel.
HubSettings
    The settings of hubs, a frozen dataclass.
HubTable
    The hubs of a process.
KbridgeError
    The base class of all errors.
errors
    The module with all error classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbridge._lazy import exports
from kbridge._version import __version__

if TYPE_CHECKING:
    from kbridge import errors as errors
    from kbridge.errors import KbridgeError as KbridgeError
    from kbridge.hub.hub import Hub as Hub
    from kbridge.hub.settings import HubSettings as HubSettings
    from kbridge.hub.table import HubTable as HubTable

__all__ = ["Hub", "HubSettings", "HubTable", "KbridgeError", "__version__", "errors"]

__getattr__, __dir__ = exports(
    __name__,
    {
        "Hub": "kbridge.hub.hub",
        "HubSettings": "kbridge.hub.settings",
        "HubTable": "kbridge.hub.table",
        "KbridgeError": "kbridge.errors",
        "errors": "kbridge.errors",
    },
)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Return where the Jupyter Server extension is, for Jupyter Server."""
    return [{"module": "kbridge.jupyter"}]
