"""Where sessions resume, and which frames are kept for disconnected clients."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.journal import Place
from kbridge.hub.broadcast import client_sessions as module
from kbridge.hub.broadcast.client_sessions import ClientSessions
from kbridge.hub.broadcast.cursor import Cursor, CursorOptions
from kbridge.link.memory import MemoryClient
from kbridge.wire.dialects import V1

HOUR = 3600.0


def at(seq: int) -> Place:
    return Place(seq, seq, seq * 10)


@pytest.fixture
def clients() -> ClientSessions:
    return ClientSessions(HOUR)


def attach(clients: ClientSessions, session: str = "", seq: int = 0) -> Cursor:
    return clients.attach(MemoryClient(), V1, session, at(seq), CursorOptions(acknowledge=True))


def read(cursor: Cursor, seq: int) -> None:
    """Write all frames before `seq` to a websocket."""
    cursor.write(b"", at(seq))


def ack(cursor: Cursor, seq: int) -> None:
    """Let a websocket acknowledge all frames before `seq`."""
    place = cursor.place
    cursor.write(b"", at(seq), b"a ping")
    assert cursor.on_pong(b"a ping")
    if place.seq > seq:
        read(cursor, place.seq)


def test_whoever_comes_new_starts_where_it_is_told_under_a_number_of_its_own(clients) -> None:
    made = [attach(clients, session, 7) for session in ("a", "b", "", "")]
    assert all(a.place == a.delivered == at(7) for a in made)
    numbers = [a.session.number for a in made]
    assert len(set(numbers)) == 4
    assert min(numbers) > 0, "0 and negative numbers are reserved"
    assert len(clients.cursors) == 4
    assert clients.cursors == made


def test_a_session_that_comes_back_is_the_same_client_at_what_was_delivered(clients) -> None:
    first = attach(clients, "s", 1)
    ack(first, 5)
    read(first, 9)
    assert clients.detach(first, now=0.0)
    second = attach(clients, "s", 20)
    assert second.session is first.session
    assert second.place == second.delivered == at(5)
    assert (len(clients.cursors), clients.parked) == (1, 0)


def test_a_place_is_given_back_once(clients) -> None:
    clients.detach(attach(clients, "s", 1), now=0.0)
    back = attach(clients, "s", 20)
    assert back.place == at(1)
    ack(back, 20)
    assert attach(clients, "s", 20).place == at(20), "the second one starts at its own position"


def test_two_websockets_of_one_session_are_one_client(clients) -> None:
    first, second = attach(clients, "s", 1), attach(clients, "s", 2)
    assert first.session is second.session
    assert list(first.session.cursors.values()) == [first, second]
    clients.detach(first, now=0.0)
    assert clients.parked == 0, "it still reads"
    ack(second, 6)
    clients.detach(second, now=0.0)
    assert attach(clients, "s", 20).place == at(6), "the position of the last one counts"


def test_without_a_session_nothing_is_kept(clients) -> None:
    clients.detach(attach(clients, "", 1), now=0.0)
    assert clients.slowest(0.0, 20) == 20
    assert attach(clients, "", 20).place == at(20)
    assert clients.parked == 0


def test_detaching_twice_is_told_and_changes_nothing(clients) -> None:
    one, other = attach(clients, "s", 1), attach(clients, "t", 2)
    assert clients.detach(one, now=0.0)
    assert not clients.detach(one, now=50.0)
    assert clients.cursors == [other]
    assert one.session.parked_at == 0.0


def test_the_slowest_is_who_was_delivered_least_attached_or_parked(clients) -> None:
    assert clients.slowest(0.0, 20) == 20
    fast, slow, parked = (attach(clients, s) for s in "abc")
    ack(fast, 12)
    ack(slow, 8)
    read(slow, 12)
    ack(parked, 4)
    read(parked, 12)
    assert clients.slowest(0.0, 20) == 4
    clients.detach(parked, now=10.0)
    assert clients.slowest(10.0, 20) == 4
    clients.detach(slow, now=20.0)
    assert clients.slowest(10.0 + HOUR + 1, 20) == 8, "after this time it retains no frames"
    assert clients.slowest(20.0 + HOUR + 1, 20) == 12
    assert attach(clients, "c", 20).place == at(4), "the session still resumes as far as possible"


def test_without_a_time_to_resume_no_place_is_kept_but_the_client_is() -> None:
    clients = ClientSessions(0.0)
    first = attach(clients, "s", 1)
    ack(first, 5)
    clients.detach(first, now=10.0)
    assert clients.slowest(10.0, 20) == 20, "the session must not retain frames"
    again = attach(clients, "s", 20)
    assert again.place == again.delivered == at(20)
    assert again.session is first.session, "replies to its requests still belong to it"


def test_no_more_places_are_kept_than_there_is_room_for(clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    made = [attach(clients, f"s{i}", i) for i in range(5)]
    for i, attachment in enumerate(made):
        clients.detach(attachment, now=float(i))
    assert clients.parked == 3
    assert len(clients._by_session) == 3
    assert attach(clients, "s4", 20).place == at(4)
    again = attach(clients, "s0", 20)
    assert again.place == at(20)
    assert again.session is not made[0].session


def test_who_came_back_is_not_among_the_longest_parked(clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    first = attach(clients, "first", 1)
    clients.detach(first, now=0.0)
    back = attach(clients, "first", 9)
    for i in range(3):
        clients.detach(attach(clients, f"s{i}", i), now=1.0 + i)
    assert list(back.session.cursors.values()) == [back]
    ack(back, 5)
    clients.detach(back, now=9.0)
    assert attach(clients, "first", 20).place == at(5)


def test_the_place_of_the_newest_is_kept_while_older_ones_stay(clients) -> None:
    older, newest = attach(clients, "s"), attach(clients, "s")
    ack(newest, 10)
    clients.detach(newest, now=1.0)
    assert clients.slowest(1.0, 50) == 0, "the older one reads, too"
    assert attach(clients, "s", 50).place == at(10)
    assert clients.detach(older, now=2.0)


def test_an_older_one_that_goes_takes_nothing_along(clients) -> None:
    older, newest = attach(clients, "s"), attach(clients, "s")
    ack(newest, 10)
    clients.detach(newest, now=1.0)
    ack(older, 40)
    clients.detach(older, now=2.0)
    assert attach(clients, "s", 50).place == at(10)


def test_who_comes_back_before_the_old_one_is_known_to_be_dead_goes_on_where_that_got_stuck(
    clients,
) -> None:
    stuck: Any = attach(clients, "s")
    ack(stuck, 7)
    stuck.link.stalled = True
    stuck.write(b"frames", at(9))
    assert attach(clients, "s", 50).place == at(7)


@pytest.mark.parametrize("arrived", [7, 50])
def test_beside_another_one_starts_behind_what_has_arrived_there(clients, arrived) -> None:
    """A connection that broke silently looks like one whose acknowledgement is in transit."""
    reading: Any = attach(clients, "s")
    ack(reading, arrived)
    read(reading, 50)
    assert attach(clients, "s", 50).place == at(arrived)


def test_one_that_is_connected_is_not_forgotten_with_its_old_place(clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 1)
    older, newest = attach(clients, "s"), attach(clients, "s")
    clients.detach(newest, now=1.0)
    clients.detach(attach(clients, "another"), now=2.0)
    ack(older, 50)
    again = attach(clients, "s", 50)
    assert again.session is older.session
    assert again.place == at(50)


def test_who_goes_again_holds_from_then_on(clients) -> None:
    older, newest = attach(clients, "s"), attach(clients, "s")
    clients.detach(newest, now=0.0)
    clients.detach(attach(clients, "another", 40), now=1.0)
    ack(older, 10)
    clients.detach(older, now=2 * HOUR)
    assert clients.slowest(2 * HOUR + 1, 50) == 10


def test_a_handshake_that_died_does_not_take_a_living_websockets_place(clients) -> None:
    living = attach(clients, "s", 1)
    ack(living, 5)
    dead = attach(clients, "s", 20)
    assert dead.place == at(5)
    ack(living, 9)
    clients.detach(dead, now=0.0)
    ack(living, 12)
    clients.detach(living, now=1.0)
    assert attach(clients, "s", 20).place == at(12)


def test_a_handshake_that_died_beside_a_silent_one_does_not_lead_back_to_that(clients) -> None:
    silent = attach(clients, "s", 1)
    read(silent, 9)
    gone = attach(clients, "s", 9)
    ack(gone, 5)
    clients.detach(gone, now=0.0)
    dead = attach(clients, "s", 9)
    clients.detach(dead, now=1.0)
    assert attach(clients, "s", 20).place == at(5)


def test_one_that_goes_while_who_told_last_is_here_is_not_parked(clients) -> None:
    older, newest = attach(clients, "s", 1), attach(clients, "s", 1)
    ack(newest, 5)
    clients.detach(older, now=0.0)
    assert clients.parked == 0
    ack(newest, 8)
    assert clients.slowest(0.0, 20) == 8, "an old position must not count"


# -- what it costs --------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[None]:
    """Records each read of the position of a client."""
    seen: list[None] = []
    slot: Any = Cursor.delivered

    def delivered(cursor: Cursor) -> Place:
        seen.append(None)
        return slot.__get__(cursor)

    monkeypatch.setattr(Cursor, "delivered", property(delivered, slot.__set__))
    return seen


def pongs(clients: ClientSessions, made: list[Cursor], rounds: int = 5) -> int:
    """Let all websockets except the first acknowledge in turn; return the lowest number then."""
    lowest = 0
    for step in range(1, rounds + 1):
        for attachment in made[1:]:
            ack(attachment, step)
            lowest = clients.slowest(0.0, 100)
    return lowest


@pytest.mark.parametrize("stalled", [True, False])
def test_a_pong_costs_the_same_however_many_clients_there_are(clients, reads, stalled) -> None:
    def cost(number: int) -> float:
        clients = ClientSessions(HOUR)
        made = [attach(clients, f"s{i}") for i in range(number)]
        if not stalled:
            ack(made[0], 90)
        reads.clear()
        assert pongs(clients, made) == (0 if stalled else 5)
        return len(reads) / (5 * (number - 1))

    assert cost(2000) < 1.5 * cost(500), "reads a pong"


def test_sessions_that_came_once_and_went_cost_nothing(clients, reads) -> None:
    reader, idle = attach(clients, "reader", 5), attach(clients, "idle", 5)
    for i in range(900):
        clients.detach(attach(clients, f"once-{i}", 5), now=float(i))
    reads.clear()
    for seq in range(6, 106):
        ack(reader, seq)
        assert clients.slowest(1000.0, 200) == 5
    assert len(reads) <= 400
    ack(idle, 50)
    assert clients.slowest(2 * HOUR, 200) == 50, "they must not retain frames forever"


def test_clients_that_come_and_go_beside_a_stalled_one_leave_nothing(clients) -> None:
    attach(clients, "stalled")
    for i in range(2000):
        clients.detach(attach(clients, "", i), now=0.0)
        clients.detach(attach(clients, "again", i), now=float(i))
    assert clients.slowest(0.0, 5000) == 0
    assert len(clients._delivered._heap) < 200
    assert len(clients._held._heap) < 200


def test_a_long_session_id_is_one_all_the_same_and_is_not_kept(clients) -> None:
    long, other = "x" * 60_000, "x" * 60_001
    first = attach(clients, long, 3)
    clients.detach(first, now=0.0)
    assert attach(clients, other, 9).session is not first.session
    assert len(first.session.session_id) <= 128
    assert clients.known(long)
    assert attach(clients, long, 9).place == at(3)


def test_one_that_begins_further_back_holds_from_there(clients) -> None:
    attach(clients, "a", 9)
    back = attach(clients, "b", 9)
    assert clients.slowest(0.0, 20) == 9
    clients.start_at(back, at(2))
    assert clients.slowest(0.0, 20) == 2
    ack(back, 12)
    assert clients.slowest(0.0, 20) == 9


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 40)), max_size=120))
def test_the_slowest_is_as_a_walk_over_all_would_find_it(steps) -> None:
    """Attach a client that is not attached, detach it if the number is below 0, or acknowledge."""
    clients = ClientSessions(HOUR)
    here: dict[int, Cursor] = {}
    owed: dict[int, int] = {}
    for who, seq in steps:
        if who not in here:
            here[who] = attach(clients, f"s{who}", max(seq, 0))
            owed[who] = here[who].delivered.seq
        elif seq < 0:
            clients.detach(here.pop(who), now=0.0)
        elif seq > owed[who]:
            ack(here[who], seq)
            owed[who] = seq
        assert clients.slowest(1.0, 100) == min(owed.values())
