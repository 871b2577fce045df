"""Copies the bytes of a websocket between a client and another server, in both directions.

Properties:

- the frames are not changed, so pings, pongs and acknowledgements pass from end to end;
- a side is not read while the other side has not taken the bytes before: at most one read of
  `transport.CHUNK` bytes waits per direction;
- if one side ends, the other side gets the bytes before the end, and then ends, too;
- the relay adds at most one frame: a close frame for the client, between two of the server.
"""

from __future__ import annotations

import asyncio
from typing import Final

from kbridge.link.interfaces import noop
from kbridge.link.linger import Linger
from kbridge.link.transport import SocketTransport
from kbridge.wire import frames
from kbridge.wire.closing import SERVER_RESTARTS, SERVICE_RESTART
from kbridge.wire.frame_edges import FrameEdges

__all__ = ["Relay"]

_CLOSING_SECONDS: Final = 2.0  # for the rest of a frame, before the close frame


class Relay:
    """Connects two transports until one of them ends.

    Parameters
    ----------
    client : SocketTransport
        A websocket after its handshake, whose client sends the requests.
    server : SocketTransport
        A websocket after its handshake, whose server answers them.

    Attributes
    ----------
    ended : asyncio.Future
        Done when both transports are closed.
    """

    __slots__ = ("_client", "_close_frame", "_edges", "_server", "_timer", "ended")

    def __init__(self, client: SocketTransport, server: SocketTransport) -> None:
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._edges = FrameEdges()  # in the bytes for the client
        self._close_frame = b""  # to send at the next edge; empty while the websocket is open
        self._timer: asyncio.TimerHandle | None = None
        self._client = _Side(self, client)
        self._server = _Side(self, server)
        for side, other in ((self._client, self._server), (self._server, self._client)):
            side.other = other
            side.transport.attach(side)
            # Nagle's algorithm with delayed acknowledgements adds 40 ms to every cell.
            side.transport.set_nodelay(True)

    def start(self) -> None:
        """Begin to copy."""
        self._client.transport.resume()
        self._server.transport.resume()

    @property
    def unsent_bytes(self) -> int:
        """Bytes that wait here, in both directions."""
        return self._client.transport.unsent_bytes + self._server.transport.unsent_bytes

    def close(self, code: int, reason: str) -> None:
        """Close the websocket of the client with a code; a second call has no effect.

        The close frame follows the current frame of the server, for which there are 2 s.
        """
        if self._close_frame or self.ended.done():
            return
        self._close_frame = frames.close(code, reason)
        if self._edges.at_edge:
            self._finish()
        else:
            self._timer = asyncio.get_running_loop().call_later(_CLOSING_SECONDS, self.abort)

    def abort(self) -> None:
        """Close both connections at once; may be called twice."""
        self._client.transport.close()
        self._server.transport.close()

    def forward(self, side: _Side, data: bytes) -> None:
        """Write data from one side to the other."""
        if side is self._server:
            if self._close_frame:
                data = data[: self._edges.skip_frame(data)]
            else:
                self._edges.skip(data)
        if not side.other.transport.write(data):
            side.transport.pause()
        if self._close_frame and self._edges.at_edge:
            self._finish()

    def side_closed(self, side: _Side) -> None:
        """End the other side: after its unsent data, if it can still be told apart."""
        other = side.other.transport
        if other.closed:
            self._on_end()
            return
        if side is self._server and self._edges.at_edge and not self._edges.closing:
            other.write(self._close_frame or frames.close(SERVICE_RESTART, SERVER_RESTARTS))
        self._linger(other)

    def _finish(self) -> None:
        """Send the close frame, and end both sides."""
        client, server = self._client.transport, self._server.transport
        if not self._edges.closing:
            client.write(self._close_frame)
        self._linger(client)
        server.attach(_Ended())
        server.close()

    def _linger(self, transport: SocketTransport) -> None:
        """Close a transport when its peer has read everything, at most 2 s from now."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.add_done_callback(lambda _: self._on_end())
        Linger(transport, ended)
        transport.resume()  # a paused transport does not notice that its peer has closed

    def _on_end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.ended.done():
            self.ended.set_result(None)


class _Side:
    """One of the two connections (`TransportEvents`)."""

    __slots__ = ("_relay", "other", "transport")

    other: _Side

    def __init__(self, relay: Relay, transport: SocketTransport) -> None:
        self._relay = relay
        self.transport = transport

    def on_input(self) -> None:
        data = self.transport.read()
        if data:
            self._relay.forward(self, data)

    def on_room(self) -> None:
        if self.transport.flush():
            self.other.transport.resume()

    def on_closed(self) -> None:
        self._relay.side_closed(self)


class _Ended:
    """The owner of a transport whose end was dealt with (`TransportEvents`)."""

    on_input = on_room = on_closed = staticmethod(noop)
