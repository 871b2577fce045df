"""A bridge between Jupyter frontends, which speak websocket, and kernels, which speak ZeroMQ.

Importing the package imports nothing else: the parts are imported by their own names
(`kbridge.hub`, `kbridge.wire`, ...), so that a start stays short.
"""

from kbridge._version import __version__

__all__ = ["__version__"]
