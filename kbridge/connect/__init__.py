"""Layer 3: connection files, ports and tunnels.

The names are those of `jupyter_client.connect` and `ipykernel.connect`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kbridge.connect.files import KernelConnectionInfo, port_names, write_connection_file
from kbridge.connect.find import find_connection_file
from kbridge.connect.in_kernel import connect_qtconsole, get_connection_file, get_connection_info
from kbridge.connect.methods import ConnectionFileMethods, channel_socket_types
from kbridge.connect.mixin import ConnectionFileMixin
from kbridge.connect.ports import LocalPortCache

if TYPE_CHECKING:
    from kbridge.tunnel.tunnel import SshOptions, Tunnel, tunnel_to_kernel

__all__ = [
    "ConnectionFileMethods",
    "ConnectionFileMixin",
    "KernelConnectionInfo",
    "LocalPortCache",
    "SshOptions",
    "Tunnel",
    "channel_socket_types",
    "connect_qtconsole",
    "find_connection_file",
    "get_connection_file",
    "get_connection_info",
    "port_names",
    "tunnel_to_kernel",
    "write_connection_file",
]


def __getattr__(name: str) -> Any:
    # Most callers need a file or a port, and no ssh.
    if name in {"SshOptions", "Tunnel", "tunnel_to_kernel"}:
        from kbridge.tunnel import tunnel

        return getattr(tunnel, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
