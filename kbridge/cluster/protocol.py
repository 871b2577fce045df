"""The names that replicas use in requests to each other. Light, because every server imports it."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

__all__ = [
    "CLIENT_ADDRESS",
    "CLIENT_ADMIN",
    "CLIENT_AUTH",
    "CLIENT_USER",
    "CLUSTER_SCHEME",
    "RESTART_SECONDS",
    "api_path",
]

CLUSTER_SCHEME: Final = "kbridge-cluster"
"""The scheme of the header Authorization with which a replica shows the secret."""

CLIENT_ADDRESS: Final = "Kbridge-Client-Address"
"""The header with the address of the client whose request is passed on."""

CLIENT_AUTH: Final = "Kbridge-Client-Auth"
"""The header that says how that client was authenticated, as an `AuthMethod`."""

CLIENT_USER: Final = "Kbridge-Client-User"
"""The header with the name of that client, percent-encoded; empty for the operator."""

CLIENT_ADMIN: Final = "Kbridge-Client-Admin"
"""The header that says whether that client reaches the kernels of all users: `true` or `false`."""

RESTART_SECONDS: Final = 600.0
"""Seconds to wait for a restart; the replica that serves the kernel has its own limits."""


def api_path(kernel_id: str, rest: str = "") -> str:
    """Return the path of a kernel behind the URL of a replica."""
    return f"api/kernels/{quote(kernel_id, safe='')}{rest}"
