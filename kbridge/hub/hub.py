"""The hub of one kernel: the public face of its two halves.

`KernelConnection` connects to the kernel's present process; `Broadcaster` delivers what it sends to
websockets. The hub brings both together: messages flow from the connection to the broadcaster
through the `KernelListener` interface, requests from the websockets to the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from kbridge.errors import HubClosed, IgnoredMessage, KbridgeError
from kbridge.flow.activity import Activity
from kbridge.flow.execution import RUNNING, Execution
from kbridge.flow.executions import Executions
from kbridge.flow.handover import Changes, Handover, Remembered
from kbridge.flow.histogram import Histogram
from kbridge.flow.journal import Journal
from kbridge.flow.lost_replies import REQUEST_LOST, Owed
from kbridge.flow.policy import DROP, judge
from kbridge.hub.broadcast import policy_chain
from kbridge.hub.broadcast.broadcaster import Broadcaster
from kbridge.hub.broadcast.burst import Allowance
from kbridge.hub.broadcast.cursor import Cursor, CursorOptions
from kbridge.hub.context import HubContext, HubEnvironment, kernel_log
from kbridge.hub.counts import Counts
from kbridge.hub.events import HubObserver, StatusListener
from kbridge.hub.held import HeldRequests
from kbridge.hub.kernel.connection import KernelConnection
from kbridge.hub.notices import BROKEN, FULL, Notices
from kbridge.hub.queue_wait import QueueWait
from kbridge.hub.recovered import SavedState, read_entries, unwritten_requests
from kbridge.hub.rejected import IGNORED, REJECTED, DroppedMessages
from kbridge.hub.settings import HubSettings
from kbridge.link.choice import LinkKind, keeping, make_link
from kbridge.link.interfaces import ClientLink
from kbridge.storage.state_log import parse
from kbridge.wire.closing import KERNEL_SHUT_DOWN
from kbridge.wire.dialects import Dialect
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer

__all__ = ["Hub"]


class Hub:
    """The hub of one kernel; it connects at once, on a running event loop.

    Parameters
    ----------
    kernel_id : str
        The id of the kernel, for log messages.
    connection_info : mapping or None
        The content of the kernel's connection file. None for a kernel that waits in a queue and has
        no address yet: requests wait until `reconnect`.
    settings : HubSettings, optional
        The settings.
    environment : HubEnvironment, optional
        The clock, the logger, and how sockets are made.
    former : sequence of bytes or None
        None for a kernel that was started for this hub. Otherwise the kernel ran before, and its
        clients were connected to an earlier bridge: the identities of that bridge, to which the
        kernel may owe replies.
    following : bool
        True if another replica serves the kernel. The hub then keeps a journal, and sends the
        kernel nothing but its probes, until `take_over`.

    Attributes
    ----------
    kernel_id, settings
        As above.
    log : logging.Logger or adapter
        The logger.
    notices : Notices
        Makes the messages that the bridge itself sends.
    cut_because : str or None
        Why output is missing that the kernel sent before this bridge ran, as a clause that may be
        empty; None if none is missing.
    ignored : DroppedMessages
        Counts client messages that kernels do not accept.
    following : bool
        True while another replica serves the kernel, and during `take_over`.

    Raises
    ------
    KernelError
        If the kernel's sockets cannot be reached.
    ValueError
        If the connection information is not valid.
    """

    def __init__(
        self,
        kernel_id: str,
        connection_info: Mapping[str, Any] | None,
        settings: HubSettings | None = None,
        *,
        environment: HubEnvironment | None = None,
        former: Sequence[bytes] | None = None,
        following: bool = False,
    ) -> None:
        settings = settings or HubSettings()
        environment = environment or HubEnvironment()
        clock, log = environment.clock, kernel_log(environment.log, kernel_id)
        self.kernel_id = kernel_id
        self.settings = settings
        self.log = log
        history = environment.store.history(kernel_id) if environment.store else None
        saved = SavedState()
        kept = environment.keeper.kernel(kernel_id) if environment.keeper and history else None
        adopted = former is not None or following
        if history is not None and (before := history.recovered) is not None:
            if kept is not None:
                before = history.recall(unwritten_requests(parse(kept.notes), before.records))
            saved = read_entries(before.records, before.next_seq)
            adopted = adopted or bool(before.next_seq or saved.sessions or saved.executions)
        if kept is not None:
            kept.used = True
            if kept.resumes:
                adopted = False  # nothing is missing, and the connections go on
            if history is not None:
                history.follow(kept)
        adopted = adopted and connection_info is not None  # one that waits has not run
        because = saved.cut or (environment.unkept if kept is None else kept.lost)
        self.cut_because = because if adopted and not following else None
        self.following = following
        self.notices = Notices(
            clock,
            adopted=adopted,
            on_disk=history is not None,
            because=because,
            following=following,
        )
        if kept is not None and kept.resumes and kept.full:
            self.notices.interruption = FULL
            self.cut_because = "journal_disk_total was reached, or the disk was full"
        elif kept is not None and kept.resumes and kept.broken:
            self.notices.interruption = BROKEN
        self.ignored = DroppedMessages(IGNORED, kernel_id, clock, log)
        self._rejected = DroppedMessages(REJECTED, kernel_id, clock, log)
        tracing = environment.tracing
        self._trace = None if tracing is None else tracing.kernel(kernel_id)
        context = HubContext(
            *(kernel_id, settings, clock, log, self.notices, self._rejected, history, kept),
            trace=self._trace,
            following=following,
        )
        self._kept = kept
        self._history = history
        self._clock = clock
        self._incoming = policy_chain.incoming(settings)
        allowance = environment.allowance or Allowance(settings.burst_limit)
        self._broadcaster = Broadcaster(context, allowance, saved)
        if self._trace is not None:
            self._broadcaster.observe(self._trace)
        self._replicated = environment.replicated
        self._session_listener = environment.on_session
        if environment.replicated and not following:
            self._broadcaster.collect_changes(self._session_listener)
        if history is not None:
            history.forget_recovered()
        kind = LinkKind(settings.link)
        link = environment.link or (keeping(kind, kept) if kept is not None else make_link(kind))
        self._kernel = KernelConnection(context, self._broadcaster, link, former or ())
        self._held = HeldRequests(settings.request_limit)
        self._closed = False
        self._ended = asyncio.Event()
        self._restarts = dict.fromkeys(("requested", "automatic"), 0)
        self._deaths = 0
        # The request of which `_report_busy` has told websockets, and their numbers.
        self._reported_work = ""
        self._reported_to: set[int] = set()
        self._queue = QueueWait(context, self._kernel, self._broadcaster)
        self._begin(connection_info, [each for each in saved.executions if each.owed])
        if history is not None:
            history.record("cut", (environment.unkept if kept is None else kept.because) or None)

    def _begin(self, connection_info: Mapping[str, Any] | None, owed: list[Execution]) -> None:
        """Connect to the kernel; `owed` are the requests of an earlier bridge without a reply."""
        if connection_info is None:
            if owed:  # they could not be sent
                self._kernel.take_over((), [Owed(each, ended=False, lost=True) for each in owed])
            return
        self._broadcaster.connecting(connection_info)
        self._kernel.restore(owed)
        self._kernel.connect(connection_info)

    # -- websockets -------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """The number of attached websockets."""
        return self._broadcaster.connections

    @property
    def cursors(self) -> list[Cursor]:
        """The attached websockets, oldest first."""
        return self._broadcaster.cursors

    def attach(
        self,
        link: ClientLink,
        dialect: Dialect,
        session_id: str = "",
        since: str = "",
        *,
        verbatim: bool = False,
        paced: bool = True,
        listener: StatusListener | None = None,
        parents: Sequence[str] = (),
    ) -> Cursor:
        """Attach a websocket, and write to it the messages that its session has missed.

        Parameters
        ----------
        link, dialect
            The websocket, and the format of its frames.
        session_id : str
            The session of the websocket. A known session resumes after the last frame that is
            known to have arrived.
        since : str
            Another place to start: see `kbridge.hub.broadcast.resume.resolve_since`.
        verbatim : bool
            True if messages must not be joined, even if the websocket is behind.
        paced : bool
            True if the rate limits of `rate_limit_policy=coalesce` apply to the websocket.
        listener : StatusListener, optional
            Receives the kernel statuses that the bridge announces.
        parents : sequence of str
            The `msg_id` of each request whose messages the websocket receives, see
            `kbridge.flow.selection`; empty for all messages. Without `since`, it starts before the
            first message of these requests.

        Returns
        -------
        Cursor
            The position of the websocket. Pass its pongs to `on_pong`, or no frame will count as
            delivered.

        Raises
        ------
        HubClosed
            If the kernel is gone.
        InvalidRequest
            If `since` is longer than any id.
        """
        if self._closed:
            raise HubClosed("the kernel is gone")
        # Only websockets that can resume are pinged.
        acknowledge = self.settings.acknowledge and bool(session_id or since)
        selection = self._broadcaster.select(parents) if parents else None
        options = CursorOptions(acknowledge, verbatim, paced, listener, selection)
        cursor = self._broadcaster.attach(link, dialect, session_id, since, options)
        self._queue.greet(cursor)
        return cursor

    def on_pong(self, cursor: Cursor, payload: bytes) -> None:
        """Take the payload of a websocket's pong, which may acknowledge frames."""
        broadcaster = self._broadcaster
        broadcaster.delivery.on_pong(cursor, payload)
        if broadcaster.recorder is not None:
            broadcaster.recorder.moved(cursor.session)

    def detach(self, cursor: Cursor) -> None:
        """Detach a websocket; may be called twice."""
        self._broadcaster.detach(cursor)

    def submit(self, cursor: Cursor, msg: Message) -> Awaitable[None] | None:
        """Send a client's message to the kernel.

        Returns
        -------
        Awaitable or None
            The caller must await it before it reads the next message from this websocket; None
            while the kernel keeps up.

        Raises
        ------
        IgnoredMessage
            If the message is on iopub, where kernels accept none.
        InvalidMessage
            If the kernel's protocol has no such message.
        HubClosed
            If the kernel is gone.
        """
        if msg.channel is Channel.IOPUB:
            raise IgnoredMessage("a message on iopub, where kernels only send")
        msg_type, number = msg.msg_type, cursor.session.number
        if self._held.active and self._held.takes(msg_type):
            return self._held.put(msg, number)
        room = self._submit(msg, msg_type, number)
        if msg_type == "kernel_info_request" and msg.channel is Channel.SHELL:
            self._report_busy(cursor)
        return room

    def _submit(self, msg: Message, msg_type: str, number: int) -> Awaitable[None] | None:
        """Send a message of the client with that number."""
        incoming = self._incoming
        if incoming and judge(incoming, msg, msg_type, self._clock.monotonic()) == DROP:
            # The client chose this text: escape it and cut it.
            self.log.warning("%.60s is not an allowed message type; ignored", ascii(msg_type))
            return None
        if msg_type == "input_reply" and not self._broadcaster.answers_input(msg):
            self.log.info(
                "An input request of kernel %s was answered twice; the second answer is ignored",
                self.kernel_id,
            )
            return None
        self._kernel.activity.touch(self._clock.wall(), msg_type)
        self._broadcaster.delivery.on_request()
        if self._trace is not None and msg_type == "execute_request":
            msg = self._trace.on_request(msg)
        room = self._kernel.submit(msg, number)
        if msg_type == "execute_request":
            self._broadcaster.tracker.submitted(msg, number)
        return room

    def _report_busy(self, cursor: Cursor) -> None:
        """Tell a client that asks for the kernel's information at once that the kernel is busy.

        A page that was loaded again asks in order to learn the state of its kernel, which answers
        only after the running cell. The status has no parent, because JupyterLab ignores the
        statuses of requests for information. A websocket is told once per cell, and only if the
        kernel has said that it is busy: then the `idle` of the cell follows.
        """
        activity = self._kernel.activity
        if activity.execution_state != "busy" or activity.presumed:
            return
        if not self.notices.speaks_as_kernel:
            return  # JupyterLab would take another session for another process
        if activity.at_work != self._reported_work:
            self._reported_work = activity.at_work
            self._reported_to = set()
        if cursor.number not in self._reported_to:
            self._reported_to.add(cursor.number)
            self._broadcaster.append(self.notices.status("busy"), cursor.session.number)
            self._broadcaster.on_drained()

    def say(self, msg: Message) -> None:
        """Send a message to all clients, in order with those of the kernel."""
        self._broadcaster.append(msg)
        self._broadcaster.on_drained()

    async def request(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        channel: Channel = Channel.SHELL,
        timeout: float | None = None,
    ) -> Message:
        """Send a request of the bridge itself to the kernel, and return its reply.

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
        return await self._kernel.request(self.notices.request(channel, msg_type, content), timeout)

    # -- executions -------------------------------------------------------------------------

    @property
    def executions(self) -> Executions:
        """The requests to execute code, and the state of each; for reading."""
        return self._broadcaster.tracker.executions

    def describe(self, execution: Execution) -> dict[str, Any]:
        """Return an execution as clients receive it, in JSON."""
        return self._broadcaster.tracker.describe(execution)

    def forget_execution(self, msg_id: str) -> None:
        """Forget the output of an execution, so that nobody restores it.

        A finished execution is no longer listed. A running execution stays listed; its output so
        far is cleared for all clients, also for later ones: they receive a `clear_output`.

        Raises
        ------
        NotFound
            If there is no execution with that id.
        Conflict
            If it has not begun.
        """
        execution = self.executions.get(msg_id)
        if execution is not None and execution.state == RUNNING and execution.header:
            self._kernel.drain()
            self.say(self.notices.clear_output(execution.header))
        else:
            self._broadcaster.tracker.forget(msg_id)

    # -- the kernel -------------------------------------------------------------------------

    @property
    def activity(self) -> Activity:
        """The state of the kernel, and the time of its last activity."""
        return self._kernel.activity

    @property
    def journal(self) -> Journal:
        """The output of the kernel."""
        return self._broadcaster.journal

    @property
    def identities(self) -> list[bytes]:
        """Identities that the kernel may owe replies to, oldest first; the present one is last."""
        return self._kernel.identities

    @property
    def closed(self) -> bool:
        """True if the hub was closed."""
        return self._closed

    @property
    def connections_stay(self) -> bool:
        """True if the connections to the kernel, and its output, outlive this process."""
        if self._kept is None or self._history is None:
            return False
        return self._kept.stays and self._history.active

    @property
    def ready(self) -> bool:
        """True if requests are sent: the kernel is proven, or its timeout has passed."""
        return self._kernel.ready

    @property
    def timed_out(self) -> bool:
        """True if requests are sent only because `kernel_info_timeout` has passed."""
        return self._kernel.timed_out

    @property
    def signer(self) -> Signer:
        """Signs and verifies with the kernel's key."""
        return self._kernel.signer

    @property
    def listens(self) -> bool:
        """True while messages on iopub arrive here."""
        return self._kernel.listens

    async def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until `ready`.

        Returns
        -------
        bool
            False if the kernel is not proven, or `timeout` seconds have passed.

        Raises
        ------
        HubClosed
            If the hub is closed.
        """
        return await self._kernel.wait_ready(timeout)

    def verify_busy(self) -> None:
        """Probe a kernel that is shown as busy; its answer ends a busy state that is stale."""
        self._kernel.verify_busy()

    def now(self) -> float:
        """Return the time of the hub's clock, in monotonic seconds."""
        return self._clock.monotonic()

    def drain(self) -> None:
        """Deliver all messages that have arrived from the kernel."""
        self._kernel.drain()

    def observe(self, observer: HubObserver) -> None:
        """Report the kernel's activity and disconnects to an observer."""
        self._broadcaster.observe(observer)

    def unobserve(self, observer: HubObserver) -> None:
        """Stop reporting to an observer; may be called twice."""
        self._broadcaster.unobserve(observer)

    # -- other replicas ---------------------------------------------------------------------

    def journal_end(self) -> str | None:
        """Return the id of the last message of the kernel on iopub, empty before the first one.

        None if that message is not in memory any longer.
        """
        return self._broadcaster.journal_end()

    def take_changes(self) -> Changes:
        """Return the changes since the last call, for the replica that may take the kernel over.

        The first call returns the whole state; see `kbridge.flow.handover`.
        """
        return self._broadcaster.take_changes()

    def take_new_places(self) -> dict[str, str]:
        """Return the places of new sessions since the last call, as `take_changes` does."""
        return self._broadcaster.take_new_places()

    def remembered(self) -> Remembered:
        """Return the sessions and requests whose state another replica may need."""
        return self._broadcaster.remembered()

    async def take_over(self, handover: Handover, joined: str | None = None) -> None:
        """Serve the kernel from now on, in the place of another replica, which has ended.

        Call it before a websocket is attached. Lost replies are built, and a request that the
        kernel never received gets a reply that says so, so that the request of each client ends.

        Parameters
        ----------
        handover : Handover
            The state that the other replica has written.
        joined : str or None
            The end of its journal when this hub began to follow: the `msg_id` of the last message
            on iopub, empty before the first one; None if that is not known.
        """
        self.following = True  # until its state is complete
        self._kernel.drain()
        owed = await self._broadcaster.take_over(handover, joined)
        self.following = False
        if self._replicated:
            self._broadcaster.collect_changes(self._session_listener)
        if not self._kernel.connected:  # nothing can have received them
            owed = [each._replace(lost=True) for each in owed]
        self._kernel.take_over(handover.identities, owed)

    def hold(self) -> None:
        """Hold the requests of clients back, because another replica may serve the kernel soon.

        See `kbridge.hub.held`. The state that `take_changes` returns from now on has none of them.
        """
        self._held.active = True
        self._kernel.hold()

    def release(self) -> None:
        """Send the requests that were held back: the kernel stays here."""
        self._kernel.release()
        for msg, client in self._held.take():
            try:
                self._submit(msg, msg.msg_type, client)
            except KbridgeError as error:
                self.log.warning("A request was dropped: %s", error.reason)

    def reserve(self, reserved: bool = True) -> None:
        """Let requests of clients wait for those of the bridge, or send them again."""
        self._kernel.reserve(reserved)

    def _drop_held(self) -> None:
        """Drop the requests that were held back; those that no client sends again are answered."""
        notices, told = self.notices, False
        for held in self._held.close():
            if held.needs_reply:
                told, header = True, held.msg.header
                for msg in (
                    notices.not_run(header),
                    notices.reply(header, REQUEST_LOST),
                    notices.status("idle", header),
                ):
                    self._broadcaster.append(msg, held.client)
        if told:
            self._broadcaster.on_drained()

    # -- the life of the kernel -------------------------------------------------------------

    def reconnect(self, connection_info: Mapping[str, Any]) -> None:
        """Connect to the next process of the kernel; its ports and its key may differ.

        Raises
        ------
        HubClosed
            If the hub is closed.
        """
        if self._closed:
            raise HubClosed("the kernel is gone")
        self._queue.text = ""
        self._broadcaster.process_replaced()
        self._broadcaster.connecting(connection_info)
        self._kernel.connect(connection_info)

    def wait_in_queue(self, text: str) -> None:
        """Note why the kernel has no process yet, and tell the clients if that is new.

        Requests wait until `reconnect`, which ends this state.
        """
        if text and text != self._queue.text:
            self._queue.text = text
            self.announce("starting", reason=text)

    def abort_waiting(self) -> None:
        """Answer the requests to execute code that wait for the kernel: they are not run."""
        self._queue.abort()

    async def restarting(
        self, *, asked: bool = False, keep: bool = False, reason: str = ""
    ) -> None:
        """Note that the kernel's process has ended and another one will take its place.

        Clients receive the last messages of the old process, then a status. Requests that were sent
        are forgotten: no replies will come. New requests wait for the next process, which
        `reconnect` connects to.

        Parameters
        ----------
        asked : bool
            True if a client asked for the restart. The status is then `starting`, because
            frontends take `restarting` for a crash: JupyterLab says that the kernel appears to
            have died.
        keep : bool
            True if requests that are already waiting are meant for the next process.
        reason : str
            Why the process has ended, for the clients.
        """
        self._queue.text = ""
        self._restarts["requested" if asked else "automatic"] += 1
        waiting = await self._kernel.restarting(keep=keep)
        self._queue.explain_end(reason)
        self._broadcaster.forget_requests(waiting)
        self.announce("starting" if asked else "restarting", reason=reason)

    def dead(self, reason: str = "") -> None:
        """Deliver the last messages of a kernel that has ended for good, and tell the clients.

        Parameters
        ----------
        reason : str
            Why it has ended; it is also written to the output of the cell that was running.
        """
        self._deaths += 1
        self._kernel.drain()
        self._queue.ended(reason)
        self._kernel.dead()
        self._broadcaster.forget_requests()
        self.announce("dead", reason=reason)

    def announce(self, status: str, source: Cursor | None = None, *, reason: str = "") -> None:
        """Send a status in the name of the kernel, after all messages that it has sent.

        Announcing the same status twice in a row has no effect. The listener of `source` is not
        told.
        """
        # A listener repeats the status that it was told, without the reason.
        wanted = reason if source is None else None
        if not self._broadcaster.is_announced(status, wanted):
            self._kernel.drain()
            self._broadcaster.announce(status, source, reason)

    async def aclose(
        self,
        code: int = HubClosed.close_code,
        reason: str = KERNEL_SHUT_DOWN,
        *,
        drain: bool = True,
    ) -> None:
        """Close the sockets, and the websockets with `code`; a second call waits for the first.

        Messages that have arrived are delivered before, unless `drain` is False or the call is
        cancelled. Requests that wait fail with HubClosed.
        """
        if self._closed:
            await self._ended.wait()
            return
        self._closed = True
        try:
            try:
                if drain:
                    await self._kernel.drain_slowly()
            finally:
                self._drop_held()
                self._kernel.close()
                self._broadcaster.close(code, reason)
            await self._broadcaster.wait_closed()
        finally:
            self._ended.set()

    def statistics(self) -> dict[str, Any]:
        """Return the figures of the hub."""
        return {
            **self._broadcaster.statistics(),
            **self._kernel.statistics(),
            "refused_kernel_messages": self._rejected.total,
            "ignored_client_messages": self.ignored.total,
        }

    @property
    def waiting_requests(self) -> int:
        """The number of requests of clients that were not sent yet: the kernel is not ready."""
        waiting: int = self._kernel.statistics()["outbox"]["requests"]
        return waiting

    def clients(self) -> list[dict[str, Any]]:
        """Return the figures of each websocket, oldest first."""
        return self._broadcaster.clients()

    def counters(self) -> Counts:
        """Return the numbers that only grow, see `kbridge.hub.counts`."""
        counts = self._broadcaster.counters()
        counts.update(self._kernel.counters())
        for cause, restarts in self._restarts.items():
            counts["kernel_restarts", cause] = restarts
        counts["kernel_deaths",] = self._deaths
        counts["ignored_messages",] = self.ignored.total
        return counts

    @property
    def round_trips(self) -> Histogram:
        """Seconds from pings to their pongs, sampled once per second."""
        return self._broadcaster.delivery.round_trips.histogram
