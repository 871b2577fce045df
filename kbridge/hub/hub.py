"""One kernel's hub: its sockets, its journal, and everybody who listens.

Laws of this module:

- a kernel has one set of sockets, whoever listens, and they are always drained;
- what a kernel says is judged and encoded once, then read by as many as there are;
- no request reaches a kernel before its iopub subscription is proven (or `kernel_info_timeout`
  has passed): what is sent right after a start or a restart loses no output;
- what belongs to the bridge's own probes reaches nobody else, and nothing else is held back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kbridge.errors import HubClosed, KernelMessageError
from kbridge.flow.activity import Activity
from kbridge.flow.complaints import Complaints
from kbridge.flow.journal import EVERYONE, LOSABLE, Journal
from kbridge.flow.policy import DROP, PASS, judge
from kbridge.flow.readiness import Decision
from kbridge.hub import policies
from kbridge.hub.adapt import Adapter, adapter_for, kernel_protocol
from kbridge.hub.clients import Attachment, Clients
from kbridge.hub.clock import Clock
from kbridge.hub.delivery import Delivery
from kbridge.hub.notices import Notices
from kbridge.hub.nudge import Nudge
from kbridge.hub.requests import Requests
from kbridge.hub.settings import HubSettings
from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import ClientLink, KernelEvents, KernelSockets, RawMessage, nobody
from kbridge.link.kernel import KernelLink
from kbridge.wire.dialects import Dialect
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.v1 import encode_frame
from kbridge.wire.zmq import parse, serialize

__all__ = ["Hub", "LinkFactory"]

LinkFactory = Callable[[Endpoints, KernelEvents], KernelSockets]

_FLUSH_TIMEOUT = 1.0  # seconds to wait for the last words of a kernel that has ended


class Hub:
    """The hub of one kernel; made open, on a running event loop.

    Parameters
    ----------
    kernel_id : str
        For the log.
    connection_info : mapping
        As a connection file has it.
    settings : HubSettings
        What can be set.
    link : callable
        Makes the link to the kernel; a test puts `kbridge.link.memory.MemoryKernel` here.
    clock : Clock
        The time.
    log : logging.Logger or adapter
        Where to say what happens.

    Attributes
    ----------
    activity : Activity
        What the kernel is doing, and when something last happened.
    journal : Journal
        What it said.
    notices : Notices
        Makes the bridge's own messages.
    signer : Signer
        The kernel's key, in use.
    """

    def __init__(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any],
        settings: HubSettings | None = None,
        *,
        link: LinkFactory = KernelLink,
        clock: Clock | None = None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] | None = None,
    ) -> None:
        settings = settings or HubSettings()
        self.kernel_id = kernel_id
        self.settings = settings
        self.log = log or logging.getLogger("kbridge.hub")
        self._clock = clock or Clock()
        self._make_link = link
        self.notices = Notices(self._clock)
        self.journal = Journal(settings.journal_limit, settings.history_limit)
        self.activity = Activity(self._clock.wall())
        self._clients = Clients(settings.resume_timeout)
        self._delivery = Delivery(self.journal, self.notices.lost, self._refuse)
        self._requests = Requests(settings.request_limit, self._link_send, self.log)
        self._nudge = Nudge(
            self._clock, settings.kernel_info_timeout, self._send_probes, self._on_ready
        )
        self._refused = Complaints()
        self._incoming = policies.incoming(settings)
        self._outgoing = policies.outgoing(settings, self.notices, self.log)
        self._adapter: Adapter | None = None
        self._down = asyncio.Event()
        self._link: KernelSockets | None = None
        self._closed = False
        self.reconnect(connection_info)

    # -- clients ----------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Websockets that are attached now."""
        return len(self._clients)

    def attach(self, link: ClientLink, dialect: Dialect, session_id: str = "") -> Attachment:
        """Add a websocket; what its session has missed is written to it at once.

        Raises
        ------
        HubClosed
            If the kernel is gone.
        """
        if self._closed:
            raise HubClosed("the kernel is gone")
        attachment = self._clients.attach(link, dialect, session_id, self.journal.end())
        link.on_writable = lambda: self._on_caught_up(attachment)
        self._delivery.pump(attachment)
        self._delivery.forget()
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Remove a websocket; may be called twice."""
        if self._clients.detach(attachment, self._clock.monotonic()):
            attachment.link.on_writable = nobody
            self._trim()

    def submit(self, attachment: Attachment, msg: Message) -> Awaitable[None] | None:
        """Send a client's message to the kernel.

        Returns
        -------
        Awaitable or None
            What to await before reading on from this websocket, where the kernel does not keep up.

        Raises
        ------
        InvalidMessage
            If the kernel's protocol has no such message.
        HubClosed
            If the kernel is gone.
        """
        if msg.channel is Channel.IOPUB:
            return None  # nobody listens there
        now = self._clock.monotonic()
        msg_type = msg.msg_type
        if judge(self._incoming, msg, msg_type, now) == DROP:
            self.log.warning("%s is not an allowed message type; ignored", msg_type)
            return None
        if msg_type != "kernel_info_request":
            self.activity.touch(self._clock.wall())
        return self._requests.submit(msg, attachment.client.number)

    def tell(self, attachment: Attachment, msg: Message) -> None:
        """Say something to one client, in order with what the kernel says."""
        self._append(msg, attachment.client.number, state=msg.msg_type not in LOSABLE)
        self.on_drained()

    def say(self, msg: Message, *, state: bool = True) -> None:
        """Say something to all clients, in order with what the kernel says."""
        self._append(msg, EVERYONE, state=state)
        self.on_drained()

    async def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        channel: Channel = Channel.SHELL,
        timeout: float | None = None,
    ) -> Message:
        """Ask the kernel something in the bridge's own name.

        Parameters
        ----------
        msg_type, content, channel
            The request.
        timeout : float, optional
            Seconds to wait for the reply.

        Raises
        ------
        TimeoutError
            If no reply came in time.
        HubClosed
            If the kernel went away.
        """
        msg = self.notices.request(channel, msg_type, content)
        return await self._requests.ask(msg, timeout)

    # -- the kernel's life ------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether requests go through: the kernel has proven itself, or was given up on."""
        return self._nudge.ready

    @property
    def timed_out(self) -> bool:
        """Whether requests go through only because `kernel_info_timeout` has passed."""
        return self._nudge.timed_out

    async def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until `ready`.

        Returns
        -------
        bool
            False if the kernel was given up on, or `timeout` seconds have passed.

        Raises
        ------
        HubClosed
            If the kernel went away.
        """
        return await self._nudge.wait(timeout)

    def reconnect(self, connection_info: Mapping[str, Any]) -> None:
        """Link to the kernel, anew where it was linked before: its ports and key may differ."""
        if self._closed:
            raise HubClosed("the kernel is gone")
        self._unlink()
        endpoints = Endpoints.from_connection_info(connection_info)
        self.signer = Signer(endpoints.key, endpoints.signature_scheme)
        self._adapter = None
        self._down.clear()
        self._link = self._make_link(endpoints, self)
        self._nudge.begin()

    def drain(self) -> None:
        """Take in all that has arrived from the kernel."""
        if self._link is not None:
            self._link.drain()

    async def restarting(self) -> None:
        """The kernel has ended, and another one will take its place.

        Clients see all that the old one said, then `status: restarting`. Requests that are
        outstanding are forgotten: nobody will answer them. Those that come from now on wait for
        the new one, which `reconnect` names.
        """
        await self._last_words()
        self._requests.forget("the kernel was restarted")
        self.activity.restarted(self._clock.wall())
        self.say(self.notices.status("restarting"))

    def dead(self) -> None:
        """The kernel has ended for good."""
        self._unlink()
        self._requests.forget("the kernel died")
        self.activity.dead(self._clock.wall())
        self.say(self.notices.status("dead"))

    async def aclose(self, code: int = 1001, reason: str = "the kernel was shut down") -> None:
        """Close the sockets, and the websockets with `code`; may be called twice.

        Raises
        ------
        Nothing
            What waits is told with HubClosed.
        """
        if self._closed:
            return
        if self._link is not None and not self._link.closed:
            self._link.drain()
        self._closed = True
        self._unlink()
        self._requests.close()
        self._nudge.close()
        for attachment in list(self._clients.attachments):
            attachment.link.close(code, reason)
            self.detach(attachment)

    def statistics(self) -> dict[str, Any]:
        """What is held, by its owner."""
        return {
            "journal": self.journal.statistics(),
            "clients": self._clients.statistics(),
            **self._requests.statistics(),
            "readiness": self._nudge.statistics(),
            "refused_kernel_messages": self._refused.total,
        }

    # -- what the link tells (KernelEvents) -------------------------------------------------

    def on_messages(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Judge, encode and journal what the kernel said."""
        now = self._clock.monotonic()
        wall = self._clock.wall()
        mark = self.notices.mark
        signer = self.signer
        for frames in batch:
            try:
                msg = parse(channel, frames, signer)
                if mark in msg.parent_header and self._on_probed(msg):
                    continue
                if self._adapter is not None:
                    msg = self._adapter.from_kernel(msg)
            except KernelMessageError as error:
                self._refuse(channel, error)
                continue
            if channel is Channel.IOPUB:
                self._on_iopub(msg, now, wall)
            else:
                self._on_reply(msg, now)

    def on_drained(self) -> None:
        """Write out what came, and forget what everybody has."""
        delivery = self._delivery
        for attachment in self._clients.attachments:
            if not attachment.blocked:
                delivery.pump(attachment)
        delivery.forget()
        self._trim()

    def on_writable(self, channel: Channel) -> None:
        """Send on what waits."""
        self._requests.flush(channel)

    def on_connected(self) -> None:
        """The kernel's side of iopub is there."""
        self._down.clear()
        self._nudge.connected()

    def on_disconnected(self) -> None:
        """The kernel's side of iopub went away: prove it anew before anything is sent."""
        self._down.set()
        self._nudge.disconnected()

    # -- what the kernel says ---------------------------------------------------------------

    def _on_iopub(self, msg: Message, now: float, wall: float) -> None:
        msg_type = msg.msg_type
        if not self._nudge.ready:
            self._nudge.heard(welcome=msg_type == "iopub_welcome")
        if msg_type == "iopub_welcome":
            return  # to a new subscriber, and that is the bridge
        self.activity.observe(msg, msg_type, wall)
        verdict = judge(self._outgoing, msg, msg_type, now)
        if verdict is not PASS:
            for other in verdict:
                self._append(other, EVERYONE, state=other.msg_type not in LOSABLE)
            return
        self.journal.append(encode_frame(msg), state=msg_type not in LOSABLE)

    def _on_reply(self, msg: Message, now: float) -> None:
        """A message on shell, control or stdin."""
        audience = self._requests.audience(msg)
        if audience is None:
            return
        verdict = judge(self._outgoing, msg, msg.msg_type, now)
        for each in (msg,) if verdict is PASS else verdict:
            self._append(each, audience, state=True)

    def _on_probed(self, msg: Message) -> bool:
        """Take a probe's reply and status for evidence, and for nobody else's business.

        Other messages with a probe for a parent are: a kernel's thread that prints names as its
        parent whatever request came last.
        """
        if msg.channel is Channel.IOPUB:
            self._nudge.heard()
            return msg.msg_type == "status"
        if msg.msg_type != "kernel_info_reply":
            return False
        adapter = adapter_for(kernel_protocol(msg))
        if adapter is not None and self._adapter is None:
            self.log.info(
                "kernel %s speaks protocol %d; translating", self.kernel_id, adapter.major
            )
            self._adapter = adapter
        self._nudge.replied()
        return True

    def _refuse(self, channel: Channel, error: KernelMessageError) -> None:
        count = self._refused.note(self._clock.monotonic())
        if count:
            self.log.warning(
                "kernel %s: %d message(s) refused, the last one on %s: %s",
                self.kernel_id,
                count,
                channel,
                error.reason,
            )

    def _on_caught_up(self, attachment: Attachment) -> None:
        self._delivery.resume(attachment)
        self._trim()

    def _trim(self) -> None:
        journal = self.journal
        if journal.nbytes > journal.history_limit:
            journal.trim(self._clients.slowest(self._clock.monotonic(), journal.next_seq))

    def _append(self, msg: Message, audience: int, *, state: bool) -> None:
        self.journal.append(encode_frame(msg), audience, state=state)

    # -- what is said to the kernel ---------------------------------------------------------

    def _link_send(self, msg: Message) -> bool:
        if not self.ready or self._link is None:
            return False
        if self._adapter is not None:
            msg = self._adapter.to_kernel(msg)
        return self._link.send(msg.channel, serialize(msg, self.signer))

    def _send_probes(self) -> None:
        if self._link is not None:
            for channel in (Channel.SHELL, Channel.CONTROL):
                self._link.send(channel, serialize(self.notices.probe(channel), self.signer))

    def _on_ready(self, decision: Decision) -> None:
        if decision.timed_out:
            self.log.warning(
                "kernel %s has not answered for %g s (kernel_info_timeout); sending all the same",
                self.kernel_id,
                self.settings.kernel_info_timeout,
            )
        else:
            self.activity.alive(self._clock.wall())
        self._requests.flush()

    async def _last_words(self) -> None:
        """Take in all that the kernel said before it ended."""
        if self._link is None or self._link.closed:
            return
        try:
            async with asyncio.timeout(_FLUSH_TIMEOUT):
                await self._down.wait()
        except TimeoutError:
            self.log.debug("kernel %s did not hang up", self.kernel_id)
        self._link.drain()
        self._unlink()

    def _unlink(self) -> None:
        self._nudge.stop()
        if self._link is not None:
            self._link.close()
            self._link = None
