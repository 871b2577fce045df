"""A list of policies returns one verdict."""

import pytest

from kbridge.flow.policy import DROP, PASS, Policy, Verdict, combined, judge
from kbridge.wire.message import Channel, Message


def message(name: str) -> Message:
    return Message(Channel.IOPUB, f'{{"msg_type": "{name}"}}'.encode(), b"{}", b"{}", b"{}")


class Rule:
    """A policy with a verdict per message type, which records its calls."""

    def __init__(self, **verdicts: Verdict) -> None:
        self.verdicts = verdicts
        self.asked: list[tuple[str, float]] = []

    def __call__(self, msg: Message, msg_type: str, now: float) -> Verdict:
        assert msg.msg_type == msg_type
        self.asked.append((msg_type, now))
        return self.verdicts.get(msg_type, PASS)


A, B, C = message("a"), message("b"), message("c")


@pytest.mark.parametrize(
    ("rules", "verdict"),
    [
        ([], PASS),
        ([Rule()], PASS),
        ([Rule(a=DROP)], DROP),
        ([Rule(), Rule(a=DROP)], DROP),
        ([Rule(a=(B,))], (B,)),
        ([Rule(a=(B, C))], (B, C)),
        ([Rule(b=DROP), Rule(a=(B,))], (B,)),
        ([Rule(a=(B, C)), Rule(b=DROP)], (C,)),
        ([Rule(a=(B, C)), Rule(b=(A, A)), Rule(a=(C,))], (C, C, C)),
        ([Rule(a=(B,)), Rule(b=DROP)], DROP),
    ],
)
def test_a_list_of_policies_gives_one_verdict(rules: list[Policy], verdict: Verdict) -> None:
    assert judge(rules, A, "a", 1.0) == verdict
    assert combined(rules)(A, "a", 1.0) == verdict


def test_a_drop_is_final() -> None:
    later = Rule()
    assert judge([Rule(a=DROP), later], A, "a", 1.0) == DROP
    assert later.asked == []


def test_replacements_are_judged_by_later_policies_only_and_at_the_same_time() -> None:
    first, second = Rule(a=(B, C)), Rule()
    judge([first, second], A, "a", 7.5)
    assert first.asked == [("a", 7.5)]
    assert second.asked == [("b", 7.5), ("c", 7.5)]
