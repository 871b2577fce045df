"""Accepts connections at a bounded rate.

Tornado accepts up to 128 connections per turn of the event loop. When no file descriptor is left
it fails once per turn, with a traceback each, for as long as a client waits. Here about one
connection is accepted per millisecond, so that a flood of connections leaves the loop to other
clients; connections that wait in the kernel's queue cost nothing. When descriptors run out, the
oldest unauthenticated connections are closed, or accepting pauses.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Sequence

from tornado.ioloop import IOLoop

from kbridge.flow.log_throttle import LogThrottle
from kbridge.flow.token_bucket import TokenBucket
from kbridge.kernels.lifecycle.descriptors import free_descriptors
from kbridge.server.http.admission import Admission

__all__ = ["Acceptor", "acceptor_rate", "raise_descriptor_limit"]

# Seconds per connection, somewhat more than refusing a request takes. Timers fire late; the burst
# compensates.
_INTERVAL = 0.001
_BURST = 2
# Seconds to pause when descriptors have run out.
_LONG_PAUSE = 0.25
# Connections to close at once when descriptors have run out.
_CLOSED_AT_ONCE = 16
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def acceptor_rate() -> TokenBucket:
    """Return the rate at which connections are accepted."""
    return TokenBucket(_INTERVAL, _BURST)


class Acceptor:
    """Accepts the connections of listening sockets.

    Parameters
    ----------
    sockets : sequence of socket.socket
        Listening, non-blocking sockets.
    admission : Admission
        Takes over the connections.
    rate : TokenBucket
        The rate of new connections; charging it delays the next one.
    log : logging.Logger
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        admission: Admission,
        rate: TokenBucket,
        log: logging.Logger,
    ) -> None:
        self._sockets = list(sockets)
        self._admission = admission
        self._rate = rate
        self._log = log
        self._loop = asyncio.get_running_loop()  # its clock is monotonic, Tornado's is not
        self._handlers = IOLoop.current()
        self._throttle = LogThrottle()
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        for sock in self._sockets:
            self._resume(sock)

    def stop(self) -> None:
        """Close the listening sockets; a second call has no effect."""
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            timer = self._timers.pop(sock, None)
            if timer is None:
                self._handlers.remove_handler(sock)
            else:
                timer.cancel()
            sock.close()

    def _resume(self, sock: socket.socket) -> None:
        self._timers.pop(sock, None)
        self._handlers.add_handler(sock, self._accept, IOLoop.READ)

    def _pause(self, sock: socket.socket, seconds: float) -> None:
        self._handlers.remove_handler(sock)
        self._timers[sock] = self._loop.call_later(seconds, self._resume, sock)

    def _accept(self, sock: socket.socket, _events: int) -> None:
        now = self._loop.time()
        while self._rate.ready(now) and not self._admission.busy:
            try:
                connection, address = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                closed = self._admission.close_oldest(_CLOSED_AT_ONCE)
                self._pause(sock, _INTERVAL if closed else _LONG_PAUSE)
                self._log_failure(error)
                return
            self._rate.spend()
            self._admission.admit(connection, address)
            if free_descriptors(quick=True) < _CLOSED_AT_ONCE:
                self._admission.close_oldest(_CLOSED_AT_ONCE)
        self._pause(sock, _INTERVAL)

    def _log_failure(self, error: OSError) -> None:
        if count := self._throttle.record(self._loop.time()):
            self._log.error(
                "cannot accept connections (%d failures): %s; see KbridgeApp.min_open_files_limit",
                count,
                error.strerror,
            )


def raise_descriptor_limit(wanted: int) -> int:
    """Raise this process's limit of file descriptors to `wanted`, as far as the hard limit allows.

    Returns
    -------
    int
        The limit now; `sys.maxsize` if there is none, or on Windows.
    """
    try:
        import resource
    except ImportError:  # Windows
        return sys.maxsize
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if target <= soft:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError):  # macOS has another limit, below the one that it reports
        return soft
    return target
