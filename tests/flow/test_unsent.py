"""Messages that a kernel made and did not send."""

from __future__ import annotations

import json

import pytest

from kbridge.flow.unsent import UnsentMessages

PROCESS = "5f0c-a1b2c3_4711"


def header(msg_id: str) -> bytes:
    return json.dumps({"msg_id": msg_id, "msg_type": "status", "session": "s"}).encode()


def arrive(unsent: UnsentMessages, count: int, msg_id: str) -> int:
    """Let messages arrive, the last of them an idle status; return the reported number."""
    unsent.arrived += count
    unsent.check(header(msg_id))
    return unsent.take()


@pytest.fixture
def unsent() -> UnsentMessages:
    made = UnsentMessages()
    assert arrive(made, 7, f"{PROCESS}_1000") == 0
    return made


def test_none_is_missing_if_all_numbers_have_arrived(unsent: UnsentMessages) -> None:
    assert arrive(unsent, 500, f"{PROCESS}_1500") == 0
    assert unsent.total == 0


def test_numbers_that_did_not_arrive_are_counted_once(unsent: UnsentMessages) -> None:
    assert arrive(unsent, 506, f"{PROCESS}_1600") == 94
    assert arrive(unsent, 3, f"{PROCESS}_1603") == 0
    assert arrive(unsent, 590, f"{PROCESS}_2203") == 10
    assert unsent.total == 104


def test_a_count_that_is_not_taken_is_kept(unsent: UnsentMessages) -> None:
    unsent.arrived += 1
    unsent.check(header(f"{PROCESS}_2021"))
    assert arrive(unsent, 2, f"{PROCESS}_2023") == 1020


def test_replies_that_are_not_read_yet_are_not_missing(unsent: UnsentMessages) -> None:
    for number in range(1005, 2000, 5):
        assert arrive(unsent, 1, f"{PROCESS}_{number}") == 0


def test_few_messages_fit_into_the_queue_of_the_kernel(unsent: UnsentMessages) -> None:
    """A hook of IPython may hold messages back, and clients may be connected directly."""
    assert arrive(unsent, 10, f"{PROCESS}_1500") == 0
    assert arrive(unsent, 11, f"{PROCESS}_2001") == 490


def test_messages_of_other_processes_hide_no_more_than_their_number(
    unsent: UnsentMessages,
) -> None:
    assert arrive(unsent, 20 + 30, f"{PROCESS}_2000") == 950


def test_another_process_starts_anew(unsent: UnsentMessages) -> None:
    assert arrive(unsent, 1, "5f0c-a1b2c3_4712_9000") == 0
    assert arrive(unsent, 1, "5f0c-a1b2c3_4712_9511") == 510


def test_nothing_is_compared_across_a_reset(unsent: UnsentMessages) -> None:
    unsent.arrived += 1
    unsent.check(header(f"{PROCESS}_2000"))
    unsent.reset()
    assert unsent.take() == 0
    assert arrive(unsent, 1, f"{PROCESS}_4000") == 0
    assert arrive(unsent, 1, f"{PROCESS}_5000") == 999
    assert unsent.total == 999 + 999


@pytest.mark.parametrize(
    "ids",
    [
        ("0b7e2c0a-1f8e-4b58-8d63-2d8f8c9b0001", "0b7e2c0a-1f8e-4b58-8d63-2d8f8c9b9999"),
        ("session_1", "session_1000"),
        ("session_x_1", "session_x_1000"),
        ("s_1_x", "s_1_y"),
        ("s_1_1", "s_1_" + "9" * 4000),
        ("s_1_\u0661", "s_1_\u0669\u0669"),
        ("", ""),
    ],
)
def test_ids_of_another_form_are_not_compared(ids: tuple[str, str]) -> None:
    unsent = UnsentMessages()
    for msg_id in ids:
        assert arrive(unsent, 1, msg_id) == 0
    assert unsent.total == 0
