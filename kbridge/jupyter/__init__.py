"""Layer 5: kbridge in Jupyter Server, as an extension or as a connection class to configure.

::

    jupyter lab                                     # the extension is on if kbridge is installed
    jupyter lab --KbridgeExtension.enabled=False    # off
    jupyter lab --ServerApp.kernel_websocket_connection_class=\
kbridge.jupyter.ZMQChannelsWebsocketConnection      # the same without the extension
"""

from __future__ import annotations

try:
    import jupyter_server  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "kbridge.jupyter needs Jupyter Server: pip install '.[jupyter]' in a clone of kbridge"
    ) from error

from kbridge import _jupyter_server_extension_points
from kbridge.jupyter.supported import load_nothing, reason_against

if not reason_against():
    from kbridge.jupyter.connection import ZMQChannelsWebsocketConnection
    from kbridge.jupyter.extension import KbridgeExtension, link, load

    _link_jupyter_server_extension = link
    _load_jupyter_server_extension = load
else:
    # The modules above need parts that older versions lack.
    _load_jupyter_server_extension = load_nothing

__all__ = [
    "KbridgeExtension",
    "ZMQChannelsWebsocketConnection",
    "_jupyter_server_extension_points",
    "_link_jupyter_server_extension",
    "_load_jupyter_server_extension",
]


def __getattr__(name: str) -> object:
    public = name in __all__ and not name.startswith("_")
    if public and (reason := reason_against()):
        raise ImportError(f"kbridge.jupyter.{name} is {reason}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
