"""Receives output of kernels while their event loops are late.

A kernel's PUB drops output without a trace when nobody reads. An event loop that is blocked, or
that runs a long callback, reads nothing. One thread of the process then receives for it, into the
backlogs of the connections.

The thread waits in `poll` while all is quiet. After an event it looks at all connections every
20 ms, and receives for those that had bytes at an earlier look and were not read by the event loop
since. It runs while there are connections.

It needs the interpreter's lock, as any thread does. A call that keeps this lock for seconds, such
as that of a C library, keeps it from reading, too. A thread of libzmq does not need this lock.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterable
from typing import Final

from kbridge.link.zmtp.backlog import Backlog

__all__ = ["LateReader", "late_reader"]

_SUPPORTED: Final = hasattr(select, "poll")
_LOOK: Final = 0.02  # seconds between two looks
# TCP acknowledges late what nobody reads, so that a pause here slows down the kernel.
_LATE_LOOK: Final = 0.001  # seconds between two looks while an event loop is late
_LOOKS: Final = 20  # looks without an event until the thread waits for one


class LateReader:
    """Receives for the connections that were added; its methods are called by event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._backlogs: dict[int, Backlog] = {}  # by descriptor
        self._changed = False  # True if `_backlogs` is not what the thread looks at
        self._ends: tuple[socket.socket, socket.socket] | None = None  # wake the thread

    def add(self, backlog: Backlog) -> None:
        """Receive for a connection until `remove`."""
        if not _SUPPORTED:
            return
        with self._lock:
            self._backlogs[backlog.fileno()] = backlog
            self._changed = True
            if self._ends is not None:
                self._wake(self._ends[0])
                return
            try:
                self._ends = socket.socketpair()
            except OSError:  # no descriptor is free, so the event loop is alone
                return
            for end in self._ends:
                end.setblocking(False)
            run = threading.Thread(target=self._run, args=self._ends, daemon=True)
            run.name = "kbridge-late-reader"
            try:
                run.start()
            except RuntimeError:  # no thread is free; the next connection tries again
                self._close_ends(*self._ends)

    def remove(self, backlog: Backlog) -> None:
        """Do not receive for a connection; call it before `Backlog.close`.

        The operating system ends a connection only after a `poll` that uses it.
        """
        with self._lock:
            if self._backlogs.pop(backlog.fileno(), None) is not None and self._ends is not None:
                self._changed = True
                self._wake(self._ends[0])

    def forget(self) -> None:
        """Forget all connections: this process was forked, and has no such thread."""
        self._lock = threading.Lock()
        for backlog in self._backlogs.values():
            backlog.lock = threading.Lock()  # the thread may have had it
        self._backlogs.clear()
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def _close_ends(self, *ends: socket.socket) -> None:
        """Close these ends; another thread may be started."""
        if self._ends == ends:
            self._ends = None
        for end in ends:
            end.close()

    @staticmethod
    def _wake(end: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):  # it is about to wake
            end.send(b"\0")

    # -- in the thread ----------------------------------------------------------------------

    def _run(self, wake: socket.socket, woken: socket.socket) -> None:
        try:
            self._receive(wake, woken)
        finally:  # after an error, the next connection starts another thread
            with self._lock:
                self._close_ends(wake, woken)

    def _receive(self, wake: socket.socket, woken: socket.socket) -> None:
        """Receive until there are no connections."""
        backlogs: dict[int, Backlog] = {}
        poll = select.poll()
        seen: dict[int, int] = {}  # the reads of connections when they were last seen with bytes
        looks = eager = 0  # looks without an event that are left
        while True:
            with self._lock:
                if self._changed:
                    self._changed = False
                    backlogs, seen = dict(self._backlogs), {}
                    poll = _poll_of([woken.fileno(), *backlogs])
                if not backlogs:
                    self._close_ends(wake, woken)
                    return
            if looks:
                time.sleep(_LATE_LOOK if eager else _LOOK)
            found = [fd for fd, _ in poll.poll(0 if looks else None)]
            if woken.fileno() in found:
                found.remove(woken.fileno())
                woken.recv(4096)
            looks = _LOOKS if found else max(0, looks - 1)
            eager = max(0, eager - 1)
            for fd in found:
                backlog = backlogs[fd]
                if seen.get(fd) == backlog.reads:
                    if not backlog.collect_late():  # the owner has ended without closing it
                        self.remove(backlog)
                        backlog.close()
                    eager = _LOOKS
                seen[fd] = backlog.reads


def _poll_of(descriptors: Iterable[int]) -> select.poll:
    poll = select.poll()
    for fd in descriptors:
        poll.register(fd, select.POLLIN)
    return poll


late_reader: Final = LateReader()
"""The one of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=late_reader.forget)
