"""Create and configure ZeroMQ sockets to kernels."""

from __future__ import annotations

from typing import Final

import zmq

from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel

__all__ = ["configure", "context", "make"]

# Requests that ZeroMQ may queue for a kernel that does not read. Small, because ZeroMQ counts
# messages and not bytes; further requests wait in the hub's outbox, which counts bytes.
_SEND_HWM: Final = 64
_RECONNECT_MS: Final = 30

_context: zmq.Context[zmq.Socket[bytes]] | None = None


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """Return the ZeroMQ context that all links share; created at the first call."""
    global _context  # this module owns it
    if _context is None or _context.closed:
        _context = zmq.Context()
        # ZeroMQ's default of 1,023 sockets would be enough for about 170 kernels only.
        _context.max_sockets = _context.get(zmq.SOCKET_LIMIT)
    return _context


def make(channel: Channel, endpoints: Endpoints, identity: bytes = b"") -> zmq.Socket[bytes]:
    """Return a socket for a channel of a kernel, not connected yet."""
    socket = context().socket(zmq.SUB if channel is Channel.IOPUB else zmq.DEALER)
    try:
        configure(socket, endpoints)
        # libzmq allocates this much before a signature is verified, for any peer on that port.
        socket.maxmsgsize = endpoints.limit(channel)
        socket.rcvhwm = 0  # a full SUB drops messages; this one is always drained
        socket.sndhwm = _SEND_HWM
        socket.reconnect_ivl = _RECONNECT_MS
        if identity:
            socket.identity = identity
    except BaseException:
        socket.close(linger=0)
        raise
    return socket


def configure(socket: zmq.Socket[bytes], endpoints: Endpoints) -> None:
    """Set the options that the address and the encryption of a kernel need."""
    socket.linger = 0
    if ":" in endpoints.ip and endpoints.transport == "tcp":
        socket.ipv6 = True
    if endpoints.curve is not None:
        socket.curve_publickey, socket.curve_secretkey = endpoints.curve
        socket.curve_serverkey = endpoints.curve[0]
