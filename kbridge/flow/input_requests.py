"""The input requests of a kernel, and their answers.

Invariants:

- an `input_request` is answered once, and not after its execute request has ended: the kernel would
  take such an `input_reply` as the answer to its next input request;
- a reply to an unknown input request passes, because the request may be older than this bridge.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from kbridge.flow.journal import EVERYONE
from kbridge.wire.message import Message

__all__ = ["InputRequest", "InputRequests"]

_LIMIT = 100  # maximum number of open requests, and of answered ones, that are stored


@dataclass(slots=True)
class InputRequest:
    """An `input_request` that waits for its answer.

    Attributes
    ----------
    msg : Message
        The `input_request`.
    client : int
        The client that received it; `kbridge.flow.journal.EVERYONE` if the client is not known.
    seq : int
        Its sequence number in the journal; -1 if another replica received it, so that it is in no
        journal here.
    away : bool
        True if that client has no websocket, or is not known; others may then answer.
    shown : dict of int to int
        The other clients that were sent it. The value is the number of the first frame that the
        client was sent after it.
    after : int
        If another replica received it, the number of the first frame after it.
    """

    msg: Message
    client: int
    seq: int
    away: bool = False
    shown: dict[int, int] = field(default_factory=dict)
    after: int = 0

    @property
    def journaled(self) -> bool:
        """True if it is in the journal, as far as the journal reaches back."""
        return self.seq >= 0


class InputRequests:
    """The input requests of one kernel.

    Attributes
    ----------
    open : dict of str to InputRequest
        The input requests without an answer by `msg_id`, oldest first; only this class changes it,
        and never replaces it.
    """

    def __init__(self) -> None:
        self.open: OrderedDict[str, InputRequest] = OrderedDict()
        self._answered: OrderedDict[str, dict[int, int]] = OrderedDict()  # and `shown` of each

    def asked(self, msg: Message, client: int, seq: int, *, away: bool = False) -> None:
        """Note an `input_request`; `away` is true if its client has no websocket."""
        self.open[msg.msg_id] = InputRequest(msg, client, seq, away or client == EVERYONE)
        if len(self.open) > _LIMIT:
            self.open.popitem(last=False)

    def restore(self, question: InputRequest) -> None:
        """Note an input request of an earlier bridge, whose client has no websocket yet."""
        self.asked(question.msg, question.client, question.seq, away=True)
        restored = self.open[question.msg.msg_id]
        restored.shown.update(question.shown)
        restored.after = question.after

    def set_away(self, client: int, away: bool) -> list[InputRequest]:
        """Note that a client has no websocket any longer, or has one; return its requests."""
        found = [q for q in self.open.values() if q.client == client]
        for question in found:
            question.away = away
        return found

    def readdress(self, question: InputRequest, client: int) -> None:
        """Note that a request was given to another client, which has a websocket."""
        question.client = client
        question.away = False

    def answer(self, msg: Message) -> bool:
        """Return True if an `input_reply` may be sent to the kernel.

        Its parent is the request that it answers. Without a parent, it answers the oldest one.
        """
        request = msg.parent_id
        if not request and self.open:
            request = next(iter(self.open))
        if request in self.open:
            self._close(request)
            return True
        return request not in self._answered if request else not self._answered

    def shown(self, msg_id: str, client: int) -> int | None:
        """Return the number of the first frame that a client was sent after an input request.

        None if the client was not sent the request, except as its own, or that is not known.
        """
        question = self.open.get(msg_id)
        shown = self._answered.get(msg_id, {}) if question is None else question.shown
        return shown.get(client)

    def done(self, request: str) -> None:
        """Note that the execute request with that `msg_id` has ended; close its input requests."""
        for msg_id in [i for i, q in self.open.items() if q.msg.parent_id == request]:
            self._close(msg_id)

    def clear(self) -> None:
        """Close all input requests, because the process that sent them has ended."""
        for msg_id in list(self.open):
            self._close(msg_id)

    def _close(self, msg_id: str) -> None:
        self._answered[msg_id] = self.open.pop(msg_id).shown
        if len(self._answered) > _LIMIT:
            self._answered.popitem(last=False)
