"""The bridge's end of the holder: start it, give it connections, take connections over."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from kbridge.link.holder.header import (
    FIRST,
    HEADER_SIZE,
    SENDING,
    SEQ,
    SIZE,
    TAKEN,
    read_header,
)
from kbridge.link.holder.held import CLOSED, FULL, TORN
from kbridge.link.holder.notes import read_notes
from kbridge.link.holder.packets import fields_of, packet, receive, send
from kbridge.link.holder.unix_path import connect, find, listen, remove, separate
from kbridge.link.interfaces import noop

__all__ = ["HeldConnection", "Holder", "is_supported"]

_PROGRAM: Final = Path(__file__).with_name("__main__.py")
_BLOCK: Final = 64 * 1024  # parsed in one turn of the event loop
_TIMEOUT: Final = 10.0  # seconds for a holder that still waits for the end of an earlier bridge


def is_supported() -> bool:
    """Return True if this system has what a holder needs: Linux."""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


class _Extent:
    """Stored bytes of a connection; `offset` is -1 for a file, see `held.Extent`."""

    def __init__(self, fd: int, offset: int, start: int, end: int) -> None:
        self.fd = fd
        self.offset = offset
        self.start = start
        self.end = end
        self.header = read_header(fd, offset) if offset >= 0 else []

    @property
    def oldest(self) -> int:
        """The lowest position of which the byte is there."""
        if not self.header:
            return self.start
        return max(self.start, self.header[FIRST], self.end - self.header[SIZE])

    def read(self, at: int) -> bytes:
        """Return some bytes from a position on."""
        size = min(self.end - at, _BLOCK)
        if not self.header:
            return os.pread(self.fd, size, at - self.start)
        place = (at - self.header[FIRST]) % self.header[SIZE]
        size = min(size, self.header[SIZE] - place)
        return os.pread(self.fd, size, self.offset + HEADER_SIZE + place)


class _Sent:
    """A connection as the holder has sent it, in one or several packets."""

    def __init__(self, fields: list[str], fds: list[int]) -> None:
        self.key, self.info, flags, *self.extents = fields
        self.flags = flags.split()
        self.fds = fds

    def connection(self, holder: Holder) -> HeldConnection:
        """Return the connection.

        Raises
        ------
        OSError
            If it cannot be used; its descriptors are then closed.
        """
        try:
            if len(self.fds) != 1 + len(self.extents):
                raise OSError("file descriptors were missing")
            return HeldConnection(self, holder)
        except Exception as error:  # another kernel may be fine
            self.close()
            raise OSError(str(error) or repr(error)) from error

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self.fds:
            os.close(fd)


class HeldConnection:
    """A connection that an earlier bridge opened.

    Attributes
    ----------
    holder : Holder
        The holder that has it.
    key, info : str
        As passed to `Holder.hold`.
    sock : socket
        The connection; close it, or use it.
    taken : int
        The position from which bytes may not be in the journal's file.
    position : int
        The position of the next byte of `sock`.
    torn : bool
        True if a part of a message may have been sent, so that no other message can be sent.
    seq : int
        Frames of the messages from `taken` on have at least this number in the journal.
    closed : bool
        True if the kernel has closed the connection.
    complete : bool
        True if no bytes from `taken` on are missing.
    full : bool
        True if the kernel may have dropped messages, because the holder could store no more. The
        connection goes on nevertheless: the stored messages come first, then those in the socket
        and in the queue of the kernel. Messages behind those are missing.
    notes : bytes
        Lines that the earlier bridge may not have written to disk; see `Notes`.
    """

    def __init__(self, sent: _Sent, holder: Holder) -> None:
        self.holder = holder
        self.key = sent.key
        self.info = sent.info
        self.closed = CLOSED in sent.flags
        self.full = FULL in sent.flags
        fd, *fds = sent.fds
        self._extents = [
            _Extent(fd, *map(int, numbers.split()))
            for fd, numbers in zip(fds, sent.extents, strict=True)
        ]
        newest = [each for each in self._extents if each.header][-1]
        self.taken = newest.header[TAKEN]
        self.seq = newest.header[SEQ]
        self.torn = bool(newest.header[SENDING])
        self.notes = read_notes(newest.fd, newest.offset)
        self.position = self._extents[-1].end
        self.complete = TORN not in sent.flags and self._oldest() <= self.taken
        self.sock = socket.socket(fileno=fd)

    def _oldest(self) -> int:
        """Return the lowest position from which on all bytes are there."""
        oldest = self.position
        for extent in reversed(self._extents):
            if extent.end < oldest:
                break
            oldest = min(oldest, extent.oldest)
        return oldest

    def read(self) -> Iterator[bytes]:
        """Yield the bytes from `taken` to `position`; call it only if they are `complete`."""
        at = self.taken
        for extent in self._extents:
            while at < extent.end:
                data = extent.read(at)
                if not data:
                    raise OSError("the stored bytes of a connection are missing")
                yield data
                at += len(data)

    def close(self, *, sock: bool = True) -> None:
        """Close the descriptors of the stored bytes, and of the connection if `sock`."""
        if sock:
            self.sock.close()
        for extent in self._extents:
            os.close(extent.fd)
        self._extents = []


class Holder:
    """A holder process, to which this process gives its connections.

    Packets that the holder does not accept at once are sent later, by the event loop.

    Parameters
    ----------
    path : Path
        The name of the unix sockets of holders: each has a socket with this stem and suffix. Only
        this user can connect to them.
    directory : Path or None
        A directory for the bytes of kernels while no bridge runs; None for memory.
    limit : int
        The most bytes there, for all kernels together.
    seconds : float
        The longest time in which the holder waits for the next bridge.

    Attributes
    ----------
    on_lost : callable
        Called when the holder has ended, after `watch`; set by the owner.
    untaken : dict of str to str
        Why connections could not be taken over, by their keys.
    """

    def __init__(self, path: Path, directory: Path | None, limit: int, seconds: float) -> None:
        self.on_lost: Callable[[], None] = noop
        self.untaken: dict[str, str] = {}
        self._path = path
        self._settings = (directory, limit, seconds)
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._shared: set[str] = set()  # the memory files that the holder has

    @property
    def running(self) -> bool:
        """True if this process has a connection to a holder."""
        return self._sock is not None

    def start(self) -> None:
        """Start a holder process, which the next bridge finds from now on.

        Raises
        ------
        OSError
            If that is not possible.
        """
        if self._process is not None:
            self._process.poll()  # it has ended
        path = separate(self._path)
        listener, inode = listen(path)
        directory, limit, seconds = self._settings
        folder = "" if directory is None else str(directory.absolute())
        arguments = [str(path.absolute()), folder, str(limit), str(seconds)]
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener, far:
            inherited = [str(listener.fileno()), str(inode)]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a file of kbridge
                    [sys.executable, "-I", "-S", str(_PROGRAM), *arguments, *inherited],
                    stdin=far.fileno(),
                    pass_fds=[listener.fileno()],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    env={"PATH": os.defpath},
                )
            except BaseException:
                near.close()
                path.unlink(missing_ok=True)
                raise
        self._use(near)
        if _running_loop() is not None:
            self.watch()

    def watch(self) -> None:
        """Notice the end of the holder from now on; call it on the event loop."""
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._on_input)

    def take(self) -> list[HeldConnection]:
        """Take over the connections that an earlier bridge left; they are not read until `use`.

        This object stands for the first holder that has some. Other holders have them if several
        servers with the same settings had run side by side; the holders of those that still run are
        left alone.

        Those that cannot be used, for example because this process may open no more descriptors,
        are in `untaken`.

        Call it in a thread, and `watch` after it.

        Raises
        ------
        FileNotFoundError
            If there is no holder whose bridge has ended.
        OSError
            If a holder does not answer, and no other has connections.
        """
        found: list[HeldConnection] = []
        problem: OSError | None = None
        for path in find(self._path):
            holder = Holder(self._path, *self._settings) if self.running else self
            try:
                found += holder.take_from(path)
            except ConnectionRefusedError:
                remove(path)
            except (OSError, ValueError) as error:
                problem = error if isinstance(error, OSError) else OSError(str(error))
            self.untaken.update(holder.untaken)
        if not self.running:
            raise problem or FileNotFoundError("there is no holder whose bridge has ended")
        return found

    def take_from(self, path: Path) -> list[HeldConnection]:
        """Take over the connections of the holder at one path; none if its bridge lives.

        Raises
        ------
        OSError, ValueError
            As for `take`.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sent: dict[str, _Sent] = {}
        try:
            sock.settimeout(_TIMEOUT)
            connect(sock, path)
            with suppress(BrokenPipeError):  # it has answered, and closed the connection
                sock.send(packet("T"))
            if not _receive_all(sock, sent):
                sock.close()
                return []
        except BaseException:
            sock.close()
            for each in sent.values():
                each.close()
            raise
        self._use(sock)
        found: list[HeldConnection] = []
        for key, each in sent.items():
            try:
                found.append(each.connection(self))
            except OSError as error:
                self.untaken[key] = str(error)
        return found

    def share(self, name: str, memory: int) -> None:
        """Give a memory file to the holder, unless it has the file of that name.

        Buffers in it are named by `name` and their place.
        """
        if name not in self._shared:
            self._shared.add(name)
            self._send(packet("M", name), [memory])

    def hold(self, key: str, info: str, sock: int, buffer: tuple[str, int]) -> None:
        """Give a connection to the holder, with the name and place of its buffer."""
        name, offset = buffer
        self._send(packet("A", key, name, str(offset), info), [sock])

    def use(self, key: str, buffer: tuple[str, int]) -> None:
        """Note the buffer into which a connection that was taken over is received from now on."""
        name, offset = buffer
        self._send(packet("B", key, name, str(offset)), [])

    def forget(self, key: str, position: int) -> None:
        """Let the holder forget stored bytes before a position."""
        self._send(packet("F", key, str(position)), [])

    def drop(self, key: str) -> None:
        """Let the holder close its duplicate of a connection."""
        self._send(packet("D", key), [])

    def close(self) -> None:
        """Release the connections: from now on the holder reads them. May be called twice."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._leave_loop(sock)
        sock.setblocking(True)
        with suppress(OSError):
            while self._unsent:
                send(sock, *self._unsent[0])
                self._close_sent()
        while self._unsent:
            self._close_sent()
        sock.close()
        if self._process is not None:
            self._process.returncode = 0  # it goes on; otherwise Popen warns about that

    def _use(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._shared.clear()

    def _send(self, data: bytes, fds: list[int]) -> None:
        sock = self._sock
        if sock is None:
            return
        if not self._unsent:
            try:
                send(sock, data, fds)
            except BlockingIOError:
                loop = _running_loop()
                if loop is not None:
                    loop.add_writer(sock, self._flush)
            except OSError:
                self._lost()
                return
            else:
                return
        self._unsent.append((data, [os.dup(fd) for fd in fds]))

    def _flush(self) -> None:
        assert self._sock is not None
        try:
            while self._unsent:
                send(self._sock, *self._unsent[0])
                self._close_sent()
        except BlockingIOError:
            return
        except OSError:
            self._lost()
            return
        asyncio.get_running_loop().remove_writer(self._sock)

    def _close_sent(self) -> None:
        for fd in self._unsent.popleft()[1]:
            os.close(fd)

    def _lost(self) -> None:
        """Note that the holder has ended."""
        assert self._sock is not None
        self._leave_loop(self._sock)
        while self._unsent:
            self._close_sent()
        self._sock.close()
        self._sock = None
        self.on_lost()

    def _on_input(self) -> None:
        """Find the end of the holder, which sends nothing by itself."""
        assert self._sock is not None
        try:
            data = self._sock.recv(1)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()

    @staticmethod
    def _leave_loop(sock: socket.socket) -> None:
        loop = _running_loop()
        if loop is not None:
            loop.remove_reader(sock)
            loop.remove_writer(sock)


def _receive_all(sock: socket.socket, sent: dict[str, _Sent]) -> bool:
    """Receive all connections that the holder has, by their keys; return False if it is in use."""
    while True:
        try:
            data, fds = receive(sock)
        except ConnectionResetError:  # it has closed the connection: its answer comes behind that
            data, fds = receive(sock)
        letter, *fields = fields_of(data)
        if letter in (".", "U"):
            return letter == "."
        if letter == "E":
            sent[fields[0]] = _Sent(fields, fds)
        elif letter == "X" and fields[0] in sent:
            sent[fields[0]].extents += fields[1:]
            sent[fields[0]].fds += fds
        else:
            raise ConnectionResetError("the holder has ended")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
