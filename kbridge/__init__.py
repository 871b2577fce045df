"""A bridge between Jupyter frontends, which speak websocket, and kernels, which speak ZeroMQ.

Importing the package imports nothing else: the parts are imported by their own names
(`kbridge.hub`, `kbridge.wire`, ...), so that a start stays short.
"""

from kbridge._version import __version__

__all__ = ["__version__"]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    """Tell Jupyter Server where the extension is."""
    return [{"module": "kbridge.jupyter"}]
