"""Verdicts on single messages, and how a list of policies comes to one.

Laws of this module:

- a policy says what is to become of a message, and does nothing to it;
- a dropped message is an explicit `DROP`, a message that is none of the policy's business `PASS`;
- what a policy puts in place of a message is judged by the policies after it, as the kernel's own
  messages are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

from kbridge.wire.message import Message

__all__ = ["DROP", "PASS", "Policy", "Verdict", "judge"]

Verdict: TypeAlias = tuple[Message, ...] | None
"""What is sent in place of the message; None: the message itself."""

PASS: Final = None
DROP: Final[tuple[Message, ...]] = ()


class Policy(Protocol):
    """One rule about messages. It may count, but it never waits and never reads a clock."""

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:
        """Judge one message.

        Parameters
        ----------
        msg : Message
            The message, as the kernel or the client sent it.
        msg_type : str
            Its type, read once for all policies.
        now : float
            Monotonic seconds. All messages of one batch may share it.
        """
        ...


def judge(policies: Sequence[Policy], msg: Message, msg_type: str, now: float) -> Verdict:
    """Ask the policies in turn.

    Returns
    -------
    Verdict
        `PASS` if none of them objects, else what is to be sent instead, perhaps nothing.
    """
    for position, policy in enumerate(policies):
        verdict = policy(msg, msg_type, now)
        if verdict is not None:
            return _instead(policies[position + 1 :], verdict, now)
    return PASS


def _instead(policies: Sequence[Policy], messages: tuple[Message, ...], now: float) -> Verdict:
    if not policies:
        return messages
    kept: list[Message] = []
    for msg in messages:
        verdict = judge(policies, msg, msg.msg_type, now)
        if verdict is None:
            kept.append(msg)
        else:
            kept.extend(verdict)
    return tuple(kept)
