"""The holder: a small process that reads the connections of kernels while no bridge runs.

A bridge gives it duplicates of the descriptors of its connections, and of the shared buffers into
which it receives (`kbridge.link.holder.buffer`). While the bridge runs, the holder only waits. Once
the bridge has ended, the holder continues each connection where the bridge stopped, and appends the
bytes to a file. The next bridge takes over the connections with everything that no journal has.

The process is started by its path, without site-packages, and imports only modules of the standard
library that are small: it needs 9 MB, of which 3 MB are not shared with other processes.

Invariants:

- exactly one process reads a connection. The holder reads only after the end of the bridge's
  process, or after the bridge has closed its control socket. The next bridge reads a connection
  only after `TAKE`, and after the holder has its new buffer;
- the holder ends when it has no connections and no bridge, and at the latest a fixed time after the
  end of the bridge.

Control packets (`SOCK_SEQPACKET`; a letter, then fields that are separated by NUL):

======  ==================  ========================  ============================================
packet  fields              descriptors               meaning
======  ==================  ========================  ============================================
`M`     memory              memory file               use this memory for buffers
`N`     memory              -                         use it for no other buffers
`A`     key, memory,        connection                hold a connection, with its buffer
        offset, info
`B`     key, memory,        -                         the bridge receives into another buffer
        offset
`F`     key, position       -                         forget stored bytes before a position
`D`     key                 -                         drop a connection
`T`     -                   -                         send all connections, as `E` and then `.`
`E`     key, info, flags,   connection, and one for   a connection with its stored bytes
        extents             each extent
`.`     -                   -                         all connections have been sent
======  ==================  ========================  ============================================
"""

from __future__ import annotations

import _socket as socket  # `socket` itself takes another megabyte
import os
import select
import sys
import time

if sys.platform != "win32":
    import fcntl
    import resource

__all__ = ["CLOSED", "FULL", "LIMIT", "TORN", "fields_of", "main", "packet", "receive", "send"]

LIMIT = 128 * 1024
"""Bytes of the largest control packet."""

# Flags of a connection.
CLOSED = "closed"  # the kernel has closed it; all its bytes are stored
FULL = "full"  # the limit was reached, so that the kernel may have dropped messages
TORN = "torn"  # it is not known which bytes the bridge had read

# The header of a shared buffer, in front of its bytes: unsigned 64-bit numbers.
HEADER_SIZE = 4096
WORDS = 16
SIZE, START, FIRST, RECEIVED, INTENDED, TAKEN, SEQ, SENDING = range(8)
CANARY = 8  # two words
CANARY_SIZE = 16

CHUNK = 128 * 1024
"""The most bytes that a bridge receives by one call."""

_FIONREAD = 0x541B
_TCP_INFO_SIZE = 192
_BYTES_RECEIVED = 128  # offset of `tcpi_bytes_received`
_ESTABLISHED, _CLOSE_WAIT = 1, 8
_MAX_FDS = 64


def packet(letter: str, *fields: str) -> bytes:
    """Return a control packet."""
    return "\0".join((letter, *fields)).encode()


def fields_of(data: bytes) -> list[str]:
    """Return the letter and the fields of a control packet."""
    return data.decode().split("\0")


def send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    """Send a packet with descriptors."""
    numbers = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if fds else []
    sock.sendmsg([data], ancillary)


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Receive a packet with descriptors; the packet is empty at the end of the connection."""
    data, ancillary, _, _ = sock.recvmsg(LIMIT, socket.CMSG_SPACE(4 * _MAX_FDS))
    fds: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) // 4 * 4
            fds += memoryview(content[:whole]).cast("i").tolist()
    for fd in fds:
        os.set_inheritable(fd, False)
    return data, fds


def unread(sock: socket.socket) -> int:
    """Return the number of bytes that wait in a socket."""
    found = fcntl.ioctl(sock.fileno(), _FIONREAD, bytes(4))
    return int.from_bytes(found, sys.byteorder)


def consumed(sock: socket.socket, memory: int, offset: int) -> int | None:
    """Return how many bytes of a connection its reader has received, after the reader has ended.

    The header of the buffer has the last noted number, but the reader may have been killed between
    a `recv` and its note. TCP counts the bytes itself. For a unix socket, the reader notes before
    each `recv` how many bytes it will read, and writes a random pattern where they will be.

    Parameters
    ----------
    sock : socket
    memory, offset : int
        The descriptor of the memory file, and the place of the shared buffer in it.

    Returns
    -------
    int or None
        None if the numbers contradict each other.
    """
    header = read_header(memory, offset)
    received = header[RECEIVED]
    if sock.family == socket.AF_UNIX:
        intended = header[INTENDED] - received
        if intended <= 0:
            return received
        size = min(CANARY_SIZE, intended)
        at = offset + HEADER_SIZE + (received - header[FIRST]) % header[SIZE]
        untouched = os.pread(memory, size, at) == _canary(header)[:size]
        return received if untouched else received + intended
    while True:
        state, counted = _tcp_counts(sock)
        waiting = unread(sock)
        if _tcp_counts(sock) == (state, counted):
            break
    if state == _CLOSE_WAIT:
        counted -= 1  # the kernel counts the FIN
    elif state != _ESTABLISHED:
        return received  # it was reset: nothing can be read any longer
    found = counted - waiting
    return found if received <= found <= received + CHUNK else None


def read_header(memory: int, offset: int) -> list[int]:
    """Return the numbers in the header of a shared buffer."""
    return memoryview(os.pread(memory, 8 * WORDS, offset)).cast("Q").tolist()


def _canary(header: list[int]) -> bytes:
    return b"".join(word.to_bytes(8, sys.byteorder) for word in header[CANARY : CANARY + 2])


def _tcp_counts(sock: socket.socket) -> tuple[int, int]:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    counted = info[_BYTES_RECEIVED : _BYTES_RECEIVED + 8]
    return info[0], int.from_bytes(counted, sys.byteorder)


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
    """

    __slots__ = ("end", "fd", "offset", "start")

    def __init__(self, fd: int, offset: int, start: int) -> None:
        self.fd = fd
        self.offset = offset
        self.start = self.end = start

    @property
    def shared(self) -> bool:
        """True for a shared buffer."""
        return self.offset >= 0


