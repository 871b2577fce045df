"""The link to the present process of a kernel: its sockets, its key and its protocol."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from kbridge.errors import KernelError, MessageTooBig, ZmtpError
from kbridge.flow.log_throttle import LogThrottle
from kbridge.hub.kernel.adapter import Adapter, adapter_for, kernel_protocol
from kbridge.link.endpoints import Endpoints, new_identity
from kbridge.link.interfaces import KernelEvents, KernelSockets, LinkFactory
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize

__all__ = ["ProcessLink"]

_FORMER: Final = 4  # former identities that still receive replies; each takes three sockets
_FLUSH_TIMEOUT: Final = 1.0  # seconds to wait for the last messages of a kernel that has ended
_DRAIN_TIMEOUT: Final = 30.0  # seconds for their delivery; 1 GiB has been seen to take as long


class ProcessLink:
    """The sockets of one kernel process; at most one set at a time.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel, for log messages.
    make : callable
        Makes the links.
    events : KernelEvents
        Receives the events of the links.
    former : sequence of bytes
        Identities of earlier bridges, to which the kernel may owe replies.
    log : logging.Logger or adapter
        The logger.

    Attributes
    ----------
    identity : bytes
        The ZeroMQ identity of the hub. Each kernel process and each set of sockets gets a new one:
        a ROUTER that has not noticed the end of a peer ignores a new peer with the same identity.
    former : list of bytes
        Identities to which this process of the kernel may owe replies.
    link : KernelSockets or None
        The sockets; None while no process is known.
    signer : Signer
        Signs and verifies with the key of the kernel.
    adapter : Adapter or None
        Translates the messages of a process with an older protocol.
    protocol : str
        The protocol of the process; empty until it is known.
    session : str
        The session under which the process sends its messages; empty until it is known.
    """

    def __init__(
        self,
        kernel_id: str,
        make: LinkFactory,
        events: KernelEvents,
        former: Sequence[bytes],
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
    ) -> None:
        self.identity = new_identity()
        self.former = list(former[-_FORMER:])
        self.link: KernelSockets | None = None
        self.signer = Signer(b"")
        self.adapter: Adapter | None = None
        self.protocol = ""
        self.session = ""
        # True from a lost connection until another process was announced or seen.
        self._replaceable = False
        self._kernel_id = kernel_id
        self._make = make
        self._events = events
        self._log = log
        self._disconnected = asyncio.Event()
        self._closed_ports = LogThrottle()

    def open(self, connection_info: Mapping[str, Any], message_limit: int) -> None:
        """Make the sockets; call after `close`.

        Parameters
        ----------
        connection_info : mapping
            The content of the connection file.
        message_limit : int
            See `Endpoints.message_limit`.

        Raises
        ------
        KernelError
            If no sockets to the kernel can be made.
        ValueError
            If the connection information is not valid.
        """
        endpoints = replace(
            Endpoints.from_connection_info(connection_info), message_limit=message_limit
        )
        self._endpoints = endpoints
        self.signer = Signer(endpoints.key, endpoints.signature_scheme)
        self.adapter = None
        self.protocol = ""
        self.session = ""
        self._replaceable = False
        self._disconnected.clear()
        self.link = self._make(endpoints, self._events, self.identity)
        self._receive_for_former(self.link)

    def resume(self, identity: bytes) -> None:
        """Go on under the identity of an earlier bridge; call it before `open`."""
        self.former = [each for each in self.former if each != identity]
        self.identity = identity

    def switch(self, make: LinkFactory) -> None:
        """Connect with another kind of link from now on, also to later processes.

        Raises
        ------
        KernelError
            If no sockets to the kernel can be made; the present link stays in use.
        """
        identity = new_identity()
        link = make(self._endpoints, self._events, identity)
        if self.link is not None:
            self.link.close()
        self._make, self.link, self.identity = make, link, identity
        self._receive_for_former(link)

    def _receive_for_former(self, link: KernelSockets) -> None:
        self._receive_for(link, self.former)

    def _receive_for(self, link: KernelSockets, identities: Sequence[bytes]) -> None:
        try:
            for identity in identities:
                link.receive_for(identity)
        except KernelError as error:  # old replies are not essential
            self._log.warning(
                "Replies to requests of an earlier connection cannot be received: %s", error
            )

    def renew(self, *, keep: bool) -> None:
        """Send requests under a new identity; with `keep`, still receive for the present one."""
        if self.link is None:
            return
        self._log.info("Kernel %s is connected to under a new identity", self._kernel_id)
        identity = new_identity()
        self.link.renew(identity, keep=keep)
        if keep:
            self.former = [*self.former, self.identity][-_FORMER:]
        self.identity = identity

    def receive_also(self, identities: Sequence[bytes]) -> None:
        """Receive replies for the identities of another replica, too, which has ended."""
        added = [each for each in identities if each not in (self.identity, *self.former)]
        added = added[-_FORMER:]
        self.former = [*self.former, *added][-_FORMER:]
        if self.link is not None:
            self._receive_for(self.link, added)

    def drop_former(self) -> None:
        """Stop receiving for former identities."""
        self.former.clear()
        if self.link is not None:
            self.link.drop_former()

    def connected(self) -> None:
        """Note that iopub is connected."""
        self._disconnected.clear()

    def disconnected(self) -> None:
        """Note that iopub is disconnected: another process may answer next."""
        self._disconnected.set()
        self._replaceable = True
        self.protocol = ""

    def learn_session(self, session: str) -> bool:
        """Note the session of a message; return True if it came from another process."""
        known, self.session = self.session, session
        # Some kernels use a new session for every message: only a lost connection makes another
        # session another process.
        if not known or known == session or not self._replaceable:
            return False
        self._replaceable = False
        return True

    def learn_protocol(self, kernel_info_reply: Message) -> None:
        """Note the protocol of the process; messages of an older one are translated from now on.

        Raises
        ------
        KernelMessageError
            If the content of the reply is not a JSON object.
        """
        self.protocol = kernel_protocol(kernel_info_reply)
        adapter = adapter_for(self.protocol)
        if adapter is not None and self.adapter is None:
            self._log.info(
                "Kernel %s uses protocol %d; its messages are translated",
                self._kernel_id,
                adapter.major,
            )
            self.adapter = adapter

    def log_closed_port(self, channel: Channel, fault: ZmtpError | None, now: float) -> None:
        """Warn, once per minute, that the connection of a channel was closed for a fault."""
        count = self._closed_ports.record(now)
        if not count:
            return
        if fault is not None:
            self._log.warning(
                "Kernel %s: the connection to its %s port was ended: %s%s. Connecting again"
                " (%d time(s))",
                self._kernel_id,
                channel,
                fault.reason,
                "; see kernel_message_limit" if isinstance(fault, MessageTooBig) else "",
                count,
            )
        else:
            self._log.warning(
                "Kernel %s: the connection to its %s port was closed and not opened again: the"
                " kernel has ended, or a message was larger than kernel_message_limit allows"
                " (%d bytes for a part of a message there). Connecting again (%d time(s))",
                self._kernel_id,
                channel,
                self._endpoints.limit(channel),
                count,
            )

    def log_unsupported(self, channel: Channel, now: float) -> None:
        """Warn, once per minute, that a kernel cannot be reached with the present setting."""
        count = self._closed_ports.record(now)
        if count:
            self._log.warning(
                "Kernel %s: its %s port speaks ZMTP 1.0 or 2.0 only, which needs libzmq: set link"
                " to auto or pyzmq (%d time(s))",
                self._kernel_id,
                channel,
                count,
            )

    def send(self, msg: Message) -> bool:
        """Sign and send a message; return False if there is no link or its queue is full."""
        return self.link is not None and self.link.send(msg.channel, serialize(msg, self.signer))

    def drain(self) -> None:
        """Deliver all messages that have arrived."""
        if self.link is not None and not self.link.closed:
            self.link.drain()

    async def drain_until_disconnect(self) -> None:
        """Deliver all messages of a process that has ended: wait until it is disconnected."""
        if self.link is None or self.link.closed:
            return
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._disconnected.wait()
        except TimeoutError:
            self._log.debug("A kernel process that has ended is still connected")
        await self.drain_slowly()

    async def drain_slowly(self) -> None:
        """Deliver all messages that have arrived, while the event loop does other work, too.

        After some time, the messages that are left are given up: libzmq does not say how many
        there are, and a kernel may send without end.
        """
        link = self.link
        if link is None or link.closed:
            return
        try:
            async with asyncio.timeout(_DRAIN_TIMEOUT):
                with closing(link.drain_slices()) as slices:
                    for _ in slices:
                        await asyncio.sleep(0)
                        if self.link is not link:  # closed in the meantime
                            break
        except TimeoutError:
            self._log.warning(
                "Kernel %s: not all of its last messages were delivered within %g s",
                self._kernel_id,
                _DRAIN_TIMEOUT,
            )

    def close(self) -> None:
        """Close the link, if there is one. Replies owed to its identities are lost."""
        if self.link is not None:
            self.link.close()
            self.link = None
            self.former.clear()
            self.identity = new_identity()
