"""What all sockets to kernels have in common."""

from __future__ import annotations

import secrets
from typing import Final

import zmq

from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel

__all__ = ["configure", "context", "make", "new_identity"]

# Requests that ZeroMQ may hold for a kernel that does not read. Small, because they are counted
# in messages and not in bytes: what is behind them waits where bytes are counted.
_SEND_HWM: Final = 64
_RECONNECT_MS: Final = 30

_context: zmq.Context[zmq.Socket[bytes]] | None = None


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """ZeroMQ's context, made when the first kernel is linked and shared by all."""
    global _context  # this module owns it
    if _context is None or _context.closed:
        _context = zmq.Context()
        # ZeroMQ's default of 1,023 sockets would end at some 170 kernels.
        _context.max_sockets = _context.get(zmq.SOCKET_LIMIT)
    return _context


def new_identity() -> bytes:
    """Return an identity that no other peer of a kernel has, nor ever had.

    One for shell, control and stdin: a kernel sends its input requests to the identity that sent
    the execute_request. A kernel's ROUTER ignores a second peer with an identity that it still
    knows, for good, even if the first is dead and only its end was not processed yet.
    """
    return b"kbridge-" + secrets.token_hex(12).encode()


def make(channel: Channel, endpoints: Endpoints, identity: bytes = b"") -> zmq.Socket[bytes]:
    """Return a socket for a channel of a kernel, to be connected."""
    socket = context().socket(zmq.SUB if channel is Channel.IOPUB else zmq.DEALER)
    try:
        configure(socket, endpoints)
        # Set aside before anything is verified, by whoever listens at that port.
        socket.maxmsgsize = endpoints.limit(channel)
        socket.rcvhwm = 0  # a SUB that is not drained loses messages; we always drain
        socket.sndhwm = _SEND_HWM
        socket.reconnect_ivl = _RECONNECT_MS
        if identity:
            socket.identity = identity
    except BaseException:
        socket.close(linger=0)
        raise
    return socket


def configure(socket: zmq.Socket[bytes], endpoints: Endpoints) -> None:
    """Prepare a socket for a kernel's address and for its cipher."""
    socket.linger = 0
    if ":" in endpoints.ip and endpoints.transport == "tcp":
        socket.ipv6 = True
    if endpoints.curve is not None:
        socket.curve_publickey, socket.curve_secretkey = endpoints.curve
        socket.curve_serverkey = endpoints.curve[0]
