"""The addresses of a kernel, and the maximum size of its messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kbridge.wire.connection_info import ConnectionInfo
from kbridge.wire.message import Channel

__all__ = ["MESSAGE_LIMIT", "Endpoints"]

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