class Held:
    """A connection of a kernel."""

    __slots__ = ("extents", "flags", "info", "sock")

    def __init__(self, fd: int, info: str) -> None:
        self.sock = socket.socket(fileno=fd)
        self.info = info
        self.flags: set[str] = set()
        self.extents: list[Extent] = []

    @property
    def ended(self) -> bool:
        """True if there is nothing more to read."""
        return CLOSED in self.flags or TORN in self.flags

    def use(self, memory: int, offset: int) -> None:
        """Note that the bridge receives into this buffer from now on."""
        start = read_header(memory, offset)[START]
        self.extents.append(Extent(os.dup(memory), offset, start))

    def settle(self) -> None:
        """Find out where the bridge stopped reading."""
        last = self.extents[-1]
        if last.shared:
            end = consumed(self.sock, last.fd, last.offset)
            if end is None:
                self.flags.add(TORN)
            else:
                last.end = end

    def append(self, data: memoryview, directory: str) -> None:
        """Store bytes that were read.

        Raises
        ------
        OSError
            If the disk is full.
        """
        last = self.extents[-1]
        if last.shared:
            last = Extent(_open_file(directory), -1, last.end)
            self.extents.append(last)
        while data:
            written = os.write(last.fd, data)
            last.end += written
            data = data[written:]

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


