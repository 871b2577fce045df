"""A bridge in miniature, which a test kills: records from a connection to a file.

Arguments: the holder's socket, the file, the place where it dies, and after how many reads.
A record is its size in 4 bytes, then as many bytes. Records are appended to the file some reads
later, as a journal does it, and every write may be torn.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kbridge.flow.seam import Seam
from kbridge.link.holder.buffer import SharedBuffer, SharedMemory
from kbridge.link.holder.client import HeldConnection, Holder
from kbridge.link.holder.header import CHUNK

BUFFER = 2 << 20
END = bytes(4)  # the last record


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """A socket whose reader is killed right after a `recv`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.left = -1

    def recv_into(self, *args: Any) -> int:
        count = self._sock.recv_into(*args)
        self.left -= 1
        if not self.left:
            die()
        return count

    def recv(self, *args: Any) -> bytes:
        return self._sock.recv(*args)

    def fileno(self) -> int:
        return self._sock.fileno()


def split(data: bytes) -> tuple[list[bytes], int]:
    """Return the whole records at the beginning of `data`, and where they end."""
    records, at = [], 0
    while len(data) - at >= 4:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        records.append(data[at:end])
        at = end
    return records, at


class Journal:
    """The file: whole records, of which the last one may be torn after a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = path.read_bytes() if path.exists() else b""
        self.records, end = split(data)
        os.truncate(path, end) if path.exists() else None
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.waiting: list[bytes] = []

    def write(self, *, torn: bool = False) -> int:
        """Write the records that wait; return the number of records in the file."""
        data = b"".join(self.waiting)
        if torn:
            os.write(self.fd, data[: random.randrange(len(data) + 1)])
            die()
        os.write(self.fd, data)
        self.records += self.waiting
        self.waiting.clear()
        return len(self.records)


class Reader:
    """Reads one connection."""

    def __init__(
        self, sock: socket.socket, buffer: SharedBuffer, journal: Journal, tail: bytes = b""
    ) -> None:
        self.sock = Dying(sock)
        self.buffer = buffer
        self.journal = journal
        self.tail = tail

    def feed(self, data: bytes, seam: Seam | None = None) -> None:
        records, end = split(self.tail + data)
        self.tail = (self.tail + data)[end:]
        self.journal.waiting += [r for r in records if seam is None or not seam.is_written(r)]

    def read(self) -> bool:
        select.select([self.sock], [], [])
        data = self.buffer.receive(self.sock)  # type: ignore[arg-type]
        self.feed(data)
        return bool(data)

    @property
    def whole(self) -> int:
        """The position after the last whole record."""
        return self.buffer.position - len(self.tail)


def replayed(held: HeldConnection) -> Iterator[bytes]:
    assert held.complete, "bytes are missing"
    assert not held.full
    return held.read()


def share(holder: Holder, memory: SharedMemory) -> None:
    holder.share("memory", memory.fd)
    memory.close_descriptor()


def main(path: str, file: str, where: str, reads: str, *address: str) -> None:
    holder = Holder(Path(path), Path(file).parent, 1 << 30, 60)
    journal = Journal(Path(file))
    memory = SharedMemory([CHUNK, BUFFER])
    if address:  # the first reader
        holder.start()
        share(holder, memory)
        sock = socket.socket(socket.AF_UNIX if len(address) == 1 else socket.AF_INET)
        sock.connect(
            address[0].replace("@", "\0") if len(address) == 1 else (address[0], int(address[1]))
        )
        buffer = memory.buffer(1, announce=sock.family == socket.AF_UNIX)
        holder.hold("iopub", "info", sock.fileno(), ("memory", memory.offsets[1]))
        reader = Reader(sock, buffer, journal)
    else:
        [held] = holder.take()
        assert (held.key, held.info) == ("iopub", "info")
        sock = held.sock
        if where == "taking":
            die()
        share(holder, memory)
        buffer = memory.buffer(1, held.position, announce=sock.family == socket.AF_UNIX)
        buffer.mark_taken(held.taken, held.seq)
        holder.use("iopub", ("memory", memory.offsets[1]))
        reader = Reader(sock, buffer, journal)
        seam = Seam(journal.records[held.seq :])
        for data in replayed(held):
            reader.feed(data, seam)
        held.close(sock=False)
        if where == "replaying":
            journal.write(torn=True)
    print("ready", flush=True)
    left = int(reads)
    taken = buffer.position
    if where == "received":
        reader.sock.left = left
    sock.setblocking(False)
    while END not in journal.waiting[-1:] and END not in journal.records[-1:]:
        assert reader.read(), "the connection has ended"
        left -= 1
        if where == "writing" and left == 0:
            journal.write(torn=True)
        # As a journal does it, long before the buffer is full.
        if random.random() < 0.3 or buffer.position - taken > BUFFER // 2:
            end = reader.whole
            count = journal.write()
            if where == "written" and left <= 0:
                die()
            buffer.mark_taken(end, count)
            taken = end
            holder.forget("iopub", end)
            if where == "marked" and left <= 0:
                die()
    journal.write()
    holder.drop("iopub")


if __name__ == "__main__":
    assert CHUNK < BUFFER
    main(*sys.argv[1:])
