"""The position of a websocket: acknowledgements by pongs, and the window without them."""

import pytest

from kbridge.flow.journal import Place
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor, CursorOptions
from kbridge.link.memory import MemoryClient
from kbridge.wire.dialects import V1
from kbridge.wire.frames import PING, each

MIB = 1 << 20
ORIGIN = 1_000_000


def at(seq: int) -> Place:
    return Place(seq, seq, seq * 10)


def make(ack_origin: int | None = ORIGIN) -> Cursor:
    options = CursorOptions(ack_origin)
    return ClientSessions(60.0).attach(MemoryClient(), V1, "s", at(3), options)


@pytest.fixture
def cursor() -> Cursor:
    return make()


def payloads(data: bytes) -> list[bytes]:
    found = list(each(data))
    assert all(opcode == PING for opcode, _ in found)
    return [payload for _, payload in found]


def test_where_nothing_was_written_nothing_is_asked(cursor) -> None:
    assert not cursor.ping_due
    assert cursor.take_ping() == b""
    assert cursor.pinged is None


def test_a_ping_carries_the_number_of_the_last_frame_in_ascii_digits(cursor) -> None:
    cursor.advance(at(8))
    assert cursor.ping_due
    assert payloads(cursor.take_ping()) == [b"1000007"]
    assert cursor.pinged == at(8)
    assert cursor.delivered == at(3)


def test_one_is_under_way_at_a_time(cursor) -> None:
    cursor.advance(at(8))
    cursor.take_ping()
    cursor.advance(at(9))
    assert not cursor.ping_due
    assert cursor.take_ping() == b""
    assert cursor.pinged == at(8)


def test_a_pong_acknowledges_what_was_before_its_ping_and_no_more(cursor) -> None:
    cursor.advance(at(8))
    cursor.take_ping()
    cursor.advance(at(12))
    assert cursor.on_pong(b"1000007")
    assert (cursor.delivered, cursor.pinged) == (at(8), None)
    assert cursor.ping_due
    assert payloads(cursor.take_ping()) == [b"1000011"]


@pytest.mark.parametrize(
    "payload",
    [b"1000008", b"7", b"01000007", b" 1000007", b"1000007\n", b"rubbish", b"\xff" * 125, b"-1"],
)
def test_a_pong_for_what_was_not_asked_tells_nothing(cursor, payload) -> None:
    cursor.advance(at(8))
    cursor.take_ping()
    assert not cursor.on_pong(payload)
    assert (cursor.delivered, cursor.pinged) == (at(3), at(8))


@pytest.mark.parametrize("payload", [b"", b"1000002", b"1000007"])
def test_a_pong_that_nobody_asked_for_tells_nothing(cursor, payload) -> None:
    cursor.advance(at(8))
    assert not cursor.on_pong(payload)
    assert (cursor.delivered, cursor.pinged) == (at(3), None)


def test_a_late_pong_of_an_earlier_ping_tells_nothing(cursor) -> None:
    cursor.advance(at(8))
    cursor.take_ping()
    assert cursor.on_pong(b"")
    cursor.advance(at(12))
    cursor.take_ping()
    assert not cursor.on_pong(b"1000007")
    assert (cursor.delivered, cursor.pinged) == (at(3), at(12))
    assert cursor.on_pong(b"1000011")
    assert cursor.delivered == at(12)


def test_the_same_pong_twice_is_one(cursor) -> None:
    cursor.advance(at(8))
    cursor.take_ping()
    assert cursor.on_pong(b"1000007")
    cursor.advance(at(9))
    cursor.take_ping()
    assert not cursor.on_pong(b"1000007")
    assert cursor.delivered == at(8)


def test_a_keepalives_pong_may_stand_for_ours_which_is_asked_anew(cursor) -> None:
    """RFC 6455, section 5.5.3: a peer with two pings to answer may answer only the later one."""
    cursor.advance(at(8))
    first = cursor.take_ping()
    assert cursor.on_pong(b"")
    assert cursor.delivered == at(3), "it is unknown which of the two it answers"
    assert cursor.ping_due
    assert cursor.take_ping() == first
    assert cursor.on_pong(b"1000007")
    assert cursor.delivered == at(8)


def test_whose_connection_is_written_to_is_nobodys_news_while_pings_tell(cursor) -> None:
    cursor.advance(at(8))
    cursor.written()
    assert cursor.delivered == at(3)


def test_turned_off_what_was_written_counts_as_arrived_and_nothing_is_asked() -> None:
    cursor = make(None)
    cursor.advance(at(8))
    assert cursor.take_ping() == b""
    cursor.written()
    assert cursor.delivered == at(8)
    assert not cursor.on_pong(b"1000007")
    assert not cursor.on_pong(b"")
    assert cursor.pinged is None


def test_numbers_are_held_exactly_by_a_float() -> None:
    """As JavaScript parses numbers."""
    cursor = make(4_102_444_800 * 1_000_000)  # the year 2100
    cursor.advance(at(10**9))
    (payload,) = payloads(cursor.take_ping())
    assert int(float(payload)) == int(payload) == int(b"4102444800000000") + 10**9 - 1


def after(nbytes: int) -> Place:
    """Return the position after one frame of some bytes."""
    return Place(4, 4, at(3).nbytes + nbytes)


@pytest.mark.parametrize(("nbytes", "full"), [(1, False), (4 * MIB, False), (4 * MIB + 1, True)])
def test_the_window_is_full_when_more_than_4_mib_are_not_acknowledged(cursor, nbytes, full) -> None:
    cursor.advance(after(nbytes))
    assert not cursor.window_full, "no ping was sent that could be answered"
    cursor.take_ping()
    assert cursor.window_full == full


def test_the_window_counts_bytes_since_the_last_acknowledgement_and_not_since_the_start() -> None:
    """A client that acknowledges everything is never held back."""
    cursor, nbytes = make(), 0
    for seq in range(4, 40):
        nbytes += MIB
        cursor.advance(Place(seq, seq, nbytes))
        (payload,) = payloads(cursor.take_ping())
        assert not cursor.window_full
        assert cursor.on_pong(payload)
        assert not cursor.window_full


def test_an_unresponsive_websocket_has_no_window_until_it_answers(cursor) -> None:
    cursor.advance(after(5 * MIB))
    (payload,) = payloads(cursor.take_ping())
    cursor.set_unresponsive()
    assert not cursor.window_full
    assert cursor.on_pong(payload)
    cursor.advance(Place(5, 5, 11 * MIB))
    cursor.take_ping()
    assert cursor.window_full


def test_a_write_of_frames_for_others_counts_as_delivered_only_behind_delivered_frames(
    cursor,
) -> None:
    cursor.skip(at(5))
    assert (cursor.place, cursor.delivered) == (at(5), at(5))
    cursor.advance(at(6))
    cursor.skip(at(7))
    assert (cursor.place, cursor.delivered) == (at(7), at(5))


def test_a_blocked_websocket_is_delivered_to_when_its_write_has_completed() -> None:
    cursor = make(None)
    cursor.link.stalled = True
    cursor.advance(at(8))
    assert not cursor.write(b"frames")
    assert (cursor.blocked, cursor.delivered) == (True, at(3))
    cursor.written()
    assert (cursor.blocked, cursor.delivered) == (False, at(8))
