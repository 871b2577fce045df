"""What has arrived, told by the peers themselves.

Every websocket peer answers a ping with the same payload, after the frames before it (RFC 6455,
section 5.5.3). So a ping that carries the sequence number of the last frame before it is answered
with an acknowledgement, by any browser. One is under way at a time for each websocket; the next
goes out with the first batch after the pong, or when nothing more is written, a moment later.

What was written and not acknowledged is bounded: it may all come twice. A peer that leaves its
pings unanswered for a while is written to all the same.

Only clients that can come back are pinged, those with a `session_id` or a `since`: the others could
not use what is known, and there are programs (Zed's client) that take a ping between two messages
for an error. Of these, what the operating system took counts as delivered.
"""

from __future__ import annotations

from typing import Final

from kbridge.hub.broadcast.client_sessions import Attachment
from kbridge.wire.frames import ping

__all__ = ["LATEST", "PATIENCE", "Acknowledgements"]

LATEST: Final = 0.25
"""Seconds after which what was written is asked about, when nothing more is written."""

PATIENCE: Final = 1.0
"""Seconds to wait for a pong before more than the window is written."""

_WINDOW: Final = 4 << 20  # bytes written and not acknowledged


class Acknowledgements:
    """Asks, and keeps `Attachment.delivered`.

    Parameters
    ----------
    origin : int
        Added to the journal's sequence numbers, so that the numbers of one bridge's life are not
        those of the next.
    enabled : bool
        If not, what the operating system took counts as delivered.
    """

    def __init__(self, origin: int, *, enabled: bool = True) -> None:
        self.origin = origin
        self.enabled = enabled

    def written(self, attachment: Attachment) -> None:
        """Note that all that was written has left the process."""
        if not (self.enabled and attachment.acknowledges):
            attachment.delivered = attachment.place

    def due(self, attachment: Attachment) -> bool:
        """Whether there is something to ask about, and nothing asked yet."""
        return (
            attachment.asked is None
            and self.enabled
            and attachment.acknowledges
            and attachment.delivered != attachment.place
        )

    def full(self, attachment: Attachment) -> bool:
        """Whether to wait for an acknowledgement before more is written."""
        return (
            attachment.asked is not None
            and not attachment.mute
            and attachment.place.nbytes - attachment.delivered.nbytes > _WINDOW
        )

    def ask(self, attachment: Attachment) -> bytes:
        """The ping to write behind all that was written; empty where none is due."""
        if attachment.asked is not None or not self.due(attachment):
            return b""
        attachment.asked = attachment.place
        return ping(self._payload(attachment))

    def heard(self, attachment: Attachment, payload: bytes) -> bool:
        """Take a pong; whether it has told something.

        A peer that had two pings to answer may answer the later one alone. So one that is not
        ours but empty, as a keepalive's is, only means that ours is to be sent anew.
        """
        if attachment.asked is None:
            return False
        if payload == self._payload(attachment):
            attachment.delivered = attachment.asked
        elif payload:
            return False
        attachment.asked = None
        attachment.mute = False
        return True

    def _payload(self, attachment: Attachment) -> bytes:
        assert attachment.asked is not None
        return b"%d" % (self.origin + attachment.asked.seq - 1)
