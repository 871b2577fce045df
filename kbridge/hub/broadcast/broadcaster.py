"""The websockets of one hub: who comes, where each begins, when each gets its turn, who leaves.

Owns the clients, what each is known to have, and two timers: of what is held back, and of what is
still to be asked about.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from kbridge.errors import KernelMessageError
from kbridge.flow.inputs import Inputs
from kbridge.flow.journal import EVERYONE, Journal
from kbridge.flow.pace import Pace
from kbridge.hub.broadcast.acks import LATEST, PATIENCE, Acknowledgements
from kbridge.hub.broadcast.client_sessions import Attachment, Clients
from kbridge.hub.broadcast.delivery import Delivery
from kbridge.hub.broadcast.rendering import Renderer
from kbridge.hub.broadcast.resume import START, Found, SessionIndex, locate
from kbridge.hub.broadcast.turns import turns
from kbridge.hub.clock import Clock
from kbridge.hub.notices import Notices
from kbridge.hub.settings import HubSettings
from kbridge.link.interfaces import ClientLink, nobody
from kbridge.wire.dialects import Dialect
from kbridge.wire.message import Channel, Message

__all__ = ["Readers"]

_TURN: Final = 128 << 10
"""Bytes that one websocket is given in one turn (more, where a chunk is larger)."""

_AT_ONCE: Final = 2 << 20
"""Bytes that all websockets together are given at once; the others wait for a turn."""

_ASKED_AT_ONCE: Final = 100
"""Websockets that are asked what has arrived without a break."""

_SLACK: Final = 64
"""Part of `history_limit` by which the past may exceed it before it is trimmed."""

_FRESH: Final = 1.0
"""Seconds for which chunks are kept for readers that lag."""


class Readers:
    """The readers of one journal.

    Parameters
    ----------
    journal : Journal
        What they read.
    settings : HubSettings
        What can be set.
    pace : Pace
        How far they may read now.
    inputs : Inputs
        The kernel's open questions.
    notices, clock
        What makes the markers, and the time.
    refuse : callable
        Is told of a message that a dialect has no form for.
    answered : SessionIndex or None
        Where the sessions' first messages stand, if the kernel had clients before there was this
        journal.

    Attributes
    ----------
    clients : Clients
        Who is here, and who may come back.
    """

    def __init__(
        self,
        journal: Journal,
        settings: HubSettings,
        *,
        pace: Pace,
        inputs: Inputs,
        notices: Notices,
        clock: Clock,
        refuse: Callable[[Channel, KernelMessageError], None],
        answered: SessionIndex | None,
    ) -> None:
        self.clients = Clients(settings.resume_timeout)
        self._journal = journal
        self._answered = answered
        self._pace = pace
        self._inputs = inputs
        self._notices = notices
        self._clock = clock
        # Microseconds since 1970: no life of a bridge says more, so no two have numbers in common,
        # and JavaScript's numbers hold them exactly.
        self._acks = Acknowledgements(int(clock.wall() * 1e6), enabled=settings.acknowledge)
        self._renderer = Renderer(
            journal,
            pace,
            marker=notices.lost,
            refuse=refuse,
            joins=settings.rate_limit_policy == "coalesce",
        )
        self._delivery = Delivery(self._acks, self._renderer)
        # The websockets that have more to read than one turn allows.
        self._waiting: OrderedDict[Attachment, None] = OrderedDict()
        self._turns = turns()
        self._in_turns = False
        self._stale: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._held: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._stopped = False

    def attach(
        self,
        link: ClientLink,
        dialect: Dialect,
        session_id: str,
        since: str,
        *,
        verbatim: bool,
        paced: bool,
    ) -> Attachment:
        """Add a websocket, and write to it what it is owed.

        Raises
        ------
        InvalidRequest
            If `since` is longer than any id.
        """
        journal = self._journal
        found = locate(journal, since, self._acks.origin, self._notices) if since else None
        back = self.clients.known(session_id) is not None
        start = journal.end()
        if self._answered is not None and session_id and not back:
            # Unknown here, and yet it may be one that comes back.
            start = self._answered.find(journal, session_id) or start
        attachment = self.clients.attach(link, dialect, session_id, start)
        attachment.verbatim = verbatim
        attachment.paced = paced
        attachment.acknowledges = bool(session_id or since)
        if found is not None:
            if back and since != START and not found.seen:
                # What it has acknowledged it has seen, whatever it says.
                seq = max(found.place.seq, attachment.delivered.seq)
                found = found._replace(place=found.place._replace(seq=seq))
            self.clients.begin(attachment, found.place)
        attachment.lags = attachment.place.seq < journal.next_seq
        link.on_writable = lambda: self._on_writable(attachment)
        if self._inputs and (back or found is not None):
            self._ask_again(attachment, found)
        self._pump(attachment)
        self._rest()
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Remove a websocket; may be called twice."""
        if self.clients.detach(attachment, self._clock.monotonic()):
            attachment.link.on_writable = nobody
            self._waiting.pop(attachment, None)
            self._be_patient(attachment, until=None)
            self._trim()

    def flush(self) -> None:
        """Write out what came, as far as the pace allows, and forget what everybody has."""
        journal = self._journal
        now = self._clock.monotonic()
        again = self._pace.settle(journal.first_seq, journal.next_seq, now)
        if again is not None and self._held is None and not self._stopped:
            self._held = self._loop.call_later(again, self._on_held)
        delivery, waiting = self._delivery, self._waiting
        end = delivery.work + _AT_ONCE
        for attachment in self.clients.attachments:  # a hook may detach
            if attachment.blocked or (waiting and attachment in waiting):
                attachment.lags = True
            elif delivery.work < end:
                self._pump(attachment)
            else:
                self._wait(attachment)
        self._rest()
        self._trim()

    def unread(self) -> int | None:
        """Return the bytes that the fastest live reader has yet to be given; None without readers.

        Costs a walk over all websockets, as `flush` does.
        """
        seq = self.clients.furthest()
        return None if seq is None else self._journal.behind(seq)

    def release(self) -> None:
        """Hold nothing back of what came so far."""
        self._pace.release()

    def heard(self, attachment: Attachment, payload: bytes) -> None:
        """Take a pong, which may be an acknowledgement."""
        if not self._acks.heard(attachment, payload):
            return
        if attachment.patience is not None:
            self._be_patient(attachment, until=None)
            self._pump(attachment)
            self._rest()
        self._trim()
        if self._acks.due(attachment) and self._asking is None and not self._stopped:
            self._asking = self._loop.call_later(LATEST, self._on_asking)

    def close(self, code: int, reason: str) -> None:
        """Close all websockets, and cancel the timers; may be called twice."""
        self._stopped = True
        for timer in (self._held, self._asking, self._stale):
            if timer is not None:
                timer.cancel()
        self._held = self._asking = self._stale = None
        for attachment in self.clients.attachments:
            attachment.link.close(code, reason)
            self.detach(attachment)
        self._delivery.forget()
        self._renderer.forget_all()

    def statistics(self) -> dict[str, Any]:
        """Who reads, and what waits for its turn."""
        return {"clients": self.clients.statistics(), "pace": self._pace.statistics()}

    # -- inside -----------------------------------------------------------------------------

    def _ask_again(self, attachment: Attachment, found: Found | None) -> None:
        """Show a client that comes back the questions that it may have lost.

        One that says what it saw has those that it saw, and takes over those of clients that are
        not here any more.
        """
        number = attachment.client.number
        seen = found is not None and found.seen
        lost: list[Message] = []
        for question in self._inputs.open_questions():
            own = question.client in (EVERYONE, number)
            if not own:
                if found is None or self.clients.is_here(question.client):
                    continue
                question.client = number
                self._journal.readdress(question.seq, number)
                self._renderer.forget_all()
            passed = question.seq < attachment.place.seq
            if not (own and seen) if passed else not self._journal.holds(question.seq):
                lost.append(question.msg)
        if lost:
            self._delivery.say(attachment, lost)

    def _trim(self) -> None:
        journal = self._journal
        # Not for every frame: a look at all readers' places costs more than a little memory.
        if journal.nbytes > journal.history_limit + journal.history_limit // _SLACK:
            journal.trim(self.clients.slowest(self._clock.monotonic(), journal.next_seq))

    def _pump(self, attachment: Attachment) -> None:
        """Write to a websocket for one turn, and let it wait for the next if there is more."""
        delivery = self._delivery
        end = delivery.work + _TURN
        while delivery.pump(attachment):
            if delivery.work >= end:
                self._wait(attachment)
                break
        if attachment.lags and attachment.patience is None and self._acks.full(attachment):
            self._be_patient(attachment, until=PATIENCE)

    def _wait(self, attachment: Attachment) -> None:
        """Let a websocket go on in one of the loop's next turns."""
        if self._stopped:
            return
        self._waiting[attachment] = None
        if not self._in_turns:
            self._in_turns = True
            self._turns.add(self._take_turn)

    def _take_turn(self) -> bool:
        """Go on with the websocket that has waited longest; True if others wait."""
        if self._waiting and not self._stopped:
            attachment, _ = self._waiting.popitem(last=False)
            try:
                self._pump(attachment)
            except BaseException:
                # The queue forgets a step that fails: the others that wait need another one.
                self._in_turns = False
                for other in self._waiting:
                    self._wait(other)
                    break
                raise
            self._rest()
            self._trim()
        self._in_turns = bool(self._waiting) and not self._stopped
        return self._in_turns

    def _rest(self) -> None:
        """Drop what was kept for readers at the same place, at once or in a while."""
        self._delivery.forget()
        if self._renderer.keeps and self._stale is None and not self._stopped:
            self._stale = self._loop.call_later(_FRESH, self._on_stale)

    def _be_patient(self, attachment: Attachment, until: float | None) -> None:
        """Wait so long for a websocket's pong, or no more."""
        if attachment.patience is not None:
            attachment.patience.cancel()
            attachment.patience = None
        if until is not None and not self._stopped:
            attachment.patience = self._loop.call_later(until, self._on_mute, attachment)

    def _on_mute(self, attachment: Attachment) -> None:
        attachment.patience = None
        attachment.mute = True
        self._pump(attachment)
        self._rest()

    def _on_writable(self, attachment: Attachment) -> None:
        self._delivery.written(attachment)
        self._pump(attachment)
        self._delivery.ask(attachment)
        self._rest()
        self._trim()

    def _on_stale(self) -> None:
        self._stale = None
        self._renderer.forget_all()

    def _on_held(self) -> None:
        self._held = None
        self.flush()

    def _on_asking(self) -> None:
        self._asking = None
        asked = 0
        for attachment in self.clients.attachments:
            if self._acks.due(attachment):
                self._delivery.ask(attachment)
                asked += 1
                if asked >= _ASKED_AT_ONCE and not self._stopped:
                    self._asking = self._loop.call_later(0, self._on_asking)
                    return
