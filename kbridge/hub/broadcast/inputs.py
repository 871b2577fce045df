"""Sends the input requests of a kernel to clients that reconnect or follow a request.

An `input_request` is for the session that sent the `execute_request`. While that session has no
websocket, websockets that follow the request (`?parents=`) receive it, too. The first answer counts
(`kbridge.flow.input_requests`).
"""

from __future__ import annotations

from collections.abc import Mapping

from kbridge.flow.activity import state_of
from kbridge.flow.input_requests import InputRequest, InputRequests
from kbridge.flow.journal import EVERYONE, Journal
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.broadcast.delivery import Delivery
from kbridge.hub.broadcast.resume import ResumePoint
from kbridge.hub.recorder import Recorder
from kbridge.wire.message import Message

__all__ = ["Inputs"]


class Inputs:
    """The input requests of one kernel, and the websockets that receive them.

    Parameters
    ----------
    journal : Journal
        The output of the kernel.
    sessions : ClientSessions
        The websockets.
    delivery : Delivery
        Writes to the websockets.
    recorder : Recorder or None
        Writes the open input requests to disk.

    Attributes
    ----------
    open : mapping of str to InputRequest
        The input requests without an answer by `msg_id`, oldest first.
    """

    def __init__(
        self,
        journal: Journal,
        sessions: ClientSessions,
        delivery: Delivery,
        recorder: Recorder | None,
    ) -> None:
        self._journal = journal
        self._sessions = sessions
        self._delivery = delivery
        self._recorder = recorder
        self._requests = InputRequests()
        self.open: Mapping[str, InputRequest] = self._requests.open

    # -- messages ---------------------------------------------------------------------------

    def asked(self, msg: Message, client: int, seq: int) -> None:
        """Note an `input_request` for a client, which is frame `seq` of the journal."""
        self._requests.asked(msg, client, seq, away=not self._sessions.is_here(client))
        self._record()

    def restore(self, question: InputRequest) -> None:
        """Note an input request of an earlier bridge, or of another replica."""
        self._requests.restore(question)
        self._record()

    def answer(self, msg: Message) -> bool:
        """Note an `input_reply`; return False if its input request was answered before."""
        wanted = self._requests.answer(msg)
        self._record()
        return wanted

    def on_status(self, status: Message) -> None:
        """Close the input requests of a request that has ended."""
        if state_of(status.content) == "idle":
            self._requests.done(status.parent_id)
            self._record()

    def clear(self) -> None:
        """Close all input requests: the process that sent them has gone."""
        self._requests.clear()
        self._record()

    def close(self) -> None:
        """Hold no memory. The input requests stay on disk, for the next bridge."""
        self._requests.clear()

    def _record(self) -> None:
        if self._recorder is not None:
            self._recorder.inputs(self._requests.open)

    # -- websockets -------------------------------------------------------------------------

    def attached(self, cursor: Cursor) -> None:
        """Note that the session of a websocket is here."""
        if self._requests.open:
            self._requests.set_away(cursor.session.number, away=False)

    def detached(self, cursor: Cursor) -> None:
        """Let others answer the input requests of a session whose last websocket has gone."""
        client = cursor.session.number
        if not self._requests.open or self._sessions.is_here(client):
            return
        for question in self._requests.set_away(client, away=True):
            for reader in self._sessions.cursors:
                chosen, place = reader.selection, reader.place
                if chosen is None or reader.held or place.seq <= question.seq:
                    continue  # it receives other messages, or has yet to read or to ask for this
                if chosen.ask(question, reader.session.number, place.seq):
                    self._record()
                    self._delivery.go_on(reader)

    def point_after(self, cursor: Cursor, since: str, point: ResumePoint) -> ResumePoint:
        """Return the point after the message that a client names with `since`.

        It is later than that of the message in the journal, if that is an input request of another
        client that this client received later.
        """
        seq = self._requests.shown(since, cursor.session.number)
        place = None if seq is None else self._journal.after_seq(seq - 1)
        return point if place is None else ResumePoint(place, exact=True)

    def resumed(self, cursor: Cursor, since: str, point: ResumePoint | None) -> None:
        """Send a websocket the input requests that it may have lost; before its first frames.

        With `since`, input requests that the client has received are not repeated, and open
        requests of disconnected sessions are reassigned to it. A websocket that follows some
        requests receives those of disconnected sessions, too, but they are not reassigned.
        """
        number = cursor.session.number
        exact = point is not None and point.exact
        lost: list[Message] = []
        for question in self._requests.open.values():
            if cursor.selection is not None and question.client != number:
                self._ask_again(cursor, question, since if exact else "")
                continue
            own = question.client in (EVERYONE, number)
            if not own:
                if point is None or self._sessions.is_here(question.client):
                    continue
                self._requests.readdress(question, number)
                if question.journaled:
                    self._journal.readdress(question.seq, number)
                    self._delivery.forget_chunks()
            if self._is_lost(cursor, question, since if own and exact else ""):
                lost.append(question.msg)
        self._record()
        if lost:
            self._delivery.say(cursor, lost)

    def _is_lost(self, cursor: Cursor, question: InputRequest, since: str) -> bool:
        """Return True if a websocket has to be sent an input request apart from the journal.

        `since` is the message that the client has received last; empty if that is not known, or if
        the input request was for another client.
        """
        seq = cursor.place.seq
        if not question.journaled:
            return not since or (since != question.msg.msg_id and seq <= question.after)
        if question.seq < seq:  # the websocket does not read it in the journal
            return not since
        return not self._journal.holds(question.seq)

    def _ask_again(self, cursor: Cursor, question: InputRequest, since: str) -> None:
        """Send a websocket that follows some requests an input request that it may have lost.

        `since` is the message that the client has received last; empty if that is not known.
        """
        assert cursor.selection is not None
        number, seq = cursor.session.number, cursor.place.seq
        if question.seq >= seq and self._journal.holds(question.seq):
            return
        shown = question.shown.get(number)
        if since and (since == question.msg.msg_id or (shown is not None and seq > shown)):
            cursor.selection.skip(question)
        else:
            cursor.selection.ask(question, number, seq)
