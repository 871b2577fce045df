"""Keeps the connections of the kernels of one server in a holder process.

A `KeptKernel` belongs to the link of one kernel, and a `Port` to one of its channels. A port gives
its connection the buffer to receive into, and passes duplicates of both to the holder.

The journal says when it has written all frames that it had at a time (`Checkpoints`). All messages
that the connections had delivered at that time are then in its file.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import Final

from kbridge.flow.seam import Seam
from kbridge.link.holder.buffer import SharedBuffer, SharedMemory, memory_size
from kbridge.link.holder.client import HeldConnection, Holder
from kbridge.link.holder.memory import MemoryPool
from kbridge.link.holder.notes import Notes
from kbridge.wire.message import Channel
from kbridge.wire.zmtp.peer import Peer

__all__ = ["Keeper", "KeptKernel", "Port"]

_FIRST_DELAY: Final = 0.5  # seconds until another holder is started
_LAST_DELAY: Final = 300.0
_MIB: Final = 1024 * 1024
_SIZES: Final = {
    Channel.IOPUB: 16 * _MIB,
    Channel.SHELL: 4 * _MIB,
    Channel.CONTROL: _MIB,
    Channel.STDIN: _MIB,
}
_NOT_TAKEN: Final = "the connections could not be taken over (see the log of the server)"
_INDEX: Final = {channel: index for index, channel in enumerate(_SIZES)}


class Port:
    """The connection to one port of a kernel, and its buffer.

    Parameters
    ----------
    kernel : KeptKernel
    channel : Channel
    held : HeldConnection or None
        The connection that an earlier bridge left.
    """

    def __init__(self, kernel: KeptKernel, channel: Channel, held: HeldConnection | None) -> None:
        self._kernel = kernel
        self._index = _INDEX[channel]
        self.key = f"{kernel.kernel_id}/{channel}"
        self._held = held
        self._buffer: SharedBuffer | None = None
        self._peer: Peer | None = None
        self._base = 0  # the position of the first byte that the peer was given
        self._given: tuple[socket.socket, str] | None = None  # to the holder
        self._noted: int | None = None
        self._stored: int | None = None  # where the bytes that the holder has stored end

    @property
    def held(self) -> HeldConnection | None:
        """The connection of an earlier bridge, until `replay` has ended."""
        return self._held

    @property
    def given(self) -> bool:
        """True if the holder has the connection of this process."""
        return self._given is not None

    @property
    def leaving(self) -> bool:
        """True if the connection must stay, although this process closes its socket."""
        return self._kernel.leaving

    def open(self, sock: socket.socket) -> SharedBuffer | None:
        """Return the buffer of a connection that was just made; None if it is not kept."""
        if self._kernel.given_up:
            return None
        self._base = 0
        self._stored = None
        try:
            return self._new_buffer(sock, 0)
        except OSError as error:
            if self._kernel.holder.running:
                self._kernel.give_up("memory or file descriptors were missing for it")
            else:
                self._kernel.give_up(f"no process could be started that keeps it: {error.strerror}")
            return None

    def hold(self, sock: socket.socket, peer: Peer, identity: bytes) -> None:
        """Keep a connection whose handshake is finished."""
        if self._buffer is None:
            return
        self._peer = peer
        # The next bridge goes on behind the handshake, also if no message is written before.
        self._buffer.mark_taken(peer.begin, self._kernel.written)
        self._given = (sock, f"{peer.minor} {identity.decode()}")
        self.hold_again()

    def hold_again(self) -> None:
        """Give the connection to the holder, if there is one."""
        if self._given is not None:
            sock, info = self._given
            self._kernel.holder.hold(self.key, info, sock.fileno(), self._place)

    @property
    def minor(self) -> int:
        """The version of the kernel's ZMTP, of a connection of an earlier bridge."""
        assert self._held is not None
        return int(self._held.info.partition(" ")[0])

    def resume(self, peer: Peer) -> tuple[socket.socket, SharedBuffer]:
        """Return the connection of an earlier bridge, and its buffer; do not read it yet."""
        held = self._held
        assert held is not None
        self._peer = peer
        self._base = held.taken
        self._stored = held.position
        self._given = (held.sock, held.info)
        buffer = self._new_buffer(held.sock, held.position)
        buffer.mark_taken(held.taken, held.seq)
        self._kernel.holder.use(self.key, self._place)
        return held.sock, buffer

    def replay(self) -> Iterator[bytes]:
        """Yield the bytes that an earlier bridge had not written to the journal's file."""
        held = self._held
        assert held is not None
        yield from held.read()
        held.close(sock=False)
        self._held = None

    def drop(self) -> None:
        """Let the connection end."""
        self._noted = self._peer = self._given = None
        if self._held is not None:
            self._held.close(sock=False)
            self._held = None
        if self._buffer is not None and not self.leaving:
            self._buffer = None
            self._kernel.holder.drop(self.key)

    def release(self) -> None:
        """Refer to no memory any longer: no other connection will be made."""
        self._noted = self._peer = self._given = self._buffer = None

    def note(self) -> None:
        """Note up to which position all messages were delivered."""
        self._noted = None
        if self._peer is not None and self._buffer is not None:
            # The buffer may have received more than the peer was given.
            self._noted = self._base + self._peer.taken - self._peer.unfinished

    def reached(self, end: int) -> None:
        """Note that the frames of these messages, before `end`, are in the journal's file."""
        noted, self._noted = self._noted, None
        if noted is not None and self._buffer is not None:
            self._buffer.mark_taken(noted, end)
            if self._stored is not None and noted >= self._stored:
                self._stored = None
                self._kernel.holder.forget(self.key, noted)

    @property
    def _place(self) -> tuple[str, int]:
        memory = self._kernel.memory
        return memory.name, memory.offsets[self._index]

    def _new_buffer(self, sock: socket.socket, position: int) -> SharedBuffer:
        announce = sock.family == socket.AF_UNIX
        memory = self._kernel.memory
        self._buffer = memory.buffer(self._index, position, announce=announce)
        return self._buffer


