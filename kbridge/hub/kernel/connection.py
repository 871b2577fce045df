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
from contextlib import suppress
from typing import Any

from kbridge.errors import (
    HubClosed,
    InvalidSignature,
    KernelError,
    KernelMessageError,
    ZmtpError,
)
from kbridge.flow.activity import Activity
from kbridge.flow.execution import Execution
from kbridge.flow.lost_replies import Owed
from kbridge.flow.readiness import Decision, Event, Readiness, State
from kbridge.flow.seam import Seam
from kbridge.hub.context import HubContext
from kbridge.hub.counts import Counts
from kbridge.hub.kernel.events import KernelListener
from kbridge.hub.kernel.loss import KernelLoss
from kbridge.hub.kernel.process_link import ProcessLink
from kbridge.hub.kernel.requests import Requests
from kbridge.link.choice import LinkKind, make_link
from kbridge.link.interfaces import LinkFactory, RawMessage
from kbridge.wire.headers import type_and_key
from kbridge.wire.message import Channel, Message, scan
from kbridge.wire.signing import Signer
from kbridge.wire.speedups import encode_frame, read_message, read_texts
from kbridge.wire.zmq import parse

__all__ = ["KernelConnection"]


class KernelConnection:
    """Connects to one kernel; `connect` opens the sockets.

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.
    listener : KernelListener
        Receives the kernel's messages and the changes of the connection.
    link : callable
        Makes the sockets.
    former : sequence of bytes
        Identities of earlier bridges, to which the kernel may owe replies.

    Attributes
    ----------
    activity : Activity
        The state of the kernel, and the time of its last activity.
    on_drained : callable
        Reports the end of a wake-up: the listener's own method, to save a call per wake-up.
    """

    def __init__(
        self,
        context: HubContext,
        listener: KernelListener,
        link: LinkFactory,
        former: Sequence[bytes] = (),
    ) -> None:
        settings, clock = context.settings, context.clock
        self._context = context
        self._clock = clock
        self._log = context.log
        self._notices = context.notices
        self._listener = listener
        self.on_drained = listener.on_drained
        self._loop = asyncio.get_running_loop()
        self.activity = Activity(clock.wall(), quiet=settings.untracked_message_types)
        if context.adopted:
            # Until its shell answers a probe: the probe waits behind the running request.
            self.activity.presume_busy()
        self._link = ProcessLink(context.kernel_id, link, self, former, self._log)
        # While messages come again that an earlier bridge has read.
        self._seam = None if context.kept is None else context.kept.seam
        # True if output is missing behind the messages that come again.
        self._incomplete = context.kept is not None and context.kept.resumes and context.kept.full
        if context.kept is not None and context.kept.resumes:
            self.activity.presume_busy()
            self._link.resume(context.kept.identity)
        self._requests = Requests(context, self._link)
        self._readiness = Readiness(timeout=settings.kernel_info_timeout)
        self._announced: Decision | None = None  # the last decision, if it was to send requests
        self._unmarked = b""  # the latest parent header that is not that of a probe
        self._next_ready: asyncio.Future[bool] = self._loop.create_future()
        self._held = self._reserved = False
        self._poll_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._received = dict.fromkeys(Channel, 0)  # messages
        self._loss = KernelLoss(context)
        self._unsent = self._loss.unsent
        self._forged = self._probes = 0
        self._replaced = 0  # processes that were replaced without a report

    # -- requests and state -----------------------------------------------------------------

    def submit(self, msg: Message, client: int) -> asyncio.Future[None] | None:
        """Send a client's request, or queue it; see `Requests.submit`."""
        ready = self._readiness.ready and not self._reserved
        return self._requests.submit(msg, client, ready=ready)

    async def request(self, msg: Message, timeout: float | None) -> Message:
        """Send a request of the bridge itself, and return its reply; see `Requests.ask`."""
        ready, first = self._readiness.ready, self._reserved
        return await self._requests.ask(msg, timeout, ready=ready, first=first)

    def take_waiting(self) -> list[tuple[Message, int]]:
        """Remove the requests to execute code that wait; see `Requests.take_waiting`."""
        return self._requests.take_waiting()

    def hold(self) -> None:
        """Send none of the requests that wait, until `release`."""
        self._held = True

    def release(self) -> None:
        """Send requests that wait again, at once if the kernel is ready."""
        self._held = False
        self._flush()

    def reserve(self, reserved: bool) -> None:
        """Send requests of the bridge only, or those of clients again."""
        self._reserved = reserved
        self._flush()

    def _flush(self) -> None:
        if self._readiness.ready and not self._held and not self._reserved:
            self._requests.flush()

    @property
    def connected(self) -> bool:
        """True if there are sockets to a process of the kernel, which may not answer yet."""
        return self._link.link is not None

    @property
    def identities(self) -> list[bytes]:
        """Identities that the kernel may owe replies to, oldest first; the present one is last."""
        return [*self._link.former, self._link.identity]

    @property
    def signer(self) -> Signer:
        """Signs and verifies with the kernel's key."""
        return self._link.signer

    @property
    def ready(self) -> bool:
        """True if requests are sent: the kernel is proven, or its timeout has passed."""
        return self._readiness.ready

    @property
    def timed_out(self) -> bool:
        """True if requests are sent only because `kernel_info_timeout` has passed."""
        return self._readiness.timed_out

    @property
    def listens(self) -> bool:
        """True while iopub is connected."""
        return self._readiness.connected

    async def wait_ready(self, timeout: float | None) -> bool:
        """Wait until `ready`; return False if the kernel is not proven, or after `timeout`.

        Raises
        ------
        HubClosed
            After `close`.
        """
        if self._readiness.ready:
            return not self._readiness.timed_out
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._next_ready)
        except TimeoutError:
            return False

    def statistics(self) -> dict[str, Any]:
        """Return the figures of requests that wait."""
        return self._requests.statistics()

    def counters(self) -> Counts:
        """Return the numbers that only grow, see `kbridge.hub.counts`."""
        counts = self._requests.counters()
        for channel, received in self._received.items():
            counts["kernel_messages", "from_kernel", channel] = received
        refused = self._context.rejected.total
        counts["refused_messages", "forged"] = self._forged
        counts["refused_messages", "invalid"] = refused - self._forged
        counts["kernel_probes",] = self._probes
        counts["kernel_restarts", "noticed"] = self._replaced
        counts["kernel_unsent_messages",] = self._unsent.total
        return counts

    def restore(self, requests: Sequence[Execution]) -> None:
        """Note the requests of an earlier bridge that have not ended; call it before `connect`."""
        self._requests.restore(requests, self._clock.monotonic())

    def take_over(self, identities: Sequence[bytes], requests: Sequence[Owed]) -> None:
        """Go on in the place of another replica, which has ended.

        Parameters
        ----------
        identities : sequence of bytes
            Those of that replica, to which the kernel may owe replies.
        requests : sequence of Owed
            Its requests that have no reply, in the order in which they were sent.
        """
        self._link.receive_also(identities)
        self._requests.take_over(requests, self._clock.monotonic())
        if self._readiness.ready:
            self._probe(Channel.SHELL)
        self.recover()

    # -- the life of the process ------------------------------------------------------------

    def connect(self, connection_info: Mapping[str, Any]) -> None:
        """Connect to a process of the kernel; the ports and the key may have changed.

        Raises
        ------
        KernelError
            If the kernel's sockets cannot be reached.
        ValueError
            If the connection information is not valid.
        """
        self._disconnect()
        self._link.open(connection_info, self._context.settings.kernel_message_limit)
        self.poll()

    def drain(self) -> None:
        """Deliver all messages that have arrived."""
        self._link.drain()

    async def drain_slowly(self) -> None:
        """Deliver all messages that have arrived, while the event loop does other work, too."""
        await self._link.drain_slowly()

    async def restarting(self, *, keep: bool) -> frozenset[str]:
        """Deliver the last messages of a process that has ended, and forget its requests.

        With `keep`, requests that are queued are kept: they are meant for the next process. The
        result is the `msg_id` of each of them.
        """
        await self._link.drain_until_disconnect()
        self._requests.forget("the kernel was restarted", waiting=not keep)
        self._disconnect()
        self.activity.restarted(self._clock.wall())
        return self._requests.waiting

    def dead(self) -> None:
        """Forget the process and all requests: it has ended for good."""
        self._requests.forget("the kernel died")
        self._disconnect()
        self.activity.dead(self._clock.wall())

    def close(self) -> None:
        """Close the sockets, and fail all requests with `HubClosed`; may be called twice."""
        self._requests.close()
        self._disconnect()
        if not self._next_ready.done():
            self._next_ready.set_exception(HubClosed("the kernel is gone"))
            self._next_ready.exception()  # retrieved: perhaps nobody waits

    def _disconnect(self) -> None:
        self._readiness.reset(self._clock.monotonic())
        self._announced = self._poll_at = None
        self._loss.restarted()
        self._link.close()
        self._set_timer()

    # -- events of the link (KernelEvents) --------------------------------------------------

    def on_messages(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Deliver the messages of one batch, except those that an earlier bridge has written."""
        if self._seam is not None:
            batch = self._without_written(channel, batch, self._seam)
        self._received[channel] += len(batch)
        arrived = self._unsent.arrived + len(batch)
        self._deliver(channel, batch)
        self._unsent.arrived = arrived

    def _deliver(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Verify, parse and deliver messages."""
        now, wall = self._clock.monotonic(), self._clock.wall()
        link, iopub = self._link, channel is Channel.IOPUB
        if iopub and self._readiness.proven and not self._requests.owed and link.adapter is None:
            self._deliver_output(batch, now, wall)
            return
        for frames in batch:
            self._unsent.arrived += 1
            try:
                msg, msg_type, key = read_message(channel, frames, link.signer)
                if self._is_probed(msg, now, wall):
                    continue
                if link.adapter is not None:
                    msg = link.adapter.from_kernel(msg)
                    msg_type, key = type_and_key(msg.header)
            except KernelMessageError as error:
                self._reject(channel, error)
                continue
            if iopub:
                self._on_iopub(msg, msg_type, key, now, wall)
            else:
                self._on_reply(msg, msg_type, key, now, wall)

    def _deliver_output(self, batch: list[RawMessage], now: float, wall: float) -> None:
        """Deliver messages on iopub, the texts of a run together.

        Nothing else has to look at texts. They may have a probe as their parent, see `_on_probed`.
        """
        signer, at = self._link.signer, 0
        earlier = self._unsent.arrived
        while at < len(batch):
            try:
                texts, keys, after = read_texts(batch, at, signer)
            except KernelMessageError as error:
                self._reject(Channel.IOPUB, error)
                at += 1
                continue
            at += len(texts)
            if texts:
                self._on_texts(texts, keys, now, wall)
            if after is not None:
                at += 1
                msg, msg_type, key = after
                self._unsent.arrived = earlier + at
                if not self._is_probed(msg, now, wall):
                    self._on_iopub(msg, msg_type, key, now, wall)

    def _reject(self, channel: Channel, error: KernelMessageError) -> None:
        self._received[channel] -= 1
        self._forged += isinstance(error, InvalidSignature)
        self._context.rejected.record(channel, error.reason)

    def _is_probed(self, msg: Message, now: float, wall: float) -> bool:
        """Return True to drop a message, because it answers a probe; see `_on_probed`."""
        # Most messages have the parent of the message before.
        if msg.parent_header == self._unmarked:
            return False
        if self._notices.mark in msg.parent_header:
            probed = self._on_probed(msg, now, wall)
            self._received[msg.channel] -= probed
            return probed
        self._unmarked = msg.parent_header
        return False

    def _without_written(
        self, channel: Channel, batch: list[RawMessage], seam: Seam
    ) -> list[RawMessage]:
        """Return the messages of a batch that are not in the file of the journal."""
        left = []
        for frames in batch:
            with suppress(KernelMessageError):
                if seam.is_written(encode_frame(parse(channel, frames, self._link.signer))):
                    continue
            left.append(frames)
        return left

    def on_writable(self, channel: Channel) -> None:
        """Send the requests that wait for a channel."""
        if self._readiness.ready and not self._held and not self._reserved:
            self._requests.flush((channel,))

    def on_connected(self, channel: Channel) -> None:
        """Note that a channel is connected to the kernel."""
        self._seam = None
        self._unsent.reset()
        if channel is Channel.STDIN:
            self.poll(Event.STDIN_CONNECTED)
        elif channel is Channel.IOPUB:
            self._context.tell_given_up()  # no memory for the connection, for example
            self._link.connected()
            self.poll(Event.CONNECTED)
            if self._incomplete:  # behind the stored output, a status may be missing, too
                self._incomplete = False
                self._requests.connection_lost(iopub=True)
                self._set_timer()
            if self._requests.owed:
                self._deliver_made(self._requests.mark_cut())
        elif channel is Channel.SHELL and self._readiness.ready:
            # Earlier requests and replies may be lost, so the busy state has to be verified.
            self._probe(Channel.SHELL)

    def on_disconnected(self, channel: Channel) -> None:
        """Note that a channel lost the kernel: verify the kernel again before sending requests."""
        if channel is Channel.STDIN:
            self.poll(Event.STDIN_DISCONNECTED)
        elif channel is Channel.SHELL:  # a kernel drops replies that it cannot send
            self._requests.connection_lost()
            self._set_timer()
        elif channel is Channel.IOPUB:
            self._link.disconnected()
            self._requests.connection_lost(iopub=True)
            self.poll(Event.DISCONNECTED)
            self._listener.on_disconnected()

    def on_gone(self, channel: Channel, fault: ZmtpError | None = None) -> None:
        """Note that the connection of a channel was closed, and may need a new identity."""
        self._link.log_closed_port(channel, fault, self._clock.monotonic())
        if channel is not Channel.IOPUB and self._readiness.state is not State.LOST:
            self.poll(Event.STDIN_DISCONNECTED)
            self._renew()

    def on_unsupported(self, channel: Channel) -> None:
        """Use libzmq for this kernel from now on, if the setting `link` leaves the choice."""
        now = self._clock.monotonic()
        if self._context.settings.link != LinkKind.AUTO:
            self._link.log_unsupported(channel, now)
            return
        kernel_id = self._context.kernel_id
        try:
            self._link.switch(make_link(LinkKind.PYZMQ))
        except KernelError as error:  # the present link tries and reports it again
            self._log.warning("Kernel %s: no sockets of libzmq: %s", kernel_id, error)
            return
        self._context.give_up_connections("the kernel speaks ZMTP 2.0 or older")
        self._log.info("Kernel %s speaks an old ZMTP: libzmq connects to it", kernel_id)
        self._readiness.reset(now)
        self._announced = self._poll_at = None
        self.poll()

    # -- messages ---------------------------------------------------------------------------

    def _on_texts(self, texts: list[Message], keys: list[int], now: float, wall: float) -> None:
        """Deliver stream messages in a row, when nothing else has to look at them."""
        self.activity.observe(texts[0], "stream", wall)
        if len(texts) == 1:
            self._listener.on_output(texts[0], "stream", keys[0], now)
        else:
            self._listener.on_texts(texts, keys, now)

    def _on_iopub(self, msg: Message, msg_type: str, key: int, now: float, wall: float) -> None:
        if not self._readiness.proven:
            self._note_process(msg, wall)
            self.poll(Event.WELCOME if msg_type == "iopub_welcome" else Event.IOPUB)
        if msg_type == "iopub_welcome":
            self._received[Channel.IOPUB] -= 1
            return  # the message is for a new subscriber, the bridge
        if self._requests.owed:
            self._requests.observe(msg, msg_type, now)
            if msg_type == "status":
                self._set_timer()
        if msg_type == "status" and self._seam is None:
            for notice in self._loss.on_status(msg):
                self._listener.on_notice(notice)
        self.activity.observe(msg, msg_type, wall)
        self._listener.on_output(msg, msg_type, key, now)

    def _on_reply(self, msg: Message, msg_type: str, key: int, now: float, wall: float) -> None:
        """Deliver a message on shell, control or stdin."""
        if msg.channel is not Channel.STDIN:
            self.activity.replied(msg, msg_type, wall)
            if msg_type == "execute_reply" and msg.channel is Channel.SHELL:
                wanted = self._requests.replied(msg, now)
                self._loss.on_reply(msg, now)
                if self._requests.owed or self._timer is None:
                    self._set_timer()
                if not wanted:
                    return
        self._deliver_reply(msg, msg_type, key, now)

    def _deliver_reply(self, msg: Message, msg_type: str, key: int, now: float) -> None:
        client = self._requests.recipient(msg)
        if client is not None:
            self._listener.on_reply(msg, msg_type, key, client, now)

    def _on_probed(self, msg: Message, now: float, wall: float) -> bool:
        """Note a message whose parent is a probe; return True to drop it.

        Only the reply and the status of a probe belong to the bridge. A kernel's thread prints
        with the latest request as its parent, which may be a probe.
        """
        msg_type, proven = msg.msg_type, self._readiness.proven
        if not proven:
            self._note_process(msg, wall)
        if msg.channel is Channel.IOPUB:
            if not proven:
                self.poll(Event.IOPUB)
            if msg_type == "status":
                self._deliver_made(self._loss.on_probe_status(msg))
            return msg_type == "status"
        if msg_type != "kernel_info_reply":
            return False
        if msg.channel is Channel.SHELL:
            self.activity.free(wall)
            if self._requests.owed:
                unsure = self._requests.shell_answered(now)
                self._set_timer()
                if unsure:
                    self._probe(Channel.SHELL)
        if not self._link.protocol:
            self._link.learn_protocol(msg)
            if (adapter := self._link.adapter) is not None:
                # The next bridge would not know the protocol when it reads the messages.
                self._context.give_up_connections(f"the kernel uses protocol {adapter.major}")
        if not proven:
            self.poll(Event.REPLY)
        return True

    def _note_process(self, msg: Message, wall: float) -> None:
        """Note the session that a message was sent under: another one means another process."""
        session = scan(msg.header, "session")
        if not session or session == self._link.session:
            return
        self._notices.speak_as(session)
        if self._link.learn_session(session):
            self._replaced += 1
            self._requests.forget_lost()
            self.activity.restarted(wall)
            if self._readiness.ready:
                self.activity.alive(wall)
            self._listener.on_replaced(self._requests.waiting)

    # -- readiness --------------------------------------------------------------------------

    def verify_busy(self) -> None:
        """Probe a kernel that is shown as busy; its answer ends a busy state that is stale."""
        if self._readiness.ready and self.activity.doubt():
            self._probe(Channel.SHELL)

    def _on_timer(self) -> None:
        self.recover()
        self.poll()

    def _set_timer(self) -> None:
        """Set the timer to the next probe or lost reply; stop it if there is none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        owed_at = self._requests.next_at() if self._requests.owed else None
        times = [self._poll_at, owed_at, self._loss.next_at]
        due_at = min((at for at in times if at is not None), default=None)
        if due_at is not None:
            delay = max(0.0, due_at - self._clock.monotonic())
            self._timer = self._loop.call_later(delay, self._on_timer)

    def poll(self, event: Event | None = None) -> None:
        """Note an event, or that time has passed, and do what the readiness then calls for."""
        if self._link.link is None:  # closed while a batch is delivered
            return
        readiness, now = self._readiness, self._clock.monotonic()
        decision = readiness.poll(now) if event is None else readiness.take(event, now)
        self._poll_at = decision.next_at
        self._set_timer()  # first of all, or an error below would be the end of all polls
        if decision.renew:
            try:
                self._renew()
            except KernelError as error:  # tried again later
                self._log.warning("Kernel %s: no new sockets: %s", self._context.kernel_id, error)
        if decision.probe:
            for channel in (Channel.SHELL, Channel.CONTROL):  # a busy kernel answers control
                self._probe(channel)
        known, self._announced = self._announced, decision if decision.ready else None
        if decision.ready and decision != known:
            self._on_ready(decision)

    def _on_ready(self, decision: Decision) -> None:
        """Send the queued requests; called again when the proof comes after the timeout."""
        self._next_ready.set_result(not decision.timed_out)
        self._next_ready = self._loop.create_future()
        if decision.timed_out or decision.lacks:
            lack = self._readiness.explain()
            self._log.warning(
                "Kernel %s %s; sending requests anyway", self._context.kernel_id, lack
            )
        if not decision.timed_out:
            self.activity.alive(self._clock.wall())
        self._flush()
        self._listener.on_ready()

    def _probe(self, channel: Channel) -> str:
        """Send a probe; return its id."""
        self._probes += 1
        probe = self._notices.probe(channel)
        self._link.send(probe)
        return probe.msg_id

    def _renew(self) -> None:
        """Connect under a new identity: the kernel is there, and ignores the present sockets."""
        self._requests.connection_lost()
        self._set_timer()
        self._link.renew(keep=self._requests.owed)

    def recover(self) -> None:
        """Deliver the lost replies that are due, and look for cells without an idle status."""
        now = self._clock.monotonic()
        if self._loss.due(now) and self._readiness.ready:
            self._loss.ask(self._probe(Channel.SHELL))
        if self._requests.owed:
            built = self._requests.build_lost(now)
            self._set_timer()
            self._deliver_made(built)

    def _deliver_made(self, messages: list[Message]) -> None:
        """Deliver messages that the bridge has made in the name of the kernel."""
        for msg in messages:
            if msg.channel is Channel.IOPUB:
                self._listener.on_notice(msg)
            else:
                self._deliver_reply(msg, *type_and_key(msg.header), self._clock.monotonic())
        if messages:
            self._listener.on_drained()
