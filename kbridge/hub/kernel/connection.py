"""The connection to one kernel process: requests go out, verified messages come in.

It knows nothing of websockets. The messages of the kernel are verified, parsed, translated and
passed to one `KernelListener`.

Invariants:

- a kernel has one set of sockets, and they are always drained: PUB drops messages for a subscriber
  that does not read;
- no request is sent before the iopub subscription is proven (or `kernel_info_timeout` has passed):
  a request that is sent right after a start or a restart loses no output;
- replies to the bridge's own probes are not passed on, and nothing else is held back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kbridge.errors import InvalidMessage, KernelError, KernelMessageError
from kbridge.flow.activity import Activity
from kbridge.flow.log_throttle import LogThrottle
from kbridge.flow.lost_replies import LostReplies
from kbridge.flow.readiness import State
from kbridge.hub.context import HubContext
from kbridge.hub.kernel.adapter import Adapter, adapter_for, kernel_protocol
from kbridge.hub.kernel.events import KernelListener
from kbridge.hub.kernel.nudge import Nudge
from kbridge.hub.kernel.process_link import LinkFactory, ProcessLink
from kbridge.hub.kernel.recovery import Recovery
from kbridge.hub.kernel.requests import Requests
from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import RawMessage
from kbridge.wire.message import Channel, Message, scan, type_and_key
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize

__all__ = ["KernelConnection"]


class KernelConnection:
    """Connects to one kernel; `connect` opens the sockets.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.
    listener : KernelListener
        Receives the kernel's messages and the changes of the connection.
    make_link : callable
        Makes the sockets.
    former : sequence of bytes
        Identities of earlier bridges, to which the kernel may owe replies.

    Attributes
    ----------
    activity : Activity
        The state of the kernel, and the time of its last activity.
    signer : Signer
        Signs and verifies with the kernel's key.
    """

    def __init__(
        self,
        context: HubContext,
        listener: KernelListener,
        make_link: LinkFactory,
        former: Sequence[bytes] = (),
    ) -> None:
        settings, clock = context.settings, context.clock
        self._context = context
        self._clock = clock
        self._log = context.log
        self._notices = context.notices
        self._listener = listener
        self.activity = Activity(clock.wall(), quiet=settings.untracked_message_types)
        if context.adopted:
            # Until its shell answers a probe: the probe waits behind the running request.
            self.activity.presume_busy()
        self.signer = Signer(b"")
        self._adapter: Adapter | None = None
        self._process = ""  # the session that the kernel's process gave itself
        # True from a lost connection until another process was announced or seen.
        self._replaceable = False
        self._link = ProcessLink(make_link, self, former, context.log)
        self._requests = Requests(settings.request_limit)
        lost_replies = LostReplies(adopted=context.adopted, knows=self._requests.knows)
        self._recovery = Recovery(context, lost_replies, self)
        self._nudge = Nudge(context, self)
        self._closed_ports = LogThrottle()

    # -- requests ---------------------------------------------------------------------------

    def submit(self, msg: Message, client: int) -> asyncio.Future[None] | None:
        """Send a client's request, or queue it; see `Requests.submit`."""
        return self._requests.submit(msg, client, self._send)

    async def request(self, msg: Message, timeout: float | None) -> Message:
        """Send a request of the bridge itself, and return its reply; see `Requests.ask`."""
        return await self._requests.ask(msg, timeout, self._send)

    def _send(self, msg: Message) -> bool:
        """Send a request; False if the kernel is not ready or its socket is full."""
        if not self._nudge.ready:
            return False
        sent = msg if self._adapter is None else self._adapter.to_kernel(msg)
        if not self._link.send(sent.channel, serialize(sent, self.signer)):
            return False
        self._recovery.sent(msg)
        return True

    def _send_late(self, msg: Message) -> bool:
        """Send a request that has waited; drop it if the kernel's protocol does not have it."""
        try:
            return self._send(msg)
        except InvalidMessage as error:
            self._log.warning("A request was dropped: %s", error.reason)
            return True

    def _send_probe(self, channel: Channel) -> None:
        self._link.send(channel, serialize(self._notices.probe(channel), self.signer))

    # -- state ------------------------------------------------------------------------------

    @property
    def identities(self) -> list[bytes]:
        """Identities that the kernel may owe replies to, oldest first; the present one is last."""
        return [*self._link.former, self._link.identity]

    @property
    def ready(self) -> bool:
        """True if requests are sent: the kernel is proven, or its timeout has passed."""
        return self._nudge.ready

    @property
    def timed_out(self) -> bool:
        """True if requests are sent only because `kernel_info_timeout` has passed."""
        return self._nudge.timed_out

    async def wait_ready(self, timeout: float | None) -> bool:
        """Wait until requests are sent; see `Nudge.wait`."""
        return await self._nudge.wait(timeout)

    def verify_busy(self) -> None:
        """Probe a kernel that is shown as busy; its answer ends a busy state that is stale."""
        if self._nudge.ready and self.activity.doubt():
            self._send_probe(Channel.SHELL)

    def statistics(self) -> dict[str, Any]:
        """Return the figures of requests that wait."""
        return self._requests.statistics()

    # -- the life of the process ------------------------------------------------------------

    def connect(self, connection_info: Mapping[str, Any]) -> None:
        """Connect to a process of the kernel; the ports and the key may have changed.

        Raises
        ------
        KernelError
            If there is no way to the kernel's sockets.
        ValueError
            If the connection information is not valid.
        """
        self._disconnect()
        endpoints = replace(
            Endpoints.from_connection_info(connection_info),
            message_limit=self._context.settings.kernel_message_limit,
        )
        self._limit = endpoints.limit
        self.signer = Signer(endpoints.key, endpoints.signature_scheme)
        self._adapter = None
        self._process = ""
        self._replaceable = False
        self._link.open(endpoints)
        self._nudge.begin()

    def drain(self) -> None:
        """Deliver all messages that have arrived."""
        self._link.drain()

    async def restarting(self, *, keep: bool) -> None:
        """Deliver the last messages of a process that has ended, and forget its requests.

        With `keep`, requests that are queued are kept: they are meant for the next process.
        """
        await self._link.drain_until_disconnect()
        self._disconnect()
        self._requests.forget("the kernel was restarted", waiting=not keep)
        self._recovery.clear()
        self.activity.restarted(self._clock.wall())

    def dead(self) -> None:
        """Forget the process and all requests: it has ended for good."""
        self._disconnect()
        self._requests.forget("the kernel died")
        self._recovery.clear()
        self.activity.dead(self._clock.wall())

    def close(self) -> None:
        """Close the sockets, and fail all requests with `HubClosed`; may be called twice."""
        self._disconnect()
        self._requests.close()
        self._recovery.clear()
        self._nudge.close()

    def _disconnect(self) -> None:
        self._nudge.stop()
        self._link.close()

    # -- events of the link (KernelEvents) --------------------------------------------------

    def on_messages(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Verify, parse and deliver the messages of one batch."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        mark, signer = self._notices.mark, self.signer
        for frames in batch:
            try:
                msg = parse(channel, frames, signer)
                if mark in msg.parent_header and self._on_probed(msg, wall):
                    continue
                if self._adapter is not None:
                    msg = self._adapter.from_kernel(msg)
            except KernelMessageError as error:
                self._context.rejected.record(channel, error.reason)
                continue
            if channel is Channel.IOPUB:
                self._on_iopub(msg, now, wall)
            else:
                self._on_reply(msg, now, wall)

    def on_drained(self) -> None:
        """Report the end of a wake-up."""
        self._listener.on_drained()

    def on_writable(self, channel: Channel) -> None:
        """Send the requests that wait for a channel."""
        self._requests.flush((channel,), self._send_late)

    def on_connected(self, channel: Channel) -> None:
        """Note that a channel is connected to the kernel."""
        if channel is Channel.STDIN:
            self._nudge.stdin(up=True)
        elif channel is Channel.IOPUB:
            self._link.set_connected(True)
            self._nudge.connected()
            self._recovery.iopub_connected()
        elif channel is Channel.SHELL and self._nudge.ready:
            # Earlier requests and replies may be lost, so the busy state has to be verified.
            self._send_probe(Channel.SHELL)

    def on_disconnected(self, channel: Channel) -> None:
        """Note that a channel lost the kernel: verify the kernel again before sending requests."""
        if channel is Channel.STDIN:
            self._nudge.stdin(up=False)
        elif channel is Channel.SHELL:  # a kernel drops replies that it cannot send
            self._recovery.connection_lost()
        elif channel is Channel.IOPUB:
            self._link.set_connected(False)
            self._replaceable = True
            self._recovery.connection_lost(iopub=True)
            self._nudge.disconnected()
            self._listener.on_disconnected()

    def on_gone(self, channel: Channel) -> None:
        """Note that a channel was disconnected and is not connected again."""
        count = self._closed_ports.record(self._clock.monotonic())
        if count:
            self._log.warning(
                "Kernel %s: the connection to its %s port was closed and not opened again: the"
                " kernel has ended, or a message was larger than kernel_message_limit allows"
                " (%d bytes for a part of a message there). Connecting again (%d time(s))",
                self._context.kernel_id,
                channel,
                self._limit(channel),
                count,
            )
        if channel is not Channel.IOPUB and self._nudge.state is not State.LOST:
            self._nudge.stdin(up=False)
            self._renew()

    # -- messages ---------------------------------------------------------------------------

    def _on_iopub(self, msg: Message, now: float, wall: float) -> None:
        msg_type, key = type_and_key(msg.header)
        if not self._nudge.proven:
            self._note_process(msg)
            self._nudge.heard(welcome=msg_type == "iopub_welcome")
        if msg_type == "iopub_welcome":
            return  # it is for a new subscriber: the bridge
        if self._recovery.active:
            self._recovery.observe(msg, msg_type)
        self.activity.observe(msg, msg_type, wall)
        self._listener.on_output(msg, msg_type, key, now)

    def _on_reply(self, msg: Message, now: float, wall: float) -> None:
        """Deliver a message on shell, control or stdin."""
        if msg.channel is not Channel.STDIN:
            self.activity.replied(msg, msg.msg_type, wall)
            if msg.channel is Channel.SHELL and not self._recovery.replied(msg):
                return
        self._deliver_reply(msg, now)

    def _deliver_reply(self, msg: Message, now: float) -> None:
        client = self._requests.recipient(msg)
        if client is not None:
            self._listener.on_reply(msg, client, now)

    def _on_probed(self, msg: Message, wall: float) -> bool:
        """Note a message whose parent is a probe; return True to drop it.

        Only the reply and the status of a probe belong to the bridge. A kernel's thread prints
        with the latest request as its parent, which may be a probe.
        """
        if not self._nudge.proven:
            self._note_process(msg)
        if msg.channel is Channel.IOPUB:
            self._nudge.heard()
            return msg.msg_type == "status"
        if msg.msg_type != "kernel_info_reply":
            return False
        if msg.channel is Channel.SHELL:
            self.activity.free(wall)
            self._recovery.shell_answered()
        adapter = adapter_for(kernel_protocol(msg))
        if adapter is not None and self._adapter is None:
            self._log.info(
                "Kernel %s uses protocol %d; its messages are translated",
                self._context.kernel_id,
                adapter.major,
            )
            self._adapter = adapter
        self._nudge.replied()
        return True

    def _note_process(self, msg: Message) -> None:
        """Note the session that a message was sent under: another one means another process."""
        known, self._process = self._process, scan(msg.header, "session") or self._process
        self._notices.speak_as(self._process)
        # Some kernels use a new session for every message: only a lost connection makes another
        # session another process.
        if known and known != self._process and self._replaceable:
            self._replaceable = False
            self._recovery.clear()
            self.activity.restarted(self._clock.wall())
            if self._nudge.ready:
                self.activity.alive(self._clock.wall())
            self._listener.on_replaced()

    # -- readiness (NudgeEvents) ------------------------------------------------------------

    def send_probes(self) -> None:
        """Send a probe on shell and on control: a busy kernel answers control."""
        for channel in (Channel.SHELL, Channel.CONTROL):
            self._send_probe(channel)

    def renew_sockets(self) -> None:
        """Make new sockets, if possible; the nudge tries again later."""
        try:
            self._renew()
        except KernelError as error:
            self._log.warning("Kernel %s: no new sockets: %s", self._context.kernel_id, error)

    def on_kernel_ready(self, *, proven: bool) -> None:
        """Send the queued requests."""
        if proven:
            self.activity.alive(self._clock.wall())
        self._requests.flush(None, self._send_late)
        self._listener.on_ready()

    def _renew(self) -> None:
        """Connect under a new identity: the kernel is there, and ignores the present sockets."""
        self._log.info("Kernel %s is connected to under a new identity", self._context.kernel_id)
        self._recovery.connection_lost()
        self._link.renew(keep=self._recovery.active)

    # -- lost replies (RecoveryEvents) ------------------------------------------------------

    def on_reply_recovered(self, msg: Message) -> None:
        """Deliver a reply in place of a lost one, or the idle status that was lost with it."""
        if msg.channel is Channel.IOPUB:
            self._listener.on_notice(msg)
        else:
            self._deliver_reply(msg, self._clock.monotonic())
        self._listener.on_drained()

    def on_recovered(self) -> None:
        """Close the sockets of former identities."""
        self._link.drop_former()

    def on_unsure(self) -> None:
        """Probe the shell."""
        self._send_probe(Channel.SHELL)
