"""One kernel's hub: its sockets, its journal, and everybody who listens.

Laws of this module:

- a kernel has one set of sockets, whoever listens, and they are always drained;
- what a kernel says is judged and encoded once, then read by as many as there are;
- no request reaches a kernel before its iopub subscription is proven (or `kernel_info_timeout`
  has passed): what is sent right after a start or a restart loses no output;
- what belongs to the bridge's own probes reaches nobody else, and nothing else is held back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kbridge.errors import HubClosed, IgnoredMessage, KernelError
from kbridge.flow.activity import Activity
from kbridge.flow.inputs import Inputs
from kbridge.flow.journal import Journal
from kbridge.flow.log_throttle import LogThrottle
from kbridge.flow.policy import DROP, judge
from kbridge.flow.readiness import Decision, State
from kbridge.hub.broadcast import policy_chain
from kbridge.hub.broadcast.broadcaster import Readers
from kbridge.hub.broadcast.burst import Allowance, Burst
from kbridge.hub.broadcast.client_sessions import Attachment
from kbridge.hub.broadcast.resume import SessionIndex
from kbridge.hub.clock import Clock
from kbridge.hub.ignored import IgnoredMessages
from kbridge.hub.intake import Intake
from kbridge.hub.kernel.nudge import Nudge, unproven
from kbridge.hub.kernel.process_link import Line, LinkFactory
from kbridge.hub.kernel.requests import Requests
from kbridge.hub.notices import Notices
from kbridge.hub.settings import HubSettings
from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import ClientLink, RawMessage, nobody
from kbridge.link.kernel import KernelLink
from kbridge.wire.dialects import Dialect
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize

__all__ = ["Hub"]


class Hub:
    """The hub of one kernel; made open, on a running event loop.

    Parameters
    ----------
    kernel_id : str
        For the log.
    connection_info : mapping
        As a connection file has it.
    settings, clock, log
        The settings, the source of the time, and the logger.
    link : callable
        Makes the link to the kernel; a test puts `kbridge.link.memory.MemoryKernel` here.
    former : sequence of bytes
        Identities of earlier bridges, to which the kernel may owe replies.
    adopted : bool
        The kernel ran before this bridge did, and others were connected to it.
    allowance : Allowance
        The bytes beyond `journal_limit` that several hubs share, if they do.

    Attributes
    ----------
    activity : Activity
        The state of the kernel, and the time of its last activity.
    journal : Journal
        The output of the kernel.
    notices : Notices
        Makes the bridge's own messages.
    ignored : IgnoredMessages
        Counts client messages that kernels do not accept.
    on_hung_up : callable
        Called when the iopub connection to the kernel is lost.
    on_heard : callable
        Called once per wake-up in which the kernel sent something.
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
        former: Sequence[bytes] = (),
        adopted: bool = False,
        allowance: Allowance | None = None,
    ) -> None:
        settings = settings or HubSettings()
        self.kernel_id = kernel_id
        self.settings = settings
        self.log = log or logging.getLogger("kbridge.hub")
        self._clock = clock or Clock()
        self._line = Line(link, self, former, self.log)
        self.notices = Notices(self._clock, adopted=adopted)
        self.ignored = IgnoredMessages(kernel_id, self._clock, self.log)
        self.journal = Journal(settings.journal_limit, settings.history_limit)
        self.activity = Activity(self._clock.wall(), quiet=settings.untracked_message_types)
        self._inputs = Inputs()
        pace = policy_chain.pace(settings)
        self._requests = Requests(
            settings.request_limit,
            self._link_send,
            self.log,
            notices=self.notices,
            clock=self._clock,
            adopted=adopted,
        )
        answered = SessionIndex() if adopted else None
        self._nudge = Nudge(
            self._clock,
            settings.kernel_info_timeout,
            self._send_probes,
            self._on_ready,
            self._try_to_renew,
        )
        self._intake = Intake(
            kernel_id,
            self.journal,
            self.activity,
            self._nudge,
            self._requests,
            self._inputs,
            notices=self.notices,
            on_replaced=self._on_replaced,
            policies=policy_chain.outgoing(settings, self.notices, pace, self.log),
            clock=self._clock,
            log=self.log,
            answered=answered,
        )
        self._readers = Readers(
            self.journal,
            settings,
            pace=pace,
            inputs=self._inputs,
            notices=self.notices,
            clock=self._clock,
            refuse=self._intake.refuse,
            answered=answered,
        )
        self._burst = Burst(
            self.journal,
            self._readers.clients,
            pace,
            self._clock,
            allowance or Allowance(settings.burst_limit),
        )
        self._incoming = policy_chain.incoming(settings)
        recovery = self._requests.recovery
        recovery.on_reply = self._on_reply_made
        recovery.on_settled = self._line.drop_former
        recovery.on_unsure = lambda: self._send_probe(Channel.SHELL)
        self._gone = LogThrottle()
        self._closed = False
        self._announced: tuple[str, int] | None = None  # a status, and where the journal ended
        self._hung_up = False  # since another process was last known to have taken over
        self.on_hung_up: Callable[[], None] = nobody
        self.on_heard: Callable[[], None] = nobody
        self.reconnect(connection_info)

    # -- clients ----------------------------------------------------------------------------

    @property
    def identities(self) -> list[bytes]:
        """Identities that the kernel may owe replies to, oldest first; the present one is last."""
        return [*self._line.former, self._line.identity]

    @property
    def connections(self) -> int:
        """The number of websockets attached now."""
        return len(self._readers.clients)

    def attach(
        self,
        link: ClientLink,
        dialect: Dialect,
        session_id: str = "",
        since: str = "",
        *,
        verbatim: bool = False,
        paced: bool = True,
    ) -> Attachment:
        """Add a websocket; what its session has missed is written to it at once.

        Parameters
        ----------
        link, dialect
            The websocket, and its format of frames.
        session_id : str
            The session of the websocket. A known session resumes after the last frame that is
            known to have arrived.
        since : str
            Another place to begin: see `kbridge.hub.broadcast.resume.locate`.
        verbatim : bool
            True if messages must not be joined, even if the websocket lags.
        paced : bool
            True if the rate limits of `rate_limit_policy=coalesce` apply to the websocket.

        Raises
        ------
        HubClosed
            If the kernel is gone.
        InvalidRequest
            If `since` is longer than any id.
        """
        if self._closed:
            raise HubClosed("the kernel is gone")
        return self._readers.attach(
            link, dialect, session_id, since, verbatim=verbatim, paced=paced
        )

    def heard(self, attachment: Attachment, payload: bytes) -> None:
        """Take a websocket's pong: an acknowledgement, perhaps."""
        self._readers.heard(attachment, payload)

    def detach(self, attachment: Attachment) -> None:
        """Remove a websocket; may be called twice."""
        self._readers.detach(attachment)

    def submit(self, attachment: Attachment, msg: Message) -> Awaitable[None] | None:
        """Send a client's message to the kernel.

        Returns
        -------
        Awaitable or None
            What to await before reading on from this websocket, where the kernel does not keep up.

        Raises
        ------
        IgnoredMessage
            If it is on iopub, where kernels listen to nobody.
        InvalidMessage
            If the kernel's protocol has no such message.
        HubClosed
            If the kernel is gone.
        """
        if msg.channel is Channel.IOPUB:
            raise IgnoredMessage("a message on iopub, where kernels only send")
        msg_type = msg.msg_type
        if judge(self._incoming, msg, msg_type, self._clock.monotonic()) == DROP:
            # As a stranger writes it, so neither raw nor whole.
            self.log.warning("%.60s is not an allowed message type; ignored", ascii(msg_type))
            return None
        if msg_type == "input_reply" and not self._inputs.answer(msg):
            self.log.info("a second answer to one question of kernel %s; ignored", self.kernel_id)
            return None
        self.activity.touch(self._clock.wall(), msg_type)
        return self._requests.submit(msg, attachment.client.number)

    def say(self, msg: Message) -> None:
        """Say something to all clients, in order with what the kernel says."""
        self._intake.append(msg)
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
    def closed(self) -> bool:
        """Whether the kernel is gone."""
        return self._closed

    @property
    def ready(self) -> bool:
        """Whether requests go through: the kernel has proven itself, or was given up on."""
        return self._nudge.ready

    @property
    def signer(self) -> Signer:
        """The kernel's key, in use."""
        return self._intake.signer

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
        endpoints = replace(
            Endpoints.from_connection_info(connection_info),
            message_limit=self.settings.kernel_message_limit,
        )
        self._limit = endpoints.limit
        self._intake.begin(Signer(endpoints.key, endpoints.signature_scheme))
        self._hung_up = False
        self._line.open(endpoints)
        self._nudge.begin()

    def verify_busy(self) -> None:
        """Probe a kernel that is shown as busy; its answer ends a busy state that is stale."""
        if self.ready and self.activity.doubt():
            self._send_probe(Channel.SHELL)

    def now(self) -> float:
        """The hub's clock: monotonic seconds."""
        return self._clock.monotonic()

    def drain(self) -> None:
        """Take in all that has arrived from the kernel."""
        self._line.drain()

    async def restarting(self, *, asked: bool = False, keep: bool = False) -> None:
        """The kernel has ended, and another one will take its place.

        Clients see all that the old one said, then a status. Requests that are outstanding are
        forgotten: nobody will answer them. Those that come from now on wait for the new one,
        which `reconnect` names.

        Parameters
        ----------
        asked : bool
            Whether somebody asked for it. Then the status is `starting`, because frontends take
            `restarting` for a crash: JupyterLab would say that the kernel appears to have died.
        keep : bool
            Whether requests that wait already are for the new one.
        """
        await self._line.last_words()
        self._unlink()
        self._requests.forget("the kernel was restarted", waiting=not keep)
        self._inputs.clear()
        self.activity.restarted(self._clock.wall())
        self.announce("starting" if asked else "restarting")

    def announce(self, status: str) -> None:
        """Say a status of the kernel in its place, after all that it has said itself.

        Twice running is once.
        """
        if self._announced == (status, self.journal.next_seq):
            return
        self.drain()
        self._append_status(status)
        self._readers.release()
        self.on_drained()
        for attachment in self._readers.clients.attachments:
            if attachment.announced is not None:
                attachment.announced(status)

    def dead(self) -> None:
        """The kernel has ended for good."""
        self._unlink()
        self._requests.forget("the kernel died")
        self._inputs.clear()
        self.activity.dead(self._clock.wall())
        self.announce("dead")

    async def aclose(
        self, code: int = HubClosed.close_code, reason: str = "the kernel was shut down"
    ) -> None:
        """Close the sockets, and the websockets with `code`; may be called twice.

        Raises
        ------
        Nothing
            What waits is told with HubClosed.
        """
        if self._closed:
            return
        self._line.drain()
        self._closed = True
        self._unlink()
        self._requests.close()
        self._nudge.close()
        self._readers.close(code, reason)
        # Whoever still holds a closed hub, as timers and contexts may, holds nothing of weight.
        self.journal.clear()
        self._burst.close()
        self._inputs.clear()

    def statistics(self) -> dict[str, Any]:
        """What is held, by its owner."""
        return {
            "journal": self.journal.statistics(),
            **self._readers.statistics(),
            **self._requests.statistics(),
            "readiness": self._nudge.statistics(),
            "refused_kernel_messages": self._intake.refused,
            "ignored_client_messages": self.ignored.total,
        }

    # -- what the link tells (KernelEvents) -------------------------------------------------

    def on_messages(self, channel: Channel, batch: list[RawMessage]) -> None:
        """Take in what the kernel said."""
        self._intake.take(channel, batch)

    def on_drained(self) -> None:
        """Write out what came, and forget what everybody has."""
        self._readers.flush()
        self._burst.look()
        self.on_heard()

    def on_writable(self, channel: Channel) -> None:
        """Send on what waits."""
        self._requests.flush(channel)

    def on_connected(self, channel: Channel) -> None:
        """Note that a channel is connected to the kernel."""
        if channel is Channel.STDIN:
            self._nudge.stdin(up=True)
        elif channel is Channel.IOPUB:
            self._line.went(down=False)
            self._nudge.connected()
            self._requests.recovery.iopub_connected()
        elif channel is Channel.SHELL and self.ready:
            # Earlier requests and replies may be lost, so the busy state has to be verified.
            self._send_probe(Channel.SHELL)

    def on_disconnected(self, channel: Channel) -> None:
        """Note that a channel lost the kernel: verify the kernel again before sending requests."""
        if channel is Channel.STDIN:
            self._nudge.stdin(up=False)
        elif channel is Channel.SHELL:  # a kernel drops replies that it cannot send
            self._requests.recovery.connection_lost()
        if channel is not Channel.IOPUB:
            return
        self._line.went(down=True)
        self._hung_up = True
        self._requests.recovery.connection_lost(iopub=True)
        self._nudge.disconnected()
        self.on_hung_up()

    def on_gone(self, channel: Channel) -> None:
        """A channel was disconnected, and is not connected again."""
        count = self._gone.record(self._clock.monotonic())
        if count:
            self.log.warning(
                "Kernel %s: the connection to its %s port was closed, and not made again: the"
                " kernel has ended, or a message was larger than kernel_message_limit allows"
                " (%d bytes for a part of a message there). Connecting anew (%d time(s))",
                self.kernel_id,
                channel,
                self._limit(channel),
                count,
            )
        if channel is not Channel.IOPUB and self._nudge.state is not State.LOST:
            self._nudge.stdin(up=False)
            self._renew()

    # -- inside -----------------------------------------------------------------------------

    def _link_send(self, msg: Message) -> bool:
        if not self.ready:
            return False
        if self._intake.adapter is not None:
            msg = self._intake.adapter.to_kernel(msg)
        return self._line.send(msg.channel, serialize(msg, self.signer))

    def _send_probes(self) -> None:
        for channel in (Channel.SHELL, Channel.CONTROL):
            self._send_probe(channel)

    def _send_probe(self, channel: Channel) -> None:
        self._line.send(channel, serialize(self.notices.probe(channel), self.signer))

    def _renew(self) -> None:
        """The kernel is there, and ignores our sockets: make new ones."""
        self.log.info("Kernel %s is connected to under a new identity", self.kernel_id)
        self._requests.recovery.connection_lost()
        self._line.renew(keep=self._requests.recovery.active)

    def _try_to_renew(self) -> None:
        try:
            self._renew()
        except KernelError as error:  # the nudge asks again
            self.log.warning("Kernel %s cannot be connected to anew: %s", self.kernel_id, error)

    def _on_reply_made(self, msg: Message) -> None:
        if msg.channel is Channel.IOPUB:
            self._intake.append(msg)
        else:
            self._intake.on_reply_made(msg)
        self.on_drained()

    def _on_ready(self, decision: Decision) -> None:
        if decision.timed_out or decision.lacks:
            self.log.warning(
                "Kernel %s %s; sending requests anyway",
                self.kernel_id,
                unproven(self._nudge.state, decision, self.settings.kernel_info_timeout),
            )
        if not decision.timed_out:
            self.activity.alive(self._clock.wall())
        self._requests.flush()
        self.on_heard()

    def _on_replaced(self) -> None:
        """Another process answers, and nobody said `restarting`: it was asked for elsewhere.

        Requests that wait were made after the old one had hung up, so they are for this one.
        """
        if self._hung_up:  # else it is a kernel with a new session for every message
            self._hung_up = False
            self._requests.recovery.clear()
            self._inputs.clear()
            self.activity.restarted(self._clock.wall())
            if self.ready:
                self.activity.alive(self._clock.wall())
            self._append_status("starting")  # written out with the rest of this wake-up

    def _append_status(self, status: str) -> None:
        self._intake.append(self.notices.status(status))
        self._announced = (status, self.journal.next_seq)

    def _unlink(self) -> None:
        self._nudge.stop()
        self._line.close()
