"""What all sockets to kernels have in common."""

from __future__ import annotations

import zmq

from kbridge.link.endpoints import Endpoints

__all__ = ["configure", "context"]

_context: zmq.Context[zmq.Socket[bytes]] | None = None


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """ZeroMQ's context, made when the first kernel is linked and shared by all."""
    global _context  # this module owns it
    if _context is None or _context.closed:
        _context = zmq.Context()
        # ZeroMQ's default of 1,023 sockets would end at some 170 kernels.
        _context.max_sockets = _context.get(zmq.SOCKET_LIMIT)
    return _context


def configure(socket: zmq.Socket[bytes], endpoints: Endpoints) -> None:
    """Prepare a socket for a kernel's address and for its cipher."""
    socket.linger = 0
    if ":" in endpoints.ip and endpoints.transport == "tcp":
        socket.ipv6 = True
    if endpoints.curve is not None:
        socket.curve_publickey, socket.curve_secretkey = endpoints.curve
        socket.curve_serverkey = endpoints.curve[0]
