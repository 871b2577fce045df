"""The end of a websocket whose input can no longer be read, because no frame can be told apart.

The peer may still be sending. Closing a socket that has unread input resets the connection, and a
reset discards what the peer has not read yet: the close frame, with its code and reason. So only
the writing side is closed, and input is discarded until the peer closes its side.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kbridge.link.transport import SocketTransport

__all__ = ["Linger"]

_SECONDS: Final = 2.0
_BYTES: Final = 64 << 20


class Linger:
    """Closes a transport when the peer has read everything, after 2 s, or after 64 MiB of input.

    Parameters
    ----------
    transport : SocketTransport
        An open transport, which may have unwritten data. From now on, the event loop calls this
        object for it.
    ended : asyncio.Future
        Done when the connection has ended.
    """

    __slots__ = ("_discarded", "_ended", "_timer", "_transport")

    def __init__(self, transport: SocketTransport, ended: asyncio.Future[None]) -> None:
        self._transport = transport
        self._ended = ended
        self._discarded = 0
        self._timer = asyncio.get_running_loop().call_later(_SECONDS, transport.close)
        transport.attach(self)
        if not transport.writing:
            transport.write_eof()

    def on_input(self) -> None:
        """Discard input (`TransportEvents`)."""
        self._discarded += len(self._transport.read())
        if self._discarded > _BYTES:
            self._transport.close()

    def on_room(self) -> None:
        """Continue to write (`TransportEvents`)."""
        if self._transport.flush():
            self._transport.write_eof()

    def on_closed(self) -> None:
        """Note that the connection has ended (`TransportEvents`)."""
        self._timer.cancel()
        if not self._ended.done():
            self._ended.set_result(None)
