"""The close codes and reasons of websockets that servers and clients agree on.

After a close with `SERVICE_RESTART`, a client connects again, unless the reason is in
`KERNEL_ENDED`. A new reason thus never makes a client give up a kernel that runs. If the kernel has
ended nevertheless, the next handshake is answered with 404. The clients in JavaScript have copies
of these texts.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "GOING_AWAY",
    "KERNEL_ENDED",
    "KERNEL_SHUT_DOWN",
    "SERVER_RESTARTS",
    "SERVICE_RESTART",
    "TOO_BIG",
    "ends_kernel",
]

GOING_AWAY: Final = 1001
"""The server shuts down (RFC 6455, section 7.4.1)."""

TOO_BIG: Final = 1009
"""A message is larger than the server allows (RFC 6455, section 7.4.1)."""

SERVICE_RESTART: Final = 1012
"""The service behind the websocket has ended, or goes on elsewhere (IANA's registry)."""

SERVER_RESTARTS: Final = "the server is restarting"
"""The reason after which clients connect again at once: the kernel goes on, perhaps elsewhere."""

KERNEL_SHUT_DOWN: Final = "the kernel was shut down"

KERNEL_ENDED: Final = frozenset({KERNEL_SHUT_DOWN})
"""The reasons, with `SERVICE_RESTART`, that say that the kernel has ended for good."""


def ends_kernel(code: int | None, reason: str) -> bool:
    """Return True if the end of a websocket says that its kernel has ended for good."""
    return code == SERVICE_RESTART and reason in KERNEL_ENDED
