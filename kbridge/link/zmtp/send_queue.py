"""The messages of one connection that the operating system has not accepted yet.

If a connection breaks when a part of a message was sent, the peer has dropped that part, so the
message is sent again as a whole over the next connection. Messages that the operating system has
accepted as a whole are not sent again: the peer may have handled them.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from kbridge.wire.message import Buffer
from kbridge.wire.offsets import nbytes

__all__ = ["SendQueue"]

_PIECES: Final = 64  # of one call; the operating system takes at most 1,024
_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    pieces: Sequence[Buffer]
    size: int
    lasting: bool  # False for a command, which belongs to one connection


class SendQueue:
    """A queue of messages and commands.

    Attributes
    ----------
    size : int
        Bytes that are not sent yet.
    """

    __slots__ = ("_entries", "_sent", "size")

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._sent = 0  # bytes of the first entry
        self.size = 0

    @property
    def has_command(self) -> bool:
        """True if a command waits, which is then the first or the second entry."""
        return any(not entry.lasting for entry in islice(self._entries, 2))

    def append(self, pieces: Sequence[Buffer], size: int, sent: int = 0) -> None:
        """Add a message; `sent` bytes of it were sent already, if it is the only one."""
        if sent:
            assert not self._entries
            self._sent = sent
        self._entries.append(_Entry(pieces, size, lasting=True))
        self.size += size - sent

    def insert(self, command: bytes) -> None:
        """Add a command before all messages of which nothing was sent."""
        entry = _Entry((command,), len(command), lasting=False)
        self._entries.insert(1 if self._sent else 0, entry)
        self.size += entry.size

    def rewind(self) -> None:
        """Start the first message again, and forget the commands: the connection is gone."""
        self._sent = 0
        self._entries = deque(entry for entry in self._entries if entry.lasting)
        self.size = sum(entry.size for entry in self._entries)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._sent = self.size = 0

    def send(self, sock: socket.socket) -> bool:
        """Send what the operating system accepts; return True if the queue is empty now.

        Raises
        ------
        BlockingIOError
            If the operating system accepts nothing.
        OSError
            If the connection failed.
        """
        entries = self._entries
        while entries:
            pieces, offered = self._next_pieces()
            accepted = sock.sendmsg(pieces)
            self.size -= accepted
            sent = self._sent + accepted
            while entries and sent >= entries[0].size:
                sent -= entries.popleft().size
            self._sent = sent
            if accepted < offered:
                return False
        return True

    def _next_pieces(self) -> tuple[list[Buffer], int]:
        """Return the next pieces, of one or of several messages, and the number of their bytes."""
        chosen: list[Buffer] = []
        offered = 0
        skip = self._sent
        for entry in self._entries:
            for piece in entry.pieces:
                size = nbytes(piece)
                if skip >= size:
                    skip -= size
                    continue
                chosen.append(memoryview(piece).cast("B")[skip:] if skip else piece)
                offered += size - skip
                skip = 0
                if len(chosen) == _PIECES or offered >= _BYTES:
                    return chosen, offered
        return chosen, offered
