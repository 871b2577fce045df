"""Policies, which judge single messages, and the combination of several policies.

Invariants:

- a policy returns a verdict and does not change the message;
- the verdict is `DROP` for a dropped message, and `PASS` for one that the policy does not concern;
- replacements that a policy returns are judged by the policies after it, as the messages of the
  kernel are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias

from kbridge.wire.message import Message

__all__ = ["DROP", "PASS", "Policy", "Verdict", "combined", "judge"]

Verdict: TypeAlias = tuple[Message, ...] | None
"""The messages to send instead of the message; None: the message itself."""

PASS: Final = None
DROP: Final[tuple[Message, ...]] = ()


class Policy(Protocol):
    """A rule about messages. It may keep counters, but never waits and never reads a clock."""

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
        `PASS` if no policy objects; otherwise the messages to send instead, possibly none.
    """
    for position, policy in enumerate(policies):
        verdict = policy(msg, msg_type, now)
        if verdict is not None:
            return _instead(policies[position + 1 :], verdict, now)
    return PASS


def combined(policies: Sequence[Policy]) -> Policy:
    """Return one policy that asks several policies in turn; a single policy is called directly."""
    return policies[0] if len(policies) == 1 else partial(judge, policies)


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
