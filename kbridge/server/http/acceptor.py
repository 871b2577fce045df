"""Taking connections from the operating system, without harm to those that are there already.

Tornado takes up to 128 a turn of the loop, and where no descriptor is left it fails once a turn,
with a traceback each, for as long as somebody waits. Here about one is taken a millisecond, so
that a flood of them leaves the loop to others in between: what waits to be taken costs nothing.
Where descriptors have run out, somebody is sent away, or nobody is taken for a while.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tornado.ioloop import IOLoop

from kbridge.flow.log_throttle import LogThrottle
from kbridge.flow.token_bucket import TokenBucket
from kbridge.kernels.lifecycle.descriptors import free_descriptors

__all__ = ["Acceptor", "raise_descriptor_limit"]

# Seconds for each connection, somewhat more than refusing one takes. Timers are late: what that
# has cost is made up for, up to so many at once.
_PAUSE = 0.001
_AT_ONCE = 2
# Seconds where descriptors have run out.
_LONG_PAUSE = 0.25
_SHED = 16
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Acceptor:
    """Accepts the connections of some sockets.

    Parameters
    ----------
    sockets : sequence of socket.socket
        They listen, and do not block.
    handle : callable
        Takes a new connection and its address.
    shed : callable
        Closes up to so many connections, and says how many.
    crowded : callable
        Whether to take nobody now.
    log : logging.Logger
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        handle: Callable[[socket.socket, Any], None],
        shed: Callable[[int], int],
        crowded: Callable[[], bool],
        log: logging.Logger,
    ) -> None:
        self._sockets = list(sockets)
        self._handle = handle
        self._shed = shed
        self._crowded = crowded
        self._log = log
        self._loop = asyncio.get_running_loop()  # its clock is monotonic, Tornado's is not
        self._handlers = IOLoop.current()
        self._throttle = LogThrottle()
        self._bucket = TokenBucket(_PAUSE, _AT_ONCE)
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        for sock in self._sockets:
            self._resume(sock)

    def charge(self, seconds: float) -> None:
        """Take the next connection this much later."""
        self._bucket.charge(seconds)

    def stop(self) -> None:
        """Close the sockets; may be called twice."""
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
        while self._bucket.ready(now) and not self._crowded():
            try:
                connection, address = sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(sock, _PAUSE if self._shed(_SHED) else _LONG_PAUSE)
                self._complain(error)
                return
            self._bucket.spend()
            self._handle(connection, address)
            if free_descriptors(quick=True) < _SHED:
                self._shed(_SHED)
        self._pause(sock, _PAUSE)

    def _complain(self, error: OSError) -> None:
        if count := self._throttle.record(self._loop.time()):
            self._log.error(
                "%d times no connection could be accepted: %s; see KbridgeApp.min_open_files_limit",
                count,
                error.strerror,
            )


def raise_descriptor_limit(wanted: int) -> int:
    """Allow this process up to `wanted` descriptors, as far as the hard limit allows.

    Returns
    -------
    int
        How many it may have; `sys.maxsize` where there is no limit, or no such thing.
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
    except (OSError, ValueError):  # macOS has another limit below the one that it shows
        return soft
    return target
