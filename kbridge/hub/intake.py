"""What a kernel says: verified, judged, encoded once, and journalled.

Owns what the kernel's messages are verified and translated with, and the count of those that were
refused. All of it is synchronous: a batch in, frames in the journal out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kbridge.errors import KernelMessageError
from kbridge.flow.activity import Activity, state_of
from kbridge.flow.inputs import Inputs
from kbridge.flow.journal import EVERYONE, LOSABLE, Journal
from kbridge.flow.log_throttle import LogThrottle
from kbridge.flow.policy import PASS, Policy, judge
from kbridge.hub.broadcast.resume import SessionIndex
from kbridge.hub.clock import Clock
from kbridge.hub.kernel.adapter import Adapter, adapter_for, kernel_protocol
from kbridge.hub.kernel.nudge import Nudge
from kbridge.hub.kernel.requests import Requests
from kbridge.hub.notices import Notices
from kbridge.link.interfaces import RawMessage
from kbridge.wire.message import Channel, Message, message_key, scan, type_and_key
from kbridge.wire.signing import Signer
from kbridge.wire.v1 import encode_frame
from kbridge.wire.zmq import parse

__all__ = ["Intake"]

_BEGUN = 1000  # requests after which nothing is under way any more that began before the bridge


class Intake:
    """The way of a kernel's messages into the journal.

    Parameters
    ----------
    kernel_id : str
        For the log.
    journal, activity, nudge, requests, inputs
        Who is told what.
    notices : Notices
        Who makes the probes, and the bridge's own messages.
    on_replaced : callable
        Is told when a probe was answered by another process than the ones before.
    policies : list of Policy
        What judges the messages, in order.
    clock, log
        The time, and where to say what is refused.
    answered : SessionIndex or None
        Is told which sessions the messages answer, if the kernel may be at something that was
        begun before the bridge was.

    Attributes
    ----------
    signer : Signer
        The kernel's key, in use.
    adapter : Adapter or None
        What translates for a kernel of an older protocol, once it has said so.
    """

    def __init__(
        self,
        kernel_id: str,
        journal: Journal,
        activity: Activity,
        nudge: Nudge,
        requests: Requests,
        inputs: Inputs,
        *,
        notices: Notices,
        on_replaced: Callable[[], None],
        policies: list[Policy],
        clock: Clock,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        answered: SessionIndex | None = None,
    ) -> None:
        self._kernel_id = kernel_id
        self._journal = journal
        self._activity = activity
        self._nudge = nudge
        self._requests = requests
        self._inputs = inputs
        self._notices = notices
        self._mark = notices.mark
        # Requests that were seen to begin, as long as none was seen that began before.
        self._answered = answered
        self._begun: set[str] | None = None if answered is None else set()
        if answered is not None:
            # Until its shell answers: a probe waits there behind what runs.
            activity.presume_busy()
        self._on_replaced = on_replaced
        self._process = ""  # the session that the kernel's process gave itself
        self._policies = policies
        self._clock = clock
        self._log = log
        self._refused = LogThrottle()
        self.signer = Signer(b"")
        self.adapter: Adapter | None = None

    @property
    def refused(self) -> int:
        """Messages that were refused, ever."""
        return self._refused.total

    def begin(self, signer: Signer) -> None:
        """Take in another kernel process, whose key this is."""
        self.signer = signer
        self.adapter = None
        if self._process:
            self._begun = None
        self._process = ""

    def take(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Take in what came over a channel in one wake-up."""
        now = self._clock.monotonic()
        wall = self._clock.wall()
        mark, signer = self._mark, self.signer
        for frames in batch:
            try:
                msg = parse(channel, frames, signer)
                if mark in msg.parent_header and self._on_probed(msg, wall):
                    continue
                if self.adapter is not None:
                    msg = self.adapter.from_kernel(msg)
            except KernelMessageError as error:
                self.refuse(channel, error)
                continue
            if channel is Channel.IOPUB:
                self._on_iopub(msg, now, wall)
            else:
                self._on_reply(msg, now)

    def append(self, msg: Message, audience: int = EVERYONE) -> int:
        """Journal a message as it is; return its sequence number."""
        seq = self._journal.append(
            encode_frame(msg),
            audience,
            state=msg.msg_type not in LOSABLE,
            key=message_key(msg.header),
        )
        if self._answered is not None:
            self._answered.note(msg.parent_header, seq)
        return seq

    def refuse(self, channel: Channel, error: KernelMessageError) -> None:
        """Count a message that cannot be passed on, and say so once a minute at most."""
        count = self._refused.record(self._clock.monotonic())
        if count:
            self._log.warning(
                "kernel %s: %d message(s) refused, the last one on %s: %s",
                self._kernel_id,
                count,
                channel,
                error.reason,
            )

    def _on_iopub(self, msg: Message, now: float, wall: float) -> None:
        msg_type, key = type_and_key(msg.header)
        if not self._nudge.proven:
            self._note_process(scan(msg.header, "session"))
            self._nudge.heard(welcome=msg_type == "iopub_welcome")
        if msg_type == "iopub_welcome":
            return  # to a new subscriber, and that is the bridge
        if self._begun is not None:
            self._note_begun_before(msg, msg_type)
        if self._requests.recovery.active:
            self._requests.recovery.observe(msg, msg_type)
        if self._inputs and msg_type == "status" and state_of(msg.content) == "idle":
            self._inputs.done(msg.parent_id)
        self._activity.observe(msg, msg_type, wall)
        verdict = judge(self._policies, msg, msg_type, now)
        if verdict is PASS:
            seq = self._journal.append(encode_frame(msg), state=msg_type not in LOSABLE, key=key)
            if self._answered is not None:
                self._answered.note(msg.parent_header, seq)
            return
        for other in verdict:
            self.append(other)

    def _on_reply(self, msg: Message, now: float) -> None:
        """Take a message on shell, control or stdin."""
        if msg.channel is not Channel.STDIN:
            self._activity.replied(msg, msg.msg_type, self._clock.wall())
        audience = self._requests.audience(msg)
        if audience is not None:
            self._deliver(msg, audience, now)

    def on_reply_made(self, msg: Message) -> None:
        """Take a reply that was made because the kernel's own got lost."""
        audience = self._requests.deliver(msg)
        if audience is not None:
            self._deliver(msg, audience, self._clock.monotonic())

    def _deliver(self, msg: Message, audience: int, now: float) -> None:
        verdict = judge(self._policies, msg, msg.msg_type, now)
        for each in (msg,) if verdict is PASS else verdict:
            seq = self.append(each, audience)
            if each.msg_type == "input_request":
                self._inputs.asked(each, audience, seq)

    def _note_begun_before(self, msg: Message, msg_type: str) -> None:
        """Mark a gap in what was under way before anybody here listened."""
        request, begun = msg.parent_id, self._begun
        if begun is None or not request or request in begun or self._mark in msg.parent_header:
            return
        if msg_type == "status" and state_of(msg.content) == "busy":
            begun.add(request)
            if len(begun) < _BEGUN:
                return
        else:
            self.append(self._notices.taken_over(msg.parent_header))
        self._begun = None

    def _on_probed(self, msg: Message, wall: float) -> bool:
        """Take a probe's reply and status for evidence, and for nobody else's business.

        Other messages with a probe for a parent are: a kernel's thread that prints names as its
        parent whatever request came last.
        """
        if not self._nudge.proven:
            self._note_process(scan(msg.header, "session"))
        if msg.channel is Channel.IOPUB:
            self._nudge.heard()
            return msg.msg_type == "status"
        if msg.msg_type != "kernel_info_reply":
            return False
        if msg.channel is Channel.SHELL:
            self._activity.free(wall)
            self._requests.recovery.shell_answered()
        adapter = adapter_for(kernel_protocol(msg))
        if adapter is not None and self.adapter is None:
            self._log.info(
                "kernel %s speaks protocol %d; translating", self._kernel_id, adapter.major
            )
            self.adapter = adapter
        self._nudge.replied()
        return True

    def _note_process(self, session: str) -> None:
        known, self._process = self._process, session or self._process
        self._notices.kernel_session = self._process
        if known and known != self._process:
            self._on_replaced()
