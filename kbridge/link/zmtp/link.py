"""The link to one kernel with ZMTP on plain sockets: four connections, however many clients listen.

The event loop calls `on_input` when bytes have arrived on a connection. All messages that one read
has completed are delivered as one batch, without a Task or a Future.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Final, TypeAlias

from kbridge.errors import KernelError, OldZmtp, ZmtpError
from kbridge.link.endpoints import Endpoints, new_identity
from kbridge.link.holder.keeper import KeptKernel
from kbridge.link.interfaces import KernelEvents, RawMessage
from kbridge.link.zmtp.address import Address
from kbridge.link.zmtp.connecting import Target
from kbridge.link.zmtp.connection import ZmtpConnection
from kbridge.wire.message import Buffer, Channel
from kbridge.wire.zmtp.peer import Limits

__all__ = ["ZmtpLink"]

_Connections: TypeAlias = dict[Channel, ZmtpConnection]
_Replay: TypeAlias = tuple[Channel, Iterator[list[RawMessage]]]

_DEALERS: Final = (Channel.SHELL, Channel.CONTROL, Channel.STDIN)
# Iopub last: a hub acts on its events at once, and needs the events of the other channels first.
_ORDER: Final = (*_DEALERS, Channel.IOPUB)
_GONE_SECONDS: Final = 2.0  # until a connection is made again that a fault of the peer has ended
_FORMER: Final = 4  # former identities; each needs three sockets
_MESSAGE_FACTOR: Final = 4  # all parts of a message may have this multiple of the limit of one part
_READS: Final = 16  # of one connection, before the end of another one is reported: 2 MiB
# A cell ends with a reply and an idle status. When one of them is read, the channel of the other is
# read as well, so that both are sent to clients in one write.
_BESIDE: Final = {Channel.SHELL: Channel.IOPUB, Channel.IOPUB: Channel.SHELL}
_FEW: Final = 8


class ZmtpLink:
    """The connections to one kernel, made from the start (`KernelSockets`).

    Parameters
    ----------
    endpoints : Endpoints
        The addresses of the kernel.
    events : KernelEvents
        The object to notify.
    identity : bytes
        The identity of shell, control and stdin at the kernel; a new one if empty.
    kept : KeptKernel or None
        Keeps the connections while no bridge runs. If an earlier bridge has left connections, the
        link goes on with them; `identity` is then theirs.

    Raises
    ------
    KernelError
        If no sockets can be made, or the addresses are not valid.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        events: KernelEvents,
        identity: bytes = b"",
        kept: KeptKernel | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._events = events
        self._soon = asyncio.get_running_loop().call_soon
        self._later = asyncio.get_running_loop().call_later
        self._connections: _Connections = {}
        self._former: list[_Connections] = []
        self._gone: dict[Channel, asyncio.TimerHandle] = {}
        self._kept = kept
        self._resuming: asyncio.Task[None] | None = None
        if kept is not None and kept.resumes:
            self._resume(identity)
            return
        self._connections = self._connect(_ORDER, identity or new_identity(), kept)

    @property
    def closed(self) -> bool:
        """True after `close` was called."""
        return not self._connections

    def send(self, channel: Channel, frames: Sequence[Buffer]) -> bool:
        """Send a message, or queue it while the kernel is not connected.

        Returns
        -------
        bool
            False if the channel's queue is full, or the link is closed; `on_writable` follows.
        """
        connection = self._connections.get(channel)
        return connection is not None and connection.writer.send(frames)

    def drain(self) -> None:
        """Deliver all messages that have arrived, now."""
        if any(list(self._slices())):
            self._events.on_drained()

    def drain_slices(self) -> Generator[None, None, None]:
        """Deliver all messages that have arrived, those of one read in each step."""
        with contextlib.closing(self._slices()) as slices:
            for delivered in slices:
                if delivered:
                    self._events.on_drained()
                yield

    def renew(self, identity: bytes, *, keep: bool) -> None:
        """Send requests through new sockets, under another identity.

        Parameters
        ----------
        identity : bytes
            The new identity; the kernel must not have seen it before.
        keep : bool
            True to keep receiving replies for the present identity until `drop_former`.

        Raises
        ------
        KernelError
            If the new sockets cannot be made; the present sockets stay in use.
        """
        new = self._connect(_DEALERS, identity, self._kept)
        old = {channel: self._connections[channel] for channel in _DEALERS}
        self._connections.update(new)
        for channel in _DEALERS:
            self._cancel_gone(channel)
        if keep:
            self._keep(old)
        else:
            _close(old)

    def receive_for(self, identity: bytes) -> None:
        """Also receive messages for a former identity, until `drop_former`.

        A kernel addresses replies and input requests to the identity that sent the request. Nothing
        may depend on these sockets: until a kernel's ROUTER has processed the disconnection of the
        former peer, it knows the identity, and then ignores a second peer of that name for good.

        Raises
        ------
        KernelError
            If the sockets cannot be created.
        """
        self._keep(self._connect(_DEALERS, identity))

    def drop_former(self) -> None:
        """Stop receiving for former identities."""
        former, self._former = self._former, []
        for connections in former:
            _close(connections)

    def close(self) -> None:
        """Close the connections and drop queued messages; may be called twice."""
        for channel in list(self._gone):
            self._cancel_gone(channel)
        if self._resuming is not None:
            self._resuming.cancel()
        connections, self._connections = self._connections, {}
        _close(connections)
        self.drop_former()

    # -- events of connections (ConnectionEvents) -------------------------------------------

    def on_input(self, connection: ZmtpConnection) -> None:
        """Deliver the messages that have arrived on a connection, and perhaps those beside it."""
        batch = connection.read()
        try:
            if batch:
                self._deliver(connection.channel, batch, light=connection.light)
        finally:  # the descriptor of a connection that has ended announces nothing more
            if connection.ended:
                self._settle()

    def on_established(self, connection: ZmtpConnection, early: list[RawMessage]) -> None:
        """Report that a channel is connected."""
        try:
            if connection.watched:
                self._cancel_gone(connection.channel)
                self._events.on_connected(connection.channel)
            if early and not self.closed:
                self._events.on_messages(connection.channel, early)
                self._events.on_drained()
        finally:
            if connection.ended:
                self._settle()

    def on_refused(self, connection: ZmtpConnection, fault: ZmtpError) -> None:
        """Try again later, unless the kernel needs another kind of link."""
        if not connection.watched:
            return
        channel = connection.channel
        if not isinstance(fault, OldZmtp):
            self._wait(channel, fault)
            return
        self._cancel_gone(channel)
        self._gone[channel] = self._later(_GONE_SECONDS, connection.retry)
        self._events.on_unsupported(channel)

    def on_room(self, connection: ZmtpConnection) -> None:
        """Report that a channel accepts messages again."""
        if connection.watched:
            self._events.on_writable(connection.channel)

    # -- inside -----------------------------------------------------------------------------

    def _connect(
        self, channels: Sequence[Channel], identity: bytes, kept: KeptKernel | None = None
    ) -> _Connections:
        """Return new connections; close all of them if one fails."""
        made: _Connections = {}
        try:
            for channel in channels:
                made[channel] = connection = self._make(channel, identity, kept)
                connection.connect()
        except OSError as error:
            _close(made)
            raise KernelError(f"cannot create more sockets: {error.strerror}") from None
        except BaseException:
            _close(made)
            raise
        return made

    def _make(self, channel: Channel, identity: bytes, kept: KeptKernel | None) -> ZmtpConnection:
        endpoints = self._endpoints
        limit = endpoints.limit(channel)
        target = Target(
            channel,
            Address(endpoints.transport, endpoints.ip, endpoints.ports[channel]),
            b"" if channel is Channel.IOPUB else identity,
            Limits(limit, _MESSAGE_FACTOR * limit),
        )
        return ZmtpConnection(target, self, None if kept is None else kept.ports[channel])

    def _resume(self, identity: bytes) -> None:
        """Go on with the connections of an earlier bridge."""
        assert self._kept is not None
        self._kept.resume()
        connections = {channel: self._make(channel, identity, self._kept) for channel in _ORDER}
        self._connections = connections
        try:
            # Iopub first: a reply may come after its output, but not before it.
            replays = [
                (channel, connections[channel].resume()) for channel in (Channel.IOPUB, *_DEALERS)
            ]
        except BaseException:
            _close(connections)
            raise
        self._resuming = asyncio.get_running_loop().create_task(self._replay(replays))

    async def _replay(self, replays: Sequence[_Replay]) -> None:
        """Deliver the messages that come again, then let all connections receive."""
        await asyncio.sleep(0)  # not before the owner has this link
        assert self._kept is not None
        try:
            for channel, batches in replays:
                for batch in batches:
                    self._events.on_messages(channel, batch)
                    self._events.on_drained()
                    await asyncio.sleep(0)
        except OSError:  # a disk fails
            for connection in self._connections.values():
                connection.close()
                connection.retry()
            return
        finally:
            self._kept.end_resume()
        for channel, connection in list(self._connections.items()):
            self._events.on_connected(channel)
            connection.start()

    def _keep(self, connections: _Connections) -> None:
        for connection in connections.values():
            connection.unwatch()
        self._former.append(connections)
        if len(self._former) > _FORMER:
            _close(self._former.pop(0))

    def _deliver(self, channel: Channel, batch: list[RawMessage], *, light: bool) -> None:
        """Deliver one batch, and that of the channel beside it if both may belong together.

        The second batch is written out apart if it is large, because a small journal might evict
        the first one in favour of it.
        """
        events = self._events
        events.on_messages(channel, batch)
        beside = self._connections.get(_BESIDE[channel]) if channel in _BESIDE else None
        if beside is not None and light and len(batch) <= _FEW:
            second = beside.read()
            if second:
                beside.early = True
                if not beside.light:
                    events.on_drained()
                events.on_messages(beside.channel, second)
            if beside.ended:
                events.on_drained()
                self._settle()
                return
        events.on_drained()

    def _all(self) -> list[ZmtpConnection]:
        """Return all connections, iopub last."""
        former = [connection for each in self._former for connection in each.values()]
        present = self._connections
        return former + [present[channel] for channel in _ORDER if channel in present]

    def _slices(self) -> Generator[bool, None, None]:
        """Deliver all messages that have arrived; yield after each read if there were some."""
        try:
            for connection in self._all():
                for batch in connection.read_before(connection.arrived):
                    if batch:
                        self._events.on_messages(connection.channel, batch)
                    yield bool(batch)
                yield self._read(connection)  # finds the end of a connection
        finally:
            if any(connection.ended for connection in self._all()):
                self._soon(self._settle)  # the caller does not expect other events

    def _read(self, connection: ZmtpConnection) -> bool:
        """Deliver the messages of one read; return True if there are some."""
        batch = connection.read()
        if batch:
            self._events.on_messages(connection.channel, batch)
        return bool(batch)

    def _settle(self) -> None:
        """Report the connections that have ended, after the messages that have arrived.

        A connection that has ended has no messages left. Of the others, a bounded number is read,
        so that a kernel cannot hold up the event loop.
        """
        delivered = False
        try:
            for connection in self._all():
                for _ in range(_READS):
                    found = self._read(connection)
                    delivered |= found
                    if not found and not connection.full:
                        break
            if delivered:
                self._events.on_drained()
        finally:
            self._report_ended()

    def _report_ended(self) -> None:
        for former in self._former:
            for connection in former.values():
                if connection.ended and connection.fault is None:
                    connection.retry()
        channels = []
        for channel in _ORDER:
            ended = self._connections.get(channel)
            if ended is not None and ended.ended and not (ended.fault and channel in self._gone):
                channels.append(channel)
                self._wait(channel, ended.fault)
                if ended.fault is None:
                    ended.retry()
        failure: Exception | None = None
        for channel in channels:
            if self.closed:
                break
            try:
                self._events.on_disconnected(channel)
            except Exception as error:  # noqa: BLE001  # the other channels have ended all the same
                failure = error
        if failure is not None:
            raise failure

    def _wait(self, channel: Channel, fault: ZmtpError | None) -> None:
        """Report later that a channel is gone, unless it is connected again before.

        After a fault of the peer, it is not connected again earlier.
        """
        self._cancel_gone(channel)
        self._gone[channel] = self._later(_GONE_SECONDS, self._on_gone, channel, fault)

    def _cancel_gone(self, channel: Channel) -> None:
        gone = self._gone.pop(channel, None)
        if gone is not None:
            gone.cancel()

    def _on_gone(self, channel: Channel, fault: ZmtpError | None) -> None:
        del self._gone[channel]
        self._connections[channel].retry()
        try:
            self._events.on_gone(channel, fault)
        except KernelError:  # no descriptor is free now; try again later
            if channel in self._connections:
                self._wait(channel, fault)


def _close(connections: _Connections) -> None:
    for connection in connections.values():
        connection.close()