class Holder:
    """All connections, and the bridge that they belong to.

    Parameters
    ----------
    path : str
        The unix socket on which the next bridge connects.
    directory : str
        Where files are stored; empty for memory.
    limit : int
        The most bytes to store, for all connections together.
    seconds : float
        The longest time without a bridge.
    """

    def __init__(self, path: str, directory: str, limit: int, seconds: float) -> None:
        self._folder, self._name = os.path.split(path)
        self._directory = directory
        self._limit = limit
        self._seconds = seconds
        self._stored = 0
        self._held: dict[str, Held] = {}
        self._memories: dict[str, int] = {}
        self._reading: dict[int, Held] = {}
        self._poll = select.epoll()
        self._bridge: socket.socket | None = None
        self._process = -1  # a pidfd
        self._waiting: list[socket.socket] = []
        self._deadline = 0.0
        self._chunk = memoryview(bytearray(CHUNK))
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._inode = 0

    def listen(self) -> None:
        """Let the next bridge connect.

        Raises
        ------
        OSError
            If that is not possible.
        """
        os.chdir(self._folder)  # the paths of unix sockets are short
        try:
            os.unlink(self._name)
        except FileNotFoundError:
            pass
        os.umask(0o177)
        self._listener.bind(self._name)
        self._inode = os.stat(self._name).st_ino
        self._listener.listen(8)
        self._listener.setblocking(False)
        self._poll.register(self._listener.fileno(), select.EPOLLIN)

    def close(self) -> None:
        """Remove the socket file, unless another holder has replaced it."""
        try:
            if os.stat(self._name).st_ino == self._inode:
                os.unlink(self._name)
        except FileNotFoundError:
            pass

    def run(self) -> None:
        """Hold connections until there are none, and no bridge."""
        while self._bridge is not None or self._waiting or self._held:
            timeout = -1.0
            if self._bridge is None:
                timeout = self._deadline - time.monotonic()
                if timeout <= 0:
                    return
            for fd, _ in self._poll.poll(timeout):
                held = self._reading.get(fd)
                if held is not None:
                    self._read(fd, held)
                elif fd == self._listener.fileno():
                    self._accept()
                elif self._bridge is not None and fd in (self._bridge.fileno(), self._process):
                    self._serve(self._bridge)
            if self._bridge is None and self._waiting:
                self.attach(self._waiting.pop(0))

    def attach(self, bridge: socket.socket) -> None:
        """Make a process the bridge."""
        bridge.setblocking(False)
        self._bridge = bridge
        credentials = bridge.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        try:
            # A child that the bridge has forked may have a copy of the control socket.
            self._process = os.pidfd_open(pid)
            self._poll.register(self._process, select.EPOLLIN)
        except OSError:
            self._process = -1
        self._poll.register(bridge.fileno(), select.EPOLLIN)

    # -- the bridge -----------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except OSError:
            return
        sock = socket.socket(fileno=fd)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if int.from_bytes(credentials[4:8], sys.byteorder) != os.geteuid():
            sock.close()
        else:
            self._waiting.append(sock)

    def _serve(self, bridge: socket.socket) -> None:
        """Handle the packets of the bridge, and then its end."""
        while True:
            try:
                data, fds = receive(bridge)
            except BlockingIOError:
                if self._process < 0 or not _is_readable(self._process):
                    return
                data = b""
            except OSError:
                data = b""
            if not data:
                self._detach(bridge)
                return
            try:
                self._handle(bridge, fields_of(data), fds)
            except (KeyError, IndexError, ValueError):  # the bridge uses another holder's memory
                for fd in fds:
                    os.close(fd)

    def _handle(self, bridge: socket.socket, fields: list[str], fds: list[int]) -> None:
        letter, *rest = fields
        if letter == "M":
            self._memories[rest[0]] = fds[0]
        elif letter == "N":
            os.close(self._memories.pop(rest[0]))
        elif letter == "A":
            key, name, offset, info = rest
            self._drop(key)
            memory = self._memories[name]
            self._held[key] = held = Held(fds[0], info)
            held.use(memory, int(offset))
        elif letter == "B" and rest[0] in self._held:
            self._held[rest[0]].use(self._memories[rest[1]], int(rest[2]))
        elif letter == "F" and rest[0] in self._held:
            self._held[rest[0]].forget(int(rest[1]))
        elif letter == "D":
            self._drop(rest[0])
        elif letter == "T":
            for fd in list(self._reading):
                self._stop(fd)
            self._send_all(bridge)

    def _send_all(self, bridge: socket.socket) -> None:
        bridge.setblocking(True)
        try:
            for key, held in self._held.items():
                extents = [f"{each.offset} {each.start} {each.end}" for each in held.extents]
                data = packet("E", key, held.info, " ".join(held.flags), *extents)
                fds = [held.sock.fileno(), *(each.fd for each in held.extents)]
                send(bridge, data, fds)
            send(bridge, packet("."), [])
        except OSError:
            pass  # it has ended, which is noticed next
        bridge.setblocking(False)

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            held.close()

    def _detach(self, bridge: socket.socket) -> None:
        """Continue the connections of a bridge that has ended, unless the next one waits."""
        self._poll.unregister(bridge.fileno())
        bridge.close()
        if self._process >= 0:
            self._poll.unregister(self._process)
            os.close(self._process)
        self._bridge = None
        self._process = -1
        for memory in self._memories.values():  # the extents have duplicates
            os.close(memory)
        self._memories.clear()
        self._deadline = time.monotonic() + self._seconds
        self._stored = sum(
            each.end - each.start
            for held in self._held.values()
            for each in held.extents
            if not each.shared
        )
        for held in self._held.values():
            held.settle()
            if not held.ended and not self._waiting:
                self._reading[held.sock.fileno()] = held
                self._poll.register(held.sock.fileno(), select.EPOLLIN)

    # -- connections ----------------------------------------------------------------------

    def _read(self, fd: int, held: Held) -> None:
        try:
            size = held.sock.recv_into(self._chunk)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            held.flags.add(CLOSED)
            self._stop(fd)
            if all(each.ended for each in self._held.values()):
                self._held.clear()  # all kernels have ended
            return
        try:
            held.append(self._chunk[:size], self._directory)
        except OSError:
            held.flags.add(TORN)
            self._stop(fd)
        self._stored += size
        if self._stored >= self._limit:
            for each in list(self._reading.values()):
                each.flags.add(FULL)
                self._stop(each.sock.fileno())

    def _stop(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._reading[fd]


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def main(path: str, directory: str, limit: str, seconds: str) -> None:
    """Run a holder whose first bridge is at the other end of its standard input."""
    bridge = socket.socket(fileno=os.dup(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    holder = Holder(path, directory, int(limit), float(seconds))
    holder.listen()
    holder.attach(bridge)
    try:
        holder.run()
    finally:
        holder.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
