"""Input that kernels wait for: who was asked, and whether somebody has answered.

Laws of this module:

- an `input_request` is answered once, and not after its request is over: such an `input_reply`
  would be taken for the answer to the next question;
- a reply that answers nothing known here passes: the question may be older than this bridge.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from kbridge.wire.message import Message

__all__ = ["Inputs", "Question"]

_LIMIT = 100  # questions, and answered ones, that are remembered


@dataclass(slots=True)
class Question:
    """An `input_request` that waits for its answer.

    Attributes
    ----------
    msg : Message
        It itself.
    client : int
        Who was asked; `kbridge.flow.journal.EVERYONE` where that is not known.
    seq : int
        Where it stands in the journal.
    """

    msg: Message
    client: int
    seq: int


class Inputs:
    """The questions of one kernel."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Question] = OrderedDict()
        self._answered: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def asked(self, msg: Message, client: int, seq: int) -> None:
        """Note an `input_request`."""
        self._open[msg.msg_id] = Question(msg, client, seq)
        if len(self._open) > _LIMIT:
            self._open.popitem(last=False)

    def answer(self, msg: Message) -> bool:
        """Whether an `input_reply` may go to the kernel.

        Its parent is the request that it answers; clients that name none answer the oldest.
        """
        asked = msg.parent_id
        if not asked and self._open:
            asked = next(iter(self._open))
        if self._open.pop(asked, None) is not None:
            self._close(asked)
            return True
        return not self._answered if not asked else asked not in self._answered

    def done(self, request: str) -> None:
        """Note that the request of that `msg_id` is over: nobody waits for its input any more."""
        for msg_id in [i for i, q in self._open.items() if q.msg.parent_id == request]:
            del self._open[msg_id]
            self._close(msg_id)

    def open_questions(self) -> list[Question]:
        """All that wait for an answer, oldest first."""
        return list(self._open.values())

    def clear(self) -> None:
        """Close all: the process that asked has gone."""
        for msg_id in self._open:
            self._close(msg_id)
        self._open.clear()

    def _close(self, msg_id: str) -> None:
        self._answered[msg_id] = None
        if len(self._answered) > _LIMIT:
            self._answered.popitem(last=False)