class KeptKernel:
    """The connections of one kernel.

    Parameters
    ----------
    kernel_id : str
    holder : Holder
    held : dict of Channel to HeldConnection
        The connections that an earlier bridge left.
    lost : str
        See below.
    pool : MemoryPool, optional
        Has memory for the buffers; by default a pool for this kernel alone.

    Attributes
    ----------
    kernel_id, holder
        As above.
    ports : dict of Channel to Port
    leaving : bool
        True if the connections must stay, although this process closes its sockets.
    used : bool
        True if a hub has these connections.
    given_up : bool
        True if the connections end with this process.
    because : str
        Why they do, as a clause; empty if they stay, or if that is not known.
    lost : str
        Why there are no connections of an earlier bridge, as a clause; empty if there are some, or
        if that is not known.
    written : int
        The number after the last frame that is known to be in the journal's file.
    seam : Seam or None
        Recognizes the frames that come again; None if no connection is resumed.
    """

    def __init__(
        self,
        kernel_id: str,
        holder: Holder,
        held: dict[Channel, HeldConnection],
        lost: str = "",
        pool: MemoryPool | None = None,
    ) -> None:
        self._pool = pool or _make_pool()
        self.kernel_id = kernel_id
        self.holder = holder
        self.lost = lost
        self.because = self._untold = ""
        self.leaving = self.used = self.given_up = self._resumed = False
        self.seam: Seam | None = None
        self.written = 0
        self._held = True
        self._complete = asyncio.Event()
        self._memory: SharedMemory | None = None
        self._notes: Notes | None = None
        self.ports = {channel: Port(self, channel, held.get(channel)) for channel in _SIZES}

    @property
    def memory(self) -> SharedMemory:
        """The memory of all buffers; the holder has it, too."""
        if self._memory is None:
            if not self.holder.running:
                self.holder.start()
            self._memory = memory = SharedMemory(list(_SIZES.values()), self._pool.take())
            self._notes = memory.notes(_INDEX[Channel.SHELL])
            self.holder.share(memory.name, memory.fd)
        return self._memory

    def hold_again(self) -> None:
        """Give everything to another holder process."""
        if self.given_up or self._held or self._memory is None:
            return
        self._held = True
        self.holder.share(self._memory.name, self._memory.fd)
        for port in self.ports.values():
            port.hold_again()

    def lose(self) -> None:
        """Note that the holder process has ended, until `hold_again`."""
        self._held = self._memory is None

    @property
    def stays(self) -> bool:
        """True if the connections outlive this process."""
        return self._held and not self.given_up

    @property
    def resumes(self) -> bool:
        """True if the next link goes on with connections of an earlier bridge."""
        return self.seam is not None and not self._resumed

    @property
    def resuming(self) -> bool:
        """True while messages come again."""
        return self._resumed and not self._complete.is_set()

    def resume(self) -> None:
        """Note that a link goes on with the connections; later links make their own."""
        self._resumed = True

    def end_resume(self) -> None:
        """Note that all messages have come again, or that the link was closed."""
        self._complete.set()

    async def wait_resumed(self) -> None:
        """Wait until no messages come again."""
        await self._complete.wait()

    @property
    def identity(self) -> bytes:
        """The identity under which the earlier bridge was connected."""
        held = self.ports[Channel.SHELL].held
        return b"" if held is None else held.info.partition(" ")[2].encode()

    @property
    def seq(self) -> int | None:
        """The lowest number of a frame that comes again; None if the connections cannot go on."""
        if self.unusable:
            return None
        return min(port.held.seq for port in self.ports.values() if port.held is not None)

    def note(self) -> None:
        """Note what the connections have delivered: frames of all of it are in the journal."""
        for port in self.ports.values():
            port.note()

    def reached(self, end: int) -> None:
        """Note that all that was noted is in the journal's file: the frames before `end`."""
        self.written = end
        for port in self.ports.values():
            port.reached(end)

    @property
    def notes(self) -> bytes:
        """Lines that an earlier bridge may not have written to disk."""
        held = self.ports[Channel.SHELL].held
        return b"" if held is None else held.notes

    def remember(self, line: bytes) -> bool:
        """Keep a line for the next bridge; return True if there is room and a connection stays."""
        given = self.ports[Channel.SHELL].given
        return given and self._notes is not None and self._notes.add(line)

    def begin_write(self) -> None:
        """Note that all lines so far are being written to disk."""
        if self._notes is not None:
            self._notes.begin_write()

    def forget_written(self) -> None:
        """Forget the lines that are on disk now."""
        if self._notes is not None:
            self._notes.forget_written()

    @property
    def broken(self) -> bool:
        """True if connections of an earlier bridge had ended before this one began."""
        return any(port.held is not None and port.held.closed for port in self.ports.values())

    @property
    def full(self) -> bool:
        """True if the kernel may have dropped messages, because no more could be stored."""
        return any(port.held is not None and port.held.full for port in self.ports.values())

    @property
    def unusable(self) -> str:
        """Why the connections of an earlier bridge cannot go on, as a clause; empty if they can."""
        held = [port.held for port in self.ports.values()]
        if not all(held):
            return "not all connections to the kernel were established"
        for each in held:
            assert each is not None
            if each.torn:
                return "the server ended while it sent a request to the kernel"
            if not each.complete:
                return "the server ended before it had written a burst of output"
        return ""

    def give_up(self, because: str = "") -> None:
        """Let the connections end with this process."""
        self.given_up = True
        self.because = self._untold = because
        for port in self.ports.values():
            self.holder.drop(port.key)

    def take_cause(self) -> str:
        """Return `because` to tell the next bridge; empty after the first call."""
        cause, self._untold = self._untold, ""
        return cause

    def close(self) -> None:
        """Note that no other connections will be made."""
        self.give_up()
        self._memory = self._notes = None
        for port in self.ports.values():
            port.release()


