"""Where a connection waits, outside of Tornado, until the head of its request is whole.

Each piece of a head that comes wakes Tornado's reader, 30 to 40 us, and asyncio serves all who have
sent one in the same turn: five hundred who drip would cost everybody else 15 ms a turn. Here

- all who wait are one descriptor for the loop, an epoll of our own, and a turn looks at a few of
  those who have sent something. The kernel keeps the others, in the order of their coming;
- what comes is read, once, and Tornado is given it later: a look costs what is new, in however
  many pieces a head comes. (Bytes that are only peeked at are copied again by each look, and fill
  up the kernel's buffer, so that the end of a long head would never come.)
- whole requests go in one by one, so far apart that refusing them leaves the loop to others. Who
  turns out to have the token has not used up anybody's time.
"""

from __future__ import annotations

import asyncio
import enum
import select
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tornado.ioloop import IOLoop
from tornado.iostream import IOStream

from kbridge.flow.token_bucket import TokenBucket

__all__ = ["LOOKS", "Lobby", "ReadAhead"]

LOOKS: Final = 32
"""How many are looked at in one turn of the loop."""

# Seconds. A look takes 5 us, and a turn of the loop for the sake of it as long as several: looking
# takes a sixth of the loop at the most.
_LOOK: Final = 0.001 / LOOKS
_TURN: Final = 8
# Refusing a request takes a millisecond. One that takes more is charged for, see `Lobby.charge`.
_REQUEST: Final = 0.003
# What Tornado takes for the end of a head, without the carriage return that may be before it.
_ENDS: Final = (b"\n\r\n", b"\n\n")
_OVERLAP: Final = 2
# Bytes that one look reads: hardly a head is longer, and all looks of a turn together are quick.
_PIECE: Final = 4 << 10
# What IOStream reads at once: whatever was read ahead is the first thing that it reads, whole.
_CHUNK: Final = 64 << 10


class ReadAhead(socket.socket):
    """A socket of which something was read before its owner asked.

    Attributes
    ----------
    ahead : bytearray
        What `recv_into` gives first.
    """

    __slots__ = ("ahead",)

    def __init__(
        self, family: int = -1, kind: int = -1, proto: int = -1, fileno: int | None = None
    ) -> None:
        super().__init__(family, kind, proto, fileno)
        self.ahead = bytearray()

    @classmethod
    def take_over(cls, sock: socket.socket) -> ReadAhead:
        """Go on with a connection; `sock` is as if it was closed."""
        return cls(sock.family, sock.type, sock.proto, sock.detach())

    def read_ahead(self, room: memoryview) -> int:
        """Read into `room` and keep it; the number of bytes, 0 at the end."""
        count = super().recv_into(room)
        self.ahead += room[:count]
        return count

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        """Read, as of any socket."""
        if not self.ahead:
            return super().recv_into(buffer, nbytes, flags)
        with memoryview(buffer) as view:
            count = min(nbytes or len(view), len(view), len(self.ahead))
            view[:count] = self.ahead[:count]
        del self.ahead[:count]
        return count


class _Head(enum.Enum):
    BEGUN = enum.auto()
    WHOLE = enum.auto()  # or too long: Tornado says so
    GONE = enum.auto()


@dataclass(slots=True, eq=False)
class _Visitor:
    stream: IOStream
    sock: ReadAhead
    address: Any


