"""Delivers a kernel's output to websockets: policies, journal, pace and cursors.

It knows nothing of the kernel's sockets. Messages come in through the `KernelListener` interface;
each is judged and encoded once, then read by any number of websockets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from kbridge.flow.execution import OBSERVED
from kbridge.flow.handover import Changes, Handover, Remembered
from kbridge.flow.journal import EVERYONE, LOSABLE, Journal, Place
from kbridge.flow.lost_replies import Owed
from kbridge.flow.policy import PASS, combined
from kbridge.flow.selection import Selection
from kbridge.hub.broadcast import policy_chain
from kbridge.hub.broadcast.adoption import Adoption
from kbridge.hub.broadcast.burst import Allowance, Burst
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor, CursorOptions
from kbridge.hub.broadcast.delivery import Delivery
from kbridge.hub.broadcast.execution_tracker import ExecutionTracker
from kbridge.hub.broadcast.inputs import Inputs
from kbridge.hub.broadcast.loading import Loader
from kbridge.hub.broadcast.rendering import Renderer
from kbridge.hub.broadcast.resume import (
    START,
    ResumePoint,
    before_requests,
    find_in_memory,
    find_on_disk,
    resolve_since,
)
from kbridge.hub.broadcast.state_export import OwnFrames, StateExport, id_before
from kbridge.hub.broadcast.state_import import ids_in, import_state
from kbridge.hub.context import HubContext
from kbridge.hub.counts import Counts
from kbridge.hub.events import HubObserver, SessionListener
from kbridge.hub.recorder import Recorder
from kbridge.hub.recovered import Lives, SavedState, kernel_mark
from kbridge.link.interfaces import ClientLink, noop
from kbridge.wire.dialects import Dialect
from kbridge.wire.headers import type_and_key
from kbridge.wire.message import Channel, Message
from kbridge.wire.speedups import encode_frame, encode_texts

__all__ = ["Broadcaster"]

_LARGE: Final = 1 << 20  # bytes; a wake-up brings few smaller frames
_PRIVATE: Final = (Channel.SHELL, Channel.STDIN, Channel.CONTROL)


class Broadcaster:
    """The journal of one kernel, and its readers (a `KernelListener`).

    Parameters
    ----------
    context : HubContext
        The objects that the parts of the hub share.
    allowance : Allowance
        The bytes beyond `journal_limit` that several hubs share.
    saved : SavedState
        The state that earlier bridges left; empty for a kernel without a journal on disk.

    Attributes
    ----------
    journal : Journal
        The output of the kernel.
    delivery : Delivery
        Writes the journal to the websockets, and takes their pongs.
    recorder : Recorder or None
        Writes the state of clients and requests to disk; None for a journal in memory only.
    tracker : ExecutionTracker
        Notes the state of each request to execute code.
    """

    def __init__(self, context: HubContext, allowance: Allowance, saved: SavedState) -> None:
        settings, clock, notices = context.settings, context.clock, context.notices
        self._context = context
        self._notices = notices
        self.journal = Journal(settings.journal_limit, settings.history_limit)
        self._history = history = context.history
        self._loader: Loader | None = None
        if history is not None:
            before = history.recovered
            if before is None:
                self.journal.attach_disk(history)
            else:
                self.journal.attach_disk(history, before.next_seq, before.appended)
            history.attach(self.journal, self._settle)
            self._loader = Loader(self.journal, history)
        pace = policy_chain.pace(settings)
        self._pace = pace
        self._rate_limit = limit = policy_chain.rate_limit(settings, notices, context.log)
        policies = policy_chain.outgoing(settings, pace, limit)
        self._judge = combined(policies)
        self._only_paced = all(policy == pace.__call__ for policy in policies)
        self._adoption = Adoption(notices.mark) if context.adopted else None
        self._own = OwnFrames()
        self._export: StateExport | None = None
        self._session_listener: SessionListener | None = None
        # Places after messages that only the replica before has; None if there was none.
        self._aliases: dict[str, Place] | None = None
        end = self.journal.next_seq
        self._lives = lives = Lives.begin(saved, end, now=clock.wall(), markers=notices.markers)
        self._sessions = sessions = ClientSessions(settings.resume_timeout, lives.first_client)
        joins = settings.rate_limit_policy == "coalesce"
        self._renderer = renderer = Renderer(
            self.journal, pace, notices, context.rejected, joins=joins, loader=self._loader
        )
        self.delivery = Delivery(self.journal, pace, sessions, renderer, clock, lives.origin)
        self._burst = Burst(self.journal, sessions, pace, clock, allowance)
        self._written_to = 0  # where the journal ended at the last flush
        self._before = self.journal.appended  # bytes of earlier bridges
        # Bytes of frames for one client, by channel, and the number of websockets so far.
        self._private_bytes = dict.fromkeys(_PRIVATE, 0)
        self._attached = 0
        self._own_bytes = 0  # of frames that are not from the kernel
        self._observers: list[HubObserver] = []
        # A status, its reason, and the end of the journal at that time.
        self._announced: tuple[str, str, int] | None = None
        self.recorder: Recorder | None = None
        if history is not None:
            self.recorder = Recorder(history, lives, saved.executions)
        self.tracker = ExecutionTracker(
            *(saved.executions, self.recorder, sessions, clock, lives.origin, context.trace),
            following=context.following,
        )
        sessions.keeps_all = context.following
        self._counter = self.tracker.counter
        self._inputs = Inputs(self.journal, sessions, self.delivery, self.recorder)
        for session_id, number, seq in saved.sessions:
            place = None if seq is None else self.journal.after_seq(seq - 1)
            session = self._sessions.restore(session_id, number, place, clock.monotonic())
            if self.recorder is not None:
                self.recorder.attached(session, known=True)

        for question in saved.inputs:
            if question.seq >= end:  # its frame was lost
                question.seq = self.append(question.msg, question.client)
            self._inputs.restore(question)

    # -- websockets -------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """The number of attached websockets."""
        return len(self._sessions.cursors)

    @property
    def cursors(self) -> list[Cursor]:
        """All attached websockets, oldest first."""
        return self._sessions.cursors

    def attach(
        self,
        link: ClientLink,
        dialect: Dialect,
        session_id: str,
        since: str,
        options: CursorOptions,
    ) -> Cursor:
        """Attach a websocket, and write to it the frames that its session has missed.

        A message that only the disk may know is looked for first; until then, nothing is written.

        Raises
        ------
        InvalidRequest
            If `since` is longer than any id.
        """
        journal, sessions, selection = self.journal, self._sessions, options.selection
        point = resolve_since(journal, since, self._lives) if since else None
        if since and self._aliases is not None and since in self._aliases:
            point = ResumePoint(self._aliases[since], exact=True)
        if selection is not None:
            session_id = session_id and f"{session_id}+{selection.digest}"
            point = point or ResumePoint(self._start_of(selection), exact=False)
        known = sessions.known(session_id)
        start = journal.end()
        if self._adoption is not None and session_id and not known:
            # The session may be from an earlier bridge.
            start = self._adoption.start_of(journal, session_id) or start
        cursor = sessions.attach(link, dialect, session_id, start, options)
        self._attached += 1
        self._inputs.attached(cursor)
        if self.recorder is not None:
            self.recorder.attached(cursor.session, known=known)
        if self._export is not None and session_id and not known:
            self._export.new[cursor.session] = None
            if self._session_listener is not None:
                self._session_listener.on_session(self._context.kernel_id)
        link.on_writable = partial(self.delivery.on_writable, cursor)
        found = partial(self._on_found, cursor, known, since)
        if point is None or point.exact or since in ("", START):
            self._resume(cursor, known, since, point)
        elif self._loader is not None and self._loader.find(since, found):
            self.delivery.hold(cursor)
        else:
            self._resume(cursor, known, since, self._unknown(cursor, known))
        return cursor

    def _on_found(self, cursor: Cursor, known: bool, since: str, place: Place | None) -> None:
        """Go on with a websocket whose last message was looked for on disk."""
        if cursor.held:  # otherwise it was detached
            point = None if place is None else ResumePoint(place, exact=True)
            self._resume(cursor, known, since, point or self._unknown(cursor, known))

    def _unknown(self, cursor: Cursor, known: bool) -> ResumePoint:
        """Return the point of a client that named a message which the journal does not know."""
        place = self.journal.unknown()
        if cursor.selection is not None:
            place = place._replace(seq=self._start_of(cursor.selection).seq)
        elif known and self._aliases is not None:
            # The replica before has sent the message, which is younger than all acknowledged ones.
            place = cursor.delivered
        elif known:  # not before the frames that it acknowledged
            place = place._replace(seq=max(place.seq, cursor.delivered.seq))
        return ResumePoint(place, exact=False)

    def _start_of(self, selection: Selection) -> Place:
        """Return the place before all messages of the requests that a websocket follows."""
        return before_requests(self.journal, self.tracker.executions, selection.parents)

    def _resume(self, cursor: Cursor, known: bool, since: str, point: ResumePoint | None) -> None:
        if point is not None:
            if point.exact and cursor.selection is not None:
                point = self._inputs.point_after(cursor, since, point)
            self._sessions.start_at(cursor, point.place)
            if self.recorder is not None:
                self.recorder.moved(cursor.session)
        if self._inputs.open and (known or point is not None):
            self._inputs.resumed(cursor, since, point)
        self.delivery.start(cursor)

    def select(self, parents: Sequence[str]) -> Selection:
        """Return the selection of a websocket that follows some requests."""
        return Selection(parents, self._inputs.open)

    def detach(self, cursor: Cursor) -> None:
        """Detach a websocket; may be called twice."""
        if self._sessions.detach(cursor, self._context.clock.monotonic()):
            cursor.link.on_writable = noop
            self.delivery.remove(cursor)
            forgotten = self._sessions.take_forgotten()
            if self.recorder is not None:
                self.recorder.detached(cursor.session, forgotten)
            if self._export is not None:
                self._export.forget(forgotten)
            self._inputs.detached(cursor)

    # -- messages (KernelListener) ----------------------------------------------------------

    def on_output(self, msg: Message, msg_type: str, key: int, now: float) -> None:
        """Judge, encode and journal an iopub message."""
        adoption = self._adoption
        if adoption is not None and adoption.is_cut(msg, msg_type):
            self.append(self._notices.taken_over(msg.parent_header))
        verdict = self._judge(msg, msg_type, now)
        if msg_type == "status" and self._inputs.open:
            self._inputs.on_status(msg)
        if verdict is PASS:
            self._append(msg, msg_type, key)
        else:
            for other in verdict:
                self._append_changed(other)
        # As clients receive it: policies hide tracebacks. A status ends a request in any case.
        if verdict is PASS or msg_type == "status":
            self._said(msg, msg_type)
        else:
            for other in verdict:
                self._said(other, other.msg_type)

    def on_texts(self, texts: list[Message], keys: list[int], now: float) -> None:
        """Judge, encode and journal stream messages with the same parent header."""
        if not self._only_paced:
            for msg, key in zip(texts, keys, strict=True):
                self.on_output(msg, "stream", key, now)
            return
        first, adoption, counter = texts[0], self._adoption, self._counter
        if adoption is not None and adoption.is_cut(first, "stream"):
            self.append(self._notices.taken_over(first.parent_header))
        contents = [msg.content for msg in texts]
        self._pace.count_texts(len(texts), sum(map(len, contents)))
        seq = self.journal.extend(encode_texts(texts), keys)
        if first.parent_header != counter.parent:
            counter.turn(first, seq)
            if adoption is not None:
                adoption.note(first.parent_header, seq)
        counter.add_texts(contents)

    def on_reply(self, msg: Message, msg_type: str, key: int, client: int, now: float) -> None:
        """Judge, encode and journal a message for one client."""
        verdict = self._judge(msg, msg_type, now)
        appended = self.journal.appended
        if verdict is not PASS:
            for other in verdict:
                self._append_changed(other, client)
        else:
            seq = self._append(msg, msg_type, key, client)
            if msg_type == "input_request":
                self._inputs.asked(msg, client, seq)
        self._private_bytes[msg.channel] += self.journal.appended - appended
        if msg_type == "execute_reply":
            self.tracker.hear(msg, msg_type, self.journal.next_seq)

    def on_notice(self, msg: Message) -> None:
        """Journal a message that the bridge made in the name of the kernel."""
        self.append(msg)
        self._said(msg, msg.msg_type)
        if self._inputs.open and msg.msg_type == "status":
            self._inputs.on_status(msg)

    def _said(self, msg: Message, msg_type: str) -> None:
        if msg_type in OBSERVED:
            self.tracker.hear(msg, msg_type, self.journal.next_seq)

    def on_drained(self) -> None:
        """Write out the frames of this wake-up, and forget those that every client has."""
        journal = self.journal
        grown = journal.next_seq != self._written_to
        if grown:
            self._written_to = journal.next_seq
            self.delivery.flush()
        self._settle()
        if grown and self._history is not None:  # makes lines for executions that have ended
            self._history.changed()
        if journal.nbytes > self._burst.look_above:
            self._burst.look()
        if self.recorder is not None and not self._context.settings.acknowledge:
            for cursor in self._sessions.cursors:  # written frames count as delivered
                self.recorder.moved(cursor.session)
        for observer in self._observers:
            observer.on_kernel_activity()

    def _settle(self) -> None:
        """Count the messages in the journal, and note what they say about requests."""
        self._counter.count(self.journal.next_seq)
        self.tracker.settle()

    def on_replaced(self, waiting: frozenset[str]) -> None:
        """Announce a start that was not reported; written with the messages of this wake-up."""
        self.forget_requests(waiting)
        self._append_status("starting")

    def on_ready(self) -> None:
        """Tell the observers that the kernel is ready."""
        for observer in self._observers:
            observer.on_kernel_activity()

    def on_disconnected(self) -> None:
        """Tell the observers that the connection to the kernel was lost."""
        for observer in self._observers:
            observer.on_kernel_disconnected()

    # -- messages of the bridge -------------------------------------------------------------

    def append(self, msg: Message, audience: int = EVERYONE) -> int:
        """Journal a message of the bridge as it is; return its sequence number."""
        appended = self.journal.appended
        seq = self._append_changed(msg, audience)
        self._own_bytes += self.journal.appended - appended
        self._own.add(seq)
        return seq

    def _append_changed(self, msg: Message, audience: int = EVERYONE) -> int:
        msg_type, key = type_and_key(msg.header)
        return self._append(msg, msg_type, key, audience)

    def _append(self, msg: Message, msg_type: str, key: int, audience: int = EVERYONE) -> int:
        state = msg_type not in LOSABLE
        frame = encode_frame(msg)
        if len(frame) > _LARGE:  # the readers have not seen the other frames of this wake-up
            self._burst.expect(len(frame))
        seq = self.journal.append(frame, audience, state=state, key=key)
        counter = self._counter
        if msg.parent_header != counter.parent:
            counter.turn(msg, seq)
            if self._adoption is not None:
                self._adoption.note(msg.parent_header, seq)
        if msg_type == "stream":
            counter.add_text(msg.content)
        else:
            counter.add(msg.content, msg_type)
        return seq

    def is_announced(self, status: str, reason: str | None = None) -> bool:
        """Return True if a status was announced and the journal has not changed since.

        Without `reason`, with any reason.
        """
        if self._announced is None:
            return False
        known, why, seq = self._announced
        same = (known, seq) == (status, self.journal.next_seq)
        return same and (reason is None or reason == why)

    def announce(self, status: str, source: Cursor | None = None, reason: str = "") -> None:
        """Send a status in the name of the kernel, without delay, and tell the listeners.

        The listener of `source` is not told.
        """
        self._append_status(status, reason)
        self.delivery.ask_about_newest()
        self._pace.release()
        self.on_drained()
        for cursor in self._sessions.cursors:
            if cursor.listener is not None and cursor is not source:
                cursor.listener.on_status(status)

    def _append_status(self, status: str, reason: str = "") -> None:
        self.append(self._notices.status(status, reason=reason))
        self._announced = (status, reason, self.journal.next_seq)

    # -- other replicas ---------------------------------------------------------------------

    def collect_changes(self, listener: SessionListener | None = None) -> None:
        """Collect changes for other replicas from now on; may be called twice."""
        if self._export is None:
            self._export = StateExport(
                self.journal, self._sessions, self.tracker, self._inputs, self._own
            )
        self._session_listener = listener or self._session_listener

    def journal_end(self) -> str | None:
        """Return the id of the last message of the kernel on iopub; see `id_before`."""
        return id_before(self.journal, self.journal.next_seq, self._own)

    def take_changes(self) -> Changes:
        """Return the changes since the last call; the first call returns the whole state."""
        self.collect_changes()
        assert self._export is not None
        return self._export.take()

    def take_new_places(self) -> dict[str, str]:
        """Return the places of new sessions since the last call."""
        return {} if self._export is None else self._export.take_new()

    def remembered(self) -> Remembered:
        """Return the sessions and requests whose state another replica may need."""
        return Remembered(
            frozenset(each.session_id for each in self._sessions.all),
            frozenset(each.msg_id for each in self.tracker.executions.find()),
        )

    async def take_over(self, handover: Handover, joined: str | None) -> list[Owed]:
        """Go on in the place of another replica; return the requests that have no reply yet.

        Call it before a websocket is attached; see `import_state` for the parameters.
        """
        journal, clock, sessions = self.journal, self._context.clock, self._sessions
        places: dict[str, Place] = {}
        for msg_id in ids_in(handover, joined):
            place = find_in_memory(journal, msg_id)
            if place is None and self._history is not None:
                place = await find_on_disk(self._history, msg_id)
            if place is not None:
                places[msg_id] = place
        executions = self.tracker.executions
        found = import_state(handover, journal, executions, places, joined=joined, now=clock.wall())
        self._aliases = found.aliases
        for session_id, place in found.sessions.items():
            known = sessions.known(session_id)
            adopted = sessions.adopt(session_id, place, clock.monotonic())
            if self.recorder is not None:
                self.recorder.attached(adopted, known=known)
        sessions.keeps_all = False
        for execution in found.executions:
            session = sessions.get(found.clients[execution.msg_id])
            execution.client = EVERYONE if session is None else session.number
        self.tracker.take_over(found.executions)
        for session_id, question in found.inputs:
            session = sessions.get(session_id)
            question.client = EVERYONE if session is None else session.number
            self._inputs.restore(question)
        return found.owed

    # -- the life of the kernel -------------------------------------------------------------

    def answers_input(self, msg: Message) -> bool:
        """Note an `input_reply`; return False if its input request was answered before."""
        return self._inputs.answer(msg)

    def forget_requests(self, waiting: Collection[str] = ()) -> None:
        """Forget open requests and input requests: the process that they belong to has gone.

        Requests with an id in `waiting` are for the next process.
        """
        self._inputs.clear()
        self.tracker.process_replaced(waiting)

    def connecting(self, connection_info: Mapping[str, Any]) -> None:
        """Note the connection info of the kernel's present process."""
        if self.recorder is not None:
            self.recorder.kernel(kernel_mark(connection_info))

    def process_replaced(self) -> None:
        """Note that no request from before the bridge can be running any longer."""
        if self._adoption is not None:
            self._adoption.end()

    def observe(self, observer: HubObserver) -> None:
        """Report the kernel's activity and disconnects to an observer."""
        self._observers = [*self._observers, observer]

    def unobserve(self, observer: HubObserver) -> None:
        """Stop reporting to an observer; may be called twice."""
        self._observers = [each for each in self._observers if each is not observer]

    def close(self, code: int, reason: str) -> None:
        """Close all websockets and drop the journal; may be called twice.

        Frames that are not on disk yet stay until they are written.
        """
        if self._loader is not None:
            self._loader.close()
        self.delivery.close()
        self._inputs.close()
        for cursor in self._sessions.cursors:
            cursor.link.close(code, reason)
            self.detach(cursor)
        if self.recorder is not None:
            self.recorder.close()
        # Timers and contexts may keep a closed hub alive: it must hold no memory.
        self.journal.release()
        self.tracker.close()
        self._burst.close()

    async def wait_closed(self) -> None:
        """Wait until the work in the background has ended, after `close`."""
        if self._loader is not None:
            await self._loader.wait_closed()

    def statistics(self) -> dict[str, Any]:
        """Return the figures of the journal and of its readers."""
        cursors = self._sessions.cursors
        appended = self.journal.appended
        lags = [max(0, appended - cursor.place.nbytes) for cursor in cursors if not cursor.held]
        return {
            "journal": {
                **self.journal.statistics(),
                "disk_bytes": 0 if self._history is None else self._history.nbytes,
            },
            "clients": {
                "attached": len(cursors),
                "blocked": sum(cursor.blocked for cursor in cursors),
                "behind": sum(lag > 0 for lag in lags),
                "lag_bytes": sum(lags),
                "max_lag_bytes": max(lags, default=0),
                "parked": self._sessions.parked,
            },
            "pace": self._pace.statistics(applies=self._sessions.paced),
        }

    def clients(self) -> list[dict[str, Any]]:
        """Return the figures of each websocket, oldest first."""
        appended, trips = self.journal.appended, self.delivery.round_trips.last
        return [
            {
                "number": cursor.number,
                "session": cursor.session.session_id,
                "dialect": cursor.dialect.name,
                "follows": cursor.selection is not None,
                "blocked": cursor.blocked,
                "lag_bytes": 0 if cursor.held else max(0, appended - cursor.place.nbytes),
                "unacknowledged_bytes": max(0, cursor.place.nbytes - cursor.delivered.nbytes),
                "round_trip": trips.get(cursor.number),
            }
            for cursor in self._sessions.cursors
        ]

    def counters(self) -> Counts:
        """Return the numbers that only grow, see `kbridge.hub.counts`."""
        private, renderer = self._private_bytes, self._renderer
        others = self._before + self._own_bytes + sum(private.values())
        counts: Counts = Counter(
            {("kernel_bytes", "from_kernel", channel): n for channel, n in private.items()}
        )
        counts["kernel_bytes", "from_kernel", Channel.IOPUB] = self.journal.appended - others
        counts["websockets_opened",] = self._attached
        counts["websocket_writes",] = self.delivery.writes
        counts["websocket_written_bytes",] = self.delivery.written_bytes
        counts["coalesced_messages", "joined"] = renderer.joined
        counts["coalesced_messages", "left_out"] = renderer.left_out
        counts["journal_dropped_frames",] = self.journal.forgotten
        counts["rate_limit_waits",] = self.delivery.limited
        if self._rate_limit is not None:
            counts["rate_limit_dropped_messages",] = self._rate_limit.dropped
            counts["rate_limit_dropped_bytes",] = self._rate_limit.dropped_bytes
        return counts