class Keeper:
    """The kept connections of all kernels.

    Parameters
    ----------
    holder : Holder
    log : logging.Logger or adapter
    """

    def __init__(
        self, holder: Holder, log: logging.Logger | logging.LoggerAdapter[logging.Logger]
    ) -> None:
        self._holder = holder
        self._log = log
        self._delay = _FIRST_DELAY
        self._timer: asyncio.TimerHandle | None = None
        self._holders: set[Holder] = set()  # with those of other servers that have ended
        self._add(holder)
        self._left: dict[str, dict[Channel, HeldConnection]] = {}
        self._kernels: dict[str, KeptKernel] = {}
        self._lost: dict[str, str] = {}  # why kernels have no connections of an earlier bridge
        self._absent = ""  # why all kernels have none
        self._pool = _make_pool()

    async def take(self) -> None:
        """Take over the connections that an earlier bridge left, if there are some."""
        try:
            found = await asyncio.to_thread(self._holder.take)
        except FileNotFoundError:
            self._absent = "the process that keeps the connections had ended, too"
            return
        except (OSError, ValueError) as error:
            self._absent = _NOT_TAKEN
            self._log.warning("Connections to kernels cannot be taken over: %s", error)
            return
        self._holder.watch()
        for held in found:
            if held.holder not in self._holders:
                self._add(held.holder)
                held.holder.watch()
            kernel_id, _, name = held.key.rpartition("/")
            channel = next((each for each in _SIZES if each == name), None)
            if channel is None:  # of another version of kbridge
                held.close()
                held.holder.drop(held.key)
            else:
                self._left.setdefault(kernel_id, {})[channel] = held
        for key, because in self._holder.untaken.items():
            self._abandon(key.rpartition("/")[0], because)

    def _abandon(self, kernel_id: str, because: str) -> None:
        """End the connections of a kernel of which some could not be taken over."""
        if kernel_id not in self._lost:
            self._lost[kernel_id] = _NOT_TAKEN
            self._log.warning(
                "The connections to kernel %s cannot be taken over: %s", kernel_id, because
            )
        for held in self._left.pop(kernel_id, {}).values():
            held.close()
        for holder in self._holders:
            for channel in _SIZES:
                holder.drop(f"{kernel_id}/{channel}")

    def kernel(self, kernel_id: str) -> KeptKernel:
        """Return the connections of a kernel, with those that an earlier bridge left."""
        kept = self._kernels.get(kernel_id)
        if kept is None:
            lost = self._lost.pop(kernel_id, self._absent)
            left = self._left.pop(kernel_id, {})
            holder = next((held.holder for held in left.values()), self._holder)
            kept = KeptKernel(kernel_id, holder, left, lost, self._pool)
            self._kernels[kernel_id] = kept
        return kept

    async def wait_resumed(self) -> None:
        """Wait until the messages of all kernels have come again."""
        for kernel in list(self._kernels.values()):
            if kernel.resuming:
                await kernel.wait_resumed()

    @property
    def left(self) -> list[str]:
        """The ids of the kernels whose connections an earlier bridge left."""
        return list(self._left)

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel whose connections are closed; does nothing while they stay."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and not kernel.leaving:
            del self._kernels[kernel_id]
            kernel.close()

    def drop(self, kernel: KeptKernel, because: str = "") -> None:
        """End the connections of an earlier bridge that cannot go on."""
        self._lost[kernel.kernel_id] = because
        for port in kernel.ports.values():
            if port.held is not None:
                port.held.close()
                kernel.holder.drop(port.key)
        del self._kernels[kernel.kernel_id]

    def drop_left(self) -> None:
        """End the connections of an earlier bridge that no kernel uses."""
        for kernel in list(self._kernels.values()):
            if kernel.resumes and not kernel.used:
                self.drop(kernel)

    def leave(self) -> None:
        """Let all connections stay when this process closes its sockets."""
        for kernel in self._kernels.values():
            kernel.leaving = True

    def close(self) -> None:
        """Let the holder read the connections that stay."""
        if self._timer is not None:
            self._timer.cancel()
        for holder in self._holders:
            holder.close()

    def _add(self, holder: Holder) -> None:
        self._holders.add(holder)
        holder.on_lost = partial(self._on_lost, holder)

    def _on_lost(self, holder: Holder) -> None:
        """Start another holder process in a moment: later, if they end one after the other."""
        for kernel in self._kernels.values():
            if kernel.holder is holder:
                kernel.holder = self._holder
                kernel.lose()
        self._log.warning(
            "The process that keeps the connections to kernels has ended; another one is started in"
            " %g s. Until then, the end of this server loses output",
            self._delay,
        )
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._delay, self._start_again)
        self._delay = min(2 * self._delay, _LAST_DELAY)

    def _start_again(self) -> None:
        """Start a holder process, and give it the connections."""
        try:
            if not self._holder.running:  # a new kernel may have started one
                self._holder.start()
        except OSError as error:
            self._log.warning("The holder process cannot be started: %s", error)
            self._on_lost(self._holder)
            return
        for kernel in self._kernels.values():
            kernel.hold_again()


def _make_pool() -> MemoryPool:
    return MemoryPool(memory_size(list(_SIZES.values())))
