"""A connection that the holder has, and the bytes of it that no bridge has taken."""

from __future__ import annotations

import _socket as socket  # `socket` itself takes another megabyte
import os

from kbridge.link.holder.header import START, TAKEN, consumed, read_header

__all__ = ["CLOSED", "FULL", "TORN", "Extent", "Held"]

# Flags of a connection.
CLOSED = "closed"  # the kernel has closed it; all its bytes are stored
FULL = "full"  # no more could be stored, so that the kernel may have dropped messages
TORN = "torn"  # it is not known which bytes the bridge had read


class Extent:
    """Bytes of a connection, from one position of the stream to another.

    Attributes
    ----------
    fd : int
        A memory file with a shared buffer, or a file.
    offset : int
        The place of the shared buffer; -1 for a file.
    start, end : int
        Positions; `end` is not known while a bridge receives into the buffer.
    full : bool
        True if no more could be stored behind these bytes, so that the kernel may have dropped
        messages. It is forgotten with them.
    """

    __slots__ = ("end", "fd", "full", "offset", "start")

    def __init__(self, fd: int, offset: int, start: int) -> None:
        self.fd = fd
        self.offset = offset
        self.start = self.end = start
        self.full = False

    @property
    def shared(self) -> bool:
        """True for a shared buffer."""
        return self.offset >= 0

    def write(self, data: memoryview) -> None:
        """Append bytes to a file; `end` grows with each part of them that is written."""
        while data:
            written = os.write(self.fd, data)
            self.end += written
            data = data[written:]


class Held:
    """A connection of a kernel."""

    __slots__ = ("_flags", "extents", "info", "sock")

    def __init__(self, fd: int, info: str) -> None:
        self.sock = socket.socket(fileno=fd)
        self.info = info
        self._flags: set[str] = set()
        self.extents: list[Extent] = []

    @property
    def ended(self) -> bool:
        """True if there is nothing more to read."""
        return bool(self._flags)

    @property
    def flags(self) -> list[str]:
        """The flags that the next bridge is told."""
        full = any(each.full for each in self.extents)
        return [*self._flags, *[FULL] * full]

    def end(self, flag: str) -> None:
        """Note that there is nothing more to read: `CLOSED` or `TORN`."""
        self._flags.add(flag)

    def fill(self) -> None:
        """Note that no more can be stored."""
        self.extents[-1].full = True

    def use(self, memory: int, offset: int) -> None:
        """Note that the bridge receives into this buffer from now on."""
        start = read_header(memory, offset)[START]
        self.extents.append(Extent(os.dup(memory), offset, start))

    def settle(self) -> None:
        """Find out where the bridge stopped reading, and forget what the journal's file has."""
        last = self.extents[-1]
        if not last.shared:
            return
        end = consumed(self.sock, last.fd, last.offset)
        if end is None:
            self.end(TORN)
            return
        last.end = end
        taken = read_header(last.fd, last.offset)[TAKEN]
        # The bridge may have ended before it had a notice that output is missing in the file.
        full = [each.end for each in self.extents[:-1] if each.full and each.end == taken]
        self.forget(min(full) - 1 if full else taken)

    def append(self, data: memoryview, directory: str) -> bool:
        """Store bytes that were read.

        Returns
        -------
        bool
            False if the disk is full. These bytes are then in memory, so that no message is torn.

        Raises
        ------
        OSError
            If there is no memory, either.
        """
        last = self.extents[-1]
        if last.shared:
            last = self._add(_open_file(directory))
        start = last.end
        try:
            last.write(data)
        except OSError:
            written = last.end - start
            self._add(os.memfd_create("kbridge-held")).write(data[written:])
            return False
        return True

    def _add(self, fd: int) -> Extent:
        """Add a file for the bytes after those that are stored."""
        self.extents.append(Extent(fd, -1, self.extents[-1].end))
        return self.extents[-1]

    def forget(self, position: int) -> None:
        """Forget bytes before a position; the last extent stays."""
        while len(self.extents) > 1 and self.extents[0].end <= position:
            os.close(self.extents.pop(0).fd)

    def close(self) -> None:
        """Close all descriptors."""
        self.sock.close()
        for extent in self.extents:
            os.close(extent.fd)


def _open_file(directory: str) -> int:
    """Open a file without a name, so that nothing is left when all its descriptors are closed."""
    if directory:
        try:
            return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_APPEND, 0o600)
        except OSError:
            pass
    return os.memfd_create("kbridge-held")
