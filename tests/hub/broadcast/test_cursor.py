"""The position of a websocket: acknowledgements by pongs, and the window without them."""

import pytest

from kbridge.flow.journal import Place
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor, CursorOptions
from kbridge.link.memory import MemoryClient
from kbridge.wire.dialects import V1

MIB = 1 << 20
PING = b"7"


def at(seq: int) -> Place:
    return Place(seq, seq, seq * 10)


def make(*, acknowledge: bool = True) -> Cursor:
    options = CursorOptions(acknowledge)
    return ClientSessions(60.0).attach(MemoryClient(), V1, "s", at(3), options)


@pytest.fixture
def cursor() -> Cursor:
    return make()


def is_full(cursor: Cursor) -> bool:
    return cursor.place.nbytes > cursor.window_end


def test_a_write_moves_the_place_and_a_ping_asks_about_all_before_it(cursor) -> None:
    cursor.write(b"frames", at(6))
    assert (cursor.place, cursor.delivered, cursor.pinged) == (at(6), at(3), None)
    cursor.write(b"more frames", at(8), PING)
    assert (cursor.place, cursor.delivered, cursor.pinged) == (at(8), at(3), at(8))
    assert cursor.link.written == b"framesmore frames"


def test_a_pong_acknowledges_what_was_before_its_ping_and_no_more(cursor) -> None:
    cursor.write(b"", at(8), PING)
    cursor.write(b"", at(12))
    assert cursor.on_pong(PING)
    assert (cursor.place, cursor.delivered, cursor.pinged) == (at(12), at(8), None)


@pytest.mark.parametrize("payload", [b"8", b"07", b" 7", b"7\n", b"rubbish", b"\xff" * 125, b"-1"])
def test_a_pong_for_what_was_not_asked_tells_nothing(cursor, payload) -> None:
    cursor.write(b"", at(8), PING)
    assert not cursor.on_pong(payload)
    assert (cursor.delivered, cursor.pinged) == (at(3), at(8))


@pytest.mark.parametrize("payload", [b"", b"2", PING])
def test_a_pong_that_nobody_asked_for_tells_nothing(cursor, payload) -> None:
    cursor.write(b"", at(8))
    assert not cursor.on_pong(payload)
    assert (cursor.delivered, cursor.pinged) == (at(3), None)


def test_a_late_pong_of_an_earlier_ping_tells_nothing(cursor) -> None:
    cursor.write(b"", at(8), b"7")
    assert cursor.on_pong(b"")
    cursor.write(b"", at(12), b"11")
    assert not cursor.on_pong(b"7")
    assert (cursor.delivered, cursor.pinged) == (at(3), at(12))
    assert cursor.on_pong(b"11")
    assert cursor.delivered == at(12)


def test_the_same_pong_twice_is_one(cursor) -> None:
    cursor.write(b"", at(8), b"7")
    assert cursor.on_pong(b"7")
    cursor.write(b"", at(9), b"8")
    assert not cursor.on_pong(b"7")
    assert cursor.delivered == at(8)


def test_a_keepalives_pong_may_stand_for_ours_which_is_asked_anew(cursor) -> None:
    """RFC 6455, section 5.5.3: a peer with two pings to answer may answer only the later one."""
    cursor.write(b"", at(8), PING)
    assert cursor.on_pong(b"")
    assert cursor.delivered == at(3), "the pong may answer either of the two pings"
    assert cursor.pinged is None
    cursor.write(b"", at(8), PING)
    assert cursor.on_pong(PING)
    assert cursor.delivered == at(8)


def test_whose_connection_is_written_to_is_nobodys_news_while_pings_tell(cursor) -> None:
    cursor.write(b"", at(8))
    cursor.written()
    assert cursor.delivered == at(3)


def test_turned_off_what_was_written_counts_as_arrived() -> None:
    cursor = make(acknowledge=False)
    cursor.write(b"", at(8))
    assert cursor.delivered == at(8)
    assert not cursor.on_pong(PING)
    assert not cursor.on_pong(b"")
    assert cursor.pinged is None


def after(nbytes: int) -> Place:
    """Return the position after one frame of some bytes."""
    return Place(4, 4, at(3).nbytes + nbytes)


@pytest.mark.parametrize(("nbytes", "full"), [(1, False), (4 * MIB, False), (4 * MIB + 1, True)])
def test_the_window_is_full_when_more_than_4_mib_are_not_acknowledged(cursor, nbytes, full) -> None:
    cursor.write(b"", after(nbytes))
    assert not is_full(cursor), "no ping was sent that could be answered"
    cursor.write(b"", cursor.place, PING)
    assert is_full(cursor) == full


def test_frames_that_were_skipped_are_not_in_the_window(cursor) -> None:
    cursor.write(b"", after(MIB), PING)
    cursor.skip(after(100 * MIB))
    assert not is_full(cursor)
    cursor.write(b"", after(103 * MIB))
    assert not is_full(cursor)
    cursor.write(b"", after(103 * MIB + 1))
    assert is_full(cursor)
    assert cursor.on_pong(PING)
    assert not is_full(cursor)


def test_the_window_counts_bytes_since_the_last_acknowledgement_and_not_since_the_start() -> None:
    """A client that acknowledges everything never has to wait."""
    cursor, nbytes = make(), 0
    for seq in range(4, 40):
        nbytes += MIB
        cursor.write(b"", Place(seq, seq, nbytes), PING)
        assert not is_full(cursor)
        assert cursor.on_pong(PING)
        assert not is_full(cursor)


def test_an_unresponsive_websocket_has_no_window_until_it_answers(cursor) -> None:
    cursor.write(b"", after(5 * MIB), PING)
    cursor.set_unresponsive()
    assert not is_full(cursor)
    assert cursor.on_pong(PING)
    cursor.write(b"", Place(5, 5, 11 * MIB), PING)
    assert is_full(cursor)


def test_a_write_of_frames_for_others_counts_as_delivered_only_behind_delivered_frames(
    cursor,
) -> None:
    cursor.skip(at(5))
    assert (cursor.place, cursor.delivered) == (at(5), at(5))
    cursor.write(b"", at(6))
    cursor.skip(at(7))
    assert (cursor.place, cursor.delivered) == (at(7), at(5))


def test_a_blocked_websocket_is_delivered_to_when_its_write_has_completed() -> None:
    cursor = make(acknowledge=False)
    cursor.link.stalled = True
    cursor.write(b"frames", at(8))
    assert (cursor.blocked, cursor.delivered) == (True, at(3))
    cursor.written()
    assert (cursor.blocked, cursor.delivered) == (False, at(8))
