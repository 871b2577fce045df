"""The holder: a small process that reads the connections of kernels while no bridge runs.

A bridge gives it duplicates of the descriptors of its connections, and of the shared buffers into
which it receives (`kbridge.link.holder.buffer`). While the bridge runs, the holder only waits. Once
the bridge has ended, the holder continues each connection where the bridge stopped, and appends the
bytes to a file. The next bridge takes over the connections with everything that no journal has.

The process imports only modules of the standard library that are small, and those of this package
that it needs: it has 9 MB, of which 3 MB are not shared with other processes. `__main__` starts it.

Invariants:

- exactly one process reads a connection. The holder reads only after the end of the bridge's
  process, or after the bridge has closed its control socket. The next bridge reads a connection
  only after `TAKE`, and after the holder has its new buffer;
- the holder ends when it has no connections and no bridge, and at the latest a fixed time after the
  end of the bridge.
"""

from __future__ import annotations

import _socket as socket  # `socket` itself takes another megabyte
import os
import select
import sys
import time

from kbridge.link.holder.header import CHUNK
from kbridge.link.holder.held import CLOSED, TORN, Held
from kbridge.link.holder.packets import MOST_FDS, fields_of, packet, receive, send

if sys.platform != "win32":
    import resource

__all__ = ["Holder", "main"]


class Holder:
    """All connections, and the bridge that they belong to.

    Parameters
    ----------
    listener : socket
        Where the next bridge connects.
    path : str
        The file of that socket.
    directory : str
        Where files are stored; empty for memory.
    limit : int
        The most bytes to store, for all connections together.
    seconds : float
        The longest time without a bridge.
    """

    def __init__(
        self, listener: socket.socket, path: str, directory: str, limit: int, seconds: float
    ) -> None:
        self._path = path
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
        self._pid = 0  # of the bridge
        self._waiting: list[socket.socket] = []
        self._deadline = 0.0
        self._chunk = memoryview(bytearray(CHUNK))
        listener.setblocking(False)
        self._listener = listener
        self._poll.register(listener.fileno(), select.EPOLLIN)

    def close(self, inode: int) -> None:
        """Remove the socket file, which has this inode unless another holder has replaced it."""
        try:
            if os.stat(self._path).st_ino == inode:
                os.unlink(self._path)
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
        self._pid = int.from_bytes(credentials[:4], sys.byteorder)
        try:
            # A child that the bridge has forked may have a copy of the control socket.
            self._process = os.pidfd_open(self._pid)
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
            return
        self._waiting.append(sock)
        if self._bridge is not None:
            self._serve(self._bridge)  # it may have ended
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        if self._bridge is not None and pid != self._pid:  # of another server
            self._waiting.remove(sock)
            try:
                send(sock, packet("U"), [])
            except OSError:
                pass  # it has ended
            sock.close()

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
            if rest[0] in self._memories:
                os.close(self._memories[rest[0]])
            self._memories[rest[0]] = fds[0]
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
                _send(bridge, key, held)
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
        for held in self._held.values():
            held.settle()
            if not held.ended and not self._waiting:
                self._reading[held.sock.fileno()] = held
                self._poll.register(held.sock.fileno(), select.EPOLLIN)
        self._stored = sum(
            each.end - each.start
            for held in self._held.values()
            for each in held.extents
            if not each.shared
        )

    # -- connections ----------------------------------------------------------------------

    def _read(self, fd: int, held: Held) -> None:
        try:
            size = held.sock.recv_into(self._chunk)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            held.end(CLOSED)
            self._stop(fd)
            if all(each.ended for each in self._held.values()):
                self._held.clear()  # all kernels have ended
            return
        try:
            if not held.append(self._chunk[:size], self._directory):
                held.fill()
                self._stop(fd)
        except OSError:
            held.end(TORN)
            self._stop(fd)
        self._stored += size
        if self._stored >= self._limit:
            for each in list(self._reading.values()):
                each.fill()
                self._stop(each.sock.fileno())

    def _stop(self, fd: int) -> None:
        self._poll.unregister(fd)
        del self._reading[fd]


def _send(bridge: socket.socket, key: str, held: Held) -> None:
    """Send a connection to the bridge, in several packets if it has many extents."""
    extents = [f"{each.offset} {each.start} {each.end}" for each in held.extents]
    fds = [each.fd for each in held.extents]
    most = MOST_FDS - 1
    data = packet("E", key, held.info, " ".join(held.flags), *extents[:most])
    send(bridge, data, [held.sock.fileno(), *fds[:most]])
    for at in range(most, len(fds), most):
        send(bridge, packet("X", key, *extents[at : at + most]), fds[at : at + most])


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def main(path: str, directory: str, limit: str, seconds: str, listener: str, inode: str) -> None:
    """Run a holder whose first bridge is at the other end of its standard input.

    `listener` is the descriptor of a socket that listens at `path`, and `inode` that of its file.
    """
    os.chdir("/")  # the directory where the bridge was started may be removed
    bridge = socket.socket(fileno=os.dup(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    holder = Holder(
        socket.socket(fileno=int(listener)), path, directory, int(limit), float(seconds)
    )
    holder.attach(bridge)
    try:
        holder.run()
    finally:
        holder.close(int(inode))
