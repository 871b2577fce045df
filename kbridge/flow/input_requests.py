"""The input requests of a kernel, and their answers.

Invariants:

- an `input_request` is answered once, and not after its execute request has ended: the kernel would
  take such an `input_reply` as the answer to its next input request;
- a reply to an unknown input request passes, because the request may be older than this bridge.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

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
        Its sequence number in the journal.
    """

    msg: Message
    client: int
    seq: int


class InputRequests:
    """The input requests of one kernel.

    Attributes
    ----------
    open : dict of str to InputRequest
        The input requests without an answer by `msg_id`, oldest first; only this class changes it.
    """

    def __init__(self) -> None:
        self.open: OrderedDict[str, InputRequest] = OrderedDict()
        self._answered: OrderedDict[str, None] = OrderedDict()

    def asked(self, msg: Message, client: int, seq: int) -> None:
        """Note an `input_request`."""
        self.open[msg.msg_id] = InputRequest(msg, client, seq)
        if len(self.open) > _LIMIT:
            self.open.popitem(last=False)

    def answer(self, msg: Message) -> bool:
        """Return True if an `input_reply` may be sent to the kernel.

        Its parent is the request that it answers. Without a parent, it answers the oldest one.
        """
        request = msg.parent_id
        if not request and self.open:
            request = next(iter(self.open))
        if self.open.pop(request, None) is not None:
            self._close(request)
            return True
        return request not in self._answered if request else not self._answered

    def done(self, request: str) -> None:
        """Note that the execute request with that `msg_id` has ended; close its input requests."""
        for msg_id in [i for i, q in self.open.items() if q.msg.parent_id == request]:
            del self.open[msg_id]
            self._close(msg_id)

    def clear(self) -> None:
        """Close all input requests, because the process that sent them has ended."""
        for msg_id in self.open:
            self._close(msg_id)
        self.open.clear()

    def _close(self, msg_id: str) -> None:
        self._answered[msg_id] = None
        if len(self._answered) > _LIMIT:
            self._answered.popitem(last=False)
