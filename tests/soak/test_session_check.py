"""The checks of the soak accept correct sessions and find each fault."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.soak.expected import Request, RequestLog
from tests.soak.findings import Findings
from tests.soak.session_check import SessionCheck

SIZE = 20
_IDS = itertools.count()


def message(msg_type: str, parent: str = "r", **content: Any) -> dict[str, Any]:
    return {
        "header": {"msg_id": f"m{next(_IDS)}", "msg_type": msg_type},
        "parent_header": {"msg_id": parent} if parent else {},
        "content": content,
    }


def status(state: str, parent: str = "r") -> dict[str, Any]:
    return message("status", parent, execution_state=state)


def reply(outcome: str = "ok", parent: str = "r") -> dict[str, Any]:
    return message("execute_reply", parent, status=outcome)


def lines(*numbers: int) -> dict[str, Any]:
    text = "".join(f"#{n:08d} {'x' * (SIZE - 11)}\n" for n in numbers)
    return message("stream", name="stdout", text=text)


def marker(count: int) -> dict[str, Any]:
    known = f"{count:,} messages (9 bytes) of output were dropped because ..."
    text = f"[kbridge: {known if count else 'output may be missing here: ...'}]\n"
    return message("stream", name="stderr", text=text)


class Hearing:
    """Return the checks of a client that requested six lines."""

    def __init__(
        self, *, calm: bool = True, asked_by: str = "me", since: bool = False, narrow: bool = False
    ) -> None:
        self.findings = Findings()
        requests = RequestLog()
        requests.add(Request("r", asked_by, 6, SIZE))
        self.check = SessionCheck(
            "me", "me", requests, self.findings, calm=calm, since=since, narrow=narrow
        )
        self.check.connected()

    def hear(self, *messages: dict[str, Any] | str | bytes) -> list[str]:
        """Process messages, "again" for a reconnect, and bytes for a ping; return the faults."""
        for one in messages:
            if one == "again":
                self.check.connected()
            elif isinstance(one, bytes):
                self.check.ping(one)
            else:
                assert isinstance(one, dict)
                self.check.take(one)
        self.check.settle()
        return [fault.partition("me: ")[2] for fault in self.findings.faults]


BUSY, INPUT, IDLE = (
    lambda: status("busy"),
    lambda: message("execute_input", code=""),
    lambda: status("idle"),
)


@pytest.mark.parametrize(
    "heard",
    [
        [BUSY(), lines(0), lines(1), lines(2, 3, 4), lines(5), reply(), IDLE()],
        [BUSY(), INPUT(), lines(0, 1, 2, 3, 4, 5), IDLE(), reply()],
        [BUSY(), lines(0, 1, 2), "again", lines(3, 4, 5), reply(), IDLE()],
        [BUSY(), lines(0, 1, 2), "again", lines(1), lines(2, 3, 4, 5), reply(), IDLE()],
        [BUSY(), lines(0, 1, 2), "again", BUSY(), lines(0, 1, 2, 3, 4, 5), reply(), IDLE()],
        [BUSY(), lines(0), b"1", lines(1), b"2", "again", lines(1, 2, 3, 4, 5), reply(), IDLE()],
        [BUSY(), lines(0), "again", BUSY(), b"1", b"2", lines(0, 1, 2, 3, 4, 5), reply(), IDLE()],
        [BUSY(), lines(0, 1), marker(2), lines(4, 5), reply(), IDLE()],
        [BUSY(), lines(0, 1, 2, 3, 4, 5), reply(), IDLE(), "again", IDLE()],
    ],
    ids=itertools.count(),
)
def test_a_correct_session_has_no_fault(heard) -> None:
    assert Hearing().hear(*heard) == []


@pytest.mark.parametrize(
    ("heard", "blamed"),
    [
        ([BUSY(), lines(0, 1), lines(3, 4, 5), reply(), IDLE()], "1 lines are missing"),
        ([BUSY(), lines(0, 1, 2, 3), reply(), IDLE()], "2 lines are missing"),
        ([BUSY(), lines(1, 2, 3, 4, 5), reply(), IDLE()], "1 lines are missing"),
        ([BUSY(), lines(0, 1), "again", lines(4, 5), reply(), IDLE()], "2 lines are missing"),
        ([BUSY(), lines(0, 1), marker(1), lines(4, 5), reply(), IDLE()], "account for 1"),
        ([BUSY(), lines(0, 1), marker(300), lines(3, 4, 5)], "markers count 300"),
        ([BUSY(), lines(0, 1), lines(1, 2)], "line 1 after line 1"),
        ([BUSY(), lines(0, 2, 1)], "line 1 after line 2"),
        ([BUSY(), lines(0, 1, 2, 3, 4, 5), IDLE(), lines(5)], "after the idle"),
        ([BUSY(), IDLE(), IDLE()], "idle of r came twice"),
        ([BUSY(), BUSY()], "busy of r came twice"),
        ([reply(), reply()], "reply of r came twice"),
        ([reply("aborted")], "'aborted'"),
        ([status("restarting", "")], "nobody touched the kernel"),
        ([lines(0), b"1", b"2", "again", lines(0)], "though 1 were acknowledged"),
        ([BUSY(), b"1", b"2", "again", BUSY()], "busy of r came twice"),
        ([message("stream", name="stdout", text="#00000000 x")], "mid-line"),
        ([message("stream", name="stdout", text="#0000000\n")], "mangled"),
        ([b"later"], "a ping with"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_each_fault_is_named(heard, blamed: str) -> None:
    faults = Hearing().hear(*heard)
    assert any(blamed in fault for fault in faults), faults


def test_a_hole_is_named_with_the_messages_around_it() -> None:
    before, after = lines(0, 1), lines(4, 5)
    (fault,) = Hearing().hear(BUSY(), before, after, reply(), IDLE())
    ids = [each["header"]["msg_id"] for each in (before, after)]
    assert f"lines 2 to 3 of r, between the messages {ids[0]} and {ids[1]}" in fault


def test_a_duplicate_message_is_a_fault() -> None:
    once = lines(0)
    assert any("came twice" in fault for fault in Hearing().hear(BUSY(), once, once))


def test_a_duplicate_after_since_is_a_fault() -> None:
    assert Hearing(since=True).hear(BUSY(), lines(0, 1), "again", lines(2)) == []
    again = lines(1)
    faults = Hearing(since=True).hear(BUSY(), lines(0), again, "again", again)
    assert any("came twice" in fault for fault in faults)
    assert any("line 1 after line 1" in fault for fault in faults)


def test_a_notice_without_a_count_explains_duplicates() -> None:
    story = [BUSY(), lines(0, 1), reply(), "again", BUSY()]
    rest = [lines(0, 1, 5), reply()]
    assert Hearing(since=True, narrow=True).hear(*story, marker(0), *rest) == []
    assert Hearing(since=True, narrow=True).hear(*story, "again", lines(2)) == []
    (fault,) = Hearing(since=True, narrow=True).hear(*story)
    assert "busy of r came twice" in fault
    (fault,) = Hearing().hear(marker(0))
    assert "whose place is known" in fault


def test_the_start_of_a_kernel_may_be_repeated() -> None:
    start = status("starting", "")
    answer = [BUSY(), lines(0, 1, 2, 3, 4, 5), reply(), IDLE()]
    assert Hearing().hear(start, *answer, "again", start, *answer) == []
    (fault,) = Hearing().hear(start, *answer, "again", status("starting", ""), *answer)
    assert "nobody touched the kernel" in fault


def test_a_reply_for_another_client_is_a_fault() -> None:
    (fault,) = Hearing(asked_by="you").hear(reply())
    assert "which is you's" in fault


def test_a_client_that_joins_later_must_receive_the_rest() -> None:
    assert Hearing(asked_by="you").hear(lines(3), lines(4, 5), IDLE()) == []
    (fault,) = Hearing(asked_by="you").hear(lines(2), lines(4, 5), IDLE())
    assert "1 lines are missing" in fault


def test_a_killed_kernel_leaves_no_gap() -> None:
    end = status("restarting", "")
    assert Hearing(calm=False).hear(BUSY(), lines(0, 1), end) == []
    (fault,) = Hearing(calm=False).hear(BUSY(), lines(0), lines(2), end)
    assert "1 lines are missing" in fault