class Lobby:
    """The connections of one server whose requests have not come whole.

    Parameters
    ----------
    max_header_size : int
        Bytes of a head after which nobody waits for its end.
    enter : callable
        Takes a stream and its address when there is something to be answered.
    hung_up : callable
        Is told of a stream that has ended before that; it is closed.
    """

    def __init__(
        self,
        max_header_size: int,
        enter: Callable[[IOStream, Any], None],
        hung_up: Callable[[IOStream], None],
    ) -> None:
        self._most = min(max_header_size + 1, _CHUNK)
        self._enter = enter
        self._hung_up = hung_up
        self._loop = asyncio.get_running_loop()  # its clock is monotonic, Tornado's is not
        self._handlers = IOLoop.current()
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._room = memoryview(bytearray(_PIECE))
        self._waiting: dict[int, _Visitor] = {}
        self._whole: deque[_Visitor] = deque()
        self._last: IOStream | None = None  # who went in last, unless it was let in
        self._looking = TokenBucket(_LOOK, LOOKS)
        self._entering = TokenBucket(_REQUEST, 1)
        self._next_look: asyncio.TimerHandle | None = None
        self._next_entry: asyncio.TimerHandle | None = None
        self._handlers.add_handler(self._fd, self._look, IOLoop.READ)

    @staticmethod
    def available() -> bool:
        """Whether the operating system has what it takes: Linux does."""
        return hasattr(select, "epoll")

    @property
    def crowded(self) -> bool:
        """Whether whole requests wait, which nobody new should push out."""
        return bool(self._whole)

    def statistics(self) -> dict[str, int]:
        """How many there are of each kind."""
        return {"waiting": len(self._waiting), "whole": len(self._whole)}

    def came(self, stream: IOStream, sock: ReadAhead, address: Any) -> None:
        """Take a new connection; in most cases its request is there already."""
        visitor = _Visitor(stream, sock, address)
        head = self._read(sock)
        if head is _Head.BEGUN:
            self._waiting[sock.fileno()] = visitor
            self._epoll.register(sock, select.EPOLLIN)
        else:
            self._leaves(visitor, head)

    def left(self, stream: IOStream) -> None:
        """Forget a connection that is about to be closed; it may have gone in long ago."""
        if stream.closed():
            return
        fd = stream.socket.fileno()
        visitor = self._waiting.get(fd)
        if visitor is not None and visitor.stream is stream:
            self._forget(fd)
        # Those in `_whole` are passed over when their turn comes.

    def let_in(self, stream: IOStream) -> None:
        """Note that a client has shown the token: the next need not wait for this one's sake."""
        if stream is self._last:
            self._last = None
            self._entering.undo()
            self._go_in()

    def charge(self, seconds: float) -> None:
        """Let the next request in this much later: one before it was expensive."""
        self._entering.charge(seconds)

    def close(self) -> None:
        """Close all who wait; may be called twice."""
        if self._epoll.closed:
            return
        if self._next_look is None:
            self._handlers.remove_handler(self._fd)
        else:
            self._next_look.cancel()
        visitors = [*self._waiting.values(), *self._whole]
        self._waiting.clear()
        self._whole.clear()
        self._go_in()  # nobody; its timer ends
        self._epoll.close()
        for visitor in visitors:
            self._end(visitor)

    def _look(self, _fd: int, _events: int) -> None:
        """Look at some who have sent something; where there are more, the loop calls again."""
        news = self._epoll.poll(0, LOOKS)
        for fd, _ in news:
            visitor = self._waiting[fd]
            head = self._read(visitor.sock)
            if head is not _Head.BEGUN:
                self._forget(fd)
                self._leaves(visitor, head)
        now = self._loop.time()
        self._looking.spend(len(news) + _TURN)
        if not self._looking.ready(now):
            self._handlers.remove_handler(self._fd)
            self._next_look = self._loop.call_later(self._looking.delay(now), self._look_on)

    def _look_on(self) -> None:
        self._next_look = None
        self._handlers.add_handler(self._fd, self._look, IOLoop.READ)

    def _read(self, sock: ReadAhead) -> _Head:
        try:
            count = sock.read_ahead(self._room[: self._most - len(sock.ahead)])
        except BlockingIOError:
            return _Head.BEGUN
        except OSError:
            count = 0
        if not count:
            return _Head.GONE
        begin = max(0, len(sock.ahead) - count - _OVERLAP)
        ended = any(sock.ahead.find(end, begin) >= 0 for end in _ENDS)
        return _Head.WHOLE if ended or len(sock.ahead) >= self._most else _Head.BEGUN

    def _forget(self, fd: int) -> None:
        # Not left to the closing: while a process is being started, it may hold a copy.
        self._epoll.unregister(fd)
        del self._waiting[fd]

    def _leaves(self, visitor: _Visitor, head: _Head) -> None:
        if head is _Head.GONE:
            self._end(visitor)
        else:
            self._whole.append(visitor)
            self._go_in()

    def _end(self, visitor: _Visitor) -> None:
        visitor.stream.close()
        self._hung_up(visitor.stream)

    def _go_in(self) -> None:
        """Let in those whose turn it is, and come back for the others."""
        if self._next_entry is not None:
            self._next_entry.cancel()
            self._next_entry = None
        now = self._loop.time()
        while self._whole and self._entering.ready(now):
            visitor = self._whole.popleft()
            if not visitor.stream.closed():
                self._entering.spend()
                self._last = visitor.stream
                self._enter(visitor.stream, visitor.address)
        if self._whole:
            self._next_entry = self._loop.call_later(self._entering.delay(now), self._go_in)
