"""The addresses of a kernel, the maximum size of its messages, and identities of the bridge."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from kbridge.wire.connection_info import ConnectionInfo
from kbridge.wire.message import Channel

__all__ = ["MESSAGE_LIMIT", "Endpoints", "new_identity"]

# Bytes: a burst of 1 GiB, and the 64 MiB of a journal. ipykernel may join a burst into one message.
MESSAGE_LIMIT: Final = 1088 << 20
# The divisor of the limit for each channel: replies contain a help text or a history at most,
# input requests one line.
_DIVISORS: Final = {Channel.IOPUB: 1, Channel.SHELL: 16, Channel.CONTROL: 16, Channel.STDIN: 1024}


@dataclass(frozen=True, slots=True)
class Endpoints(ConnectionInfo):
    """A kernel's connection information, with the bridge's limit of message sizes.

    `Endpoints.from_connection_info` parses what `KernelManager.get_connection_info` or a connection
    file gives.

    Attributes
    ----------
    message_limit : int
        Bytes that one part of a message on iopub may have; other channels have a fraction of it.
    """

    message_limit: int = MESSAGE_LIMIT

    def limit(self, channel: Channel) -> int:
        """Return the bytes that one part of a message on a channel may have."""
        return max(1, self.message_limit // _DIVISORS[channel])


def new_identity() -> bytes:
    """Return an identity that no peer of a kernel has, or ever had.

    The same one is used on shell, control and stdin, because a kernel sends its input requests to
    the identity that sent the execute_request. If a kernel's ROUTER still knows an identity, it
    ignores a second peer with that identity for good, even if the first peer is dead and only its
    disconnection has not been processed yet.
    """
    return b"kbridge-" + secrets.token_hex(12).encode()
