"""What has arrived, told by pongs."""

import pytest

from kbridge.flow.journal import Place
from kbridge.hub.broadcast.acks import Acknowledgements
from kbridge.hub.broadcast.client_sessions import Attachment, Clients
from kbridge.link.memory import MemoryClient
from kbridge.wire.dialects import V1
from kbridge.wire.frames import PING, each

ORIGIN = 1_000_000


def at(seq: int) -> Place:
    return Place(seq, seq, seq * 10)


@pytest.fixture
def acks() -> Acknowledgements:
    return Acknowledgements(ORIGIN)


@pytest.fixture
def attachment() -> Attachment:
    return Clients(60.0).attach(MemoryClient(), V1, "s", at(3))


def payloads(data: bytes) -> list[bytes]:
    found = list(each(data))
    assert all(opcode == PING for opcode, _ in found)
    return [payload for _, payload in found]


def test_where_nothing_was_written_nothing_is_asked(acks, attachment) -> None:
    assert not acks.due(attachment)
    assert acks.ask(attachment) == b""
    assert attachment.asked is None


def test_a_ping_carries_the_number_of_the_last_frame_in_ascii_digits(acks, attachment) -> None:
    attachment.place = at(8)
    assert acks.due(attachment)
    assert payloads(acks.ask(attachment)) == [b"1000007"]
    assert attachment.asked == at(8)
    assert attachment.delivered == at(3)


def test_one_is_under_way_at_a_time(acks, attachment) -> None:
    attachment.place = at(8)
    acks.ask(attachment)
    attachment.place = at(9)
    assert not acks.due(attachment)
    assert acks.ask(attachment) == b""
    assert attachment.asked == at(8)


def test_a_pong_acknowledges_what_was_before_its_ping_and_no_more(acks, attachment) -> None:
    attachment.place = at(8)
    acks.ask(attachment)
    attachment.place = at(12)
    assert acks.heard(attachment, b"1000007")
    assert (attachment.delivered, attachment.asked) == (at(8), None)
    assert acks.due(attachment)
    assert payloads(acks.ask(attachment)) == [b"1000011"]


@pytest.mark.parametrize(
    "payload",
    [b"1000008", b"7", b"01000007", b" 1000007", b"1000007\n", b"rubbish", b"\xff" * 125, b"-1"],
)
def test_a_pong_for_what_was_not_asked_tells_nothing(acks, attachment, payload) -> None:
    attachment.place = at(8)
    acks.ask(attachment)
    assert not acks.heard(attachment, payload)
    assert (attachment.delivered, attachment.asked) == (at(3), at(8))


@pytest.mark.parametrize("payload", [b"", b"1000002", b"1000007"])
def test_a_pong_that_nobody_asked_for_tells_nothing(acks, attachment, payload) -> None:
    attachment.place = at(8)
    assert not acks.heard(attachment, payload)
    assert (attachment.delivered, attachment.asked) == (at(3), None)


def test_a_late_pong_of_an_earlier_ping_tells_nothing(acks, attachment) -> None:
    attachment.place = at(8)
    acks.ask(attachment)
    assert acks.heard(attachment, b"")
    attachment.place = at(12)
    acks.ask(attachment)
    assert not acks.heard(attachment, b"1000007")
    assert (attachment.delivered, attachment.asked) == (at(3), at(12))
    assert acks.heard(attachment, b"1000011")
    assert attachment.delivered == at(12)


def test_the_same_pong_twice_is_one(acks, attachment) -> None:
    attachment.place = at(8)
    acks.ask(attachment)
    assert acks.heard(attachment, b"1000007")
    attachment.place = at(9)
    acks.ask(attachment)
    assert not acks.heard(attachment, b"1000007")
    assert attachment.delivered == at(8)


def test_a_keepalives_pong_may_stand_for_ours_which_is_asked_anew(acks, attachment) -> None:
    """RFC 6455, section 5.5.3: who has two pings to answer may answer the later one alone."""
    attachment.place = at(8)
    first = acks.ask(attachment)
    assert acks.heard(attachment, b"")
    assert attachment.delivered == at(3), "which of the two it answers, nobody knows"
    assert acks.due(attachment)
    assert acks.ask(attachment) == first
    assert acks.heard(attachment, b"1000007")
    assert attachment.delivered == at(8)


def test_whose_connection_is_written_to_is_nobodys_news_while_pings_tell(acks, attachment) -> None:
    attachment.place = at(8)
    acks.written(attachment)
    assert attachment.delivered == at(3)


def test_turned_off_what_was_written_counts_as_arrived_and_nothing_is_asked(attachment) -> None:
    acks = Acknowledgements(ORIGIN, enabled=False)
    attachment.place = at(8)
    assert acks.ask(attachment) == b""
    acks.written(attachment)
    assert attachment.delivered == at(8)
    assert not acks.heard(attachment, b"1000007")
    assert not acks.heard(attachment, b"")
    assert attachment.asked is None


def test_numbers_are_held_exactly_by_a_float(attachment) -> None:
    """As JavaScript reads them."""
    acks = Acknowledgements(4_102_444_800 * 1_000_000)  # the year 2100
    attachment.place = at(10**9)
    (payload,) = payloads(acks.ask(attachment))
    assert int(float(payload)) == int(payload) == int(b"4102444800000000") + 10**9 - 1
