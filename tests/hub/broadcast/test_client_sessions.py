"""Who reads, from where, and what is kept for whom went away."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.flow.journal import Place
from kbridge.hub.broadcast import client_sessions as module
from kbridge.hub.broadcast.client_sessions import Attachment, Clients
from kbridge.link.memory import MemoryClient
from kbridge.wire.dialects import V1

HOUR = 3600.0


def at(seq: int) -> Place:
    return Place(seq, seq, seq * 10)


@pytest.fixture
def clients() -> Clients:
    return Clients(HOUR)


def attach(clients: Clients, session: str = "", seq: int = 0) -> Attachment:
    return clients.attach(MemoryClient(), V1, session, at(seq))


def test_whoever_comes_new_starts_where_it_is_told_under_a_number_of_its_own(clients) -> None:
    made = [attach(clients, session, 7) for session in ("a", "b", "", "")]
    assert all(a.place == a.delivered == at(7) for a in made)
    numbers = [a.client.number for a in made]
    assert len(set(numbers)) == 4
    assert min(numbers) > 0, "0 is everyone, and below are the bridge's own"
    assert len(clients) == 4
    assert clients.attachments == made


def test_a_session_that_comes_back_is_the_same_client_at_what_was_delivered(clients) -> None:
    first = attach(clients, "s", 1)
    first.place, first.delivered = at(9), at(5)
    assert clients.detach(first, now=0.0)
    second = attach(clients, "s", 20)
    assert second.client is first.client
    assert second.place == second.delivered == at(5)
    assert clients.statistics() == {"attached": 1, "blocked": 0, "parked": 0}


def test_a_place_is_given_back_once(clients) -> None:
    clients.detach(attach(clients, "s", 1), now=0.0)
    back = attach(clients, "s", 20)
    assert back.place == at(1)
    back.delivered = at(20)
    assert attach(clients, "s", 20).place == at(20), "the second of two starts where it comes in"


def test_two_websockets_of_one_session_are_one_client(clients) -> None:
    first, second = attach(clients, "s", 1), attach(clients, "s", 2)
    assert first.client is second.client
    assert list(first.client.attachments.values()) == [first, second]
    clients.detach(first, now=0.0)
    assert clients.statistics()["parked"] == 0, "it still reads"
    second.delivered = at(6)
    clients.detach(second, now=0.0)
    assert attach(clients, "s", 20).place == at(6), "the last one's place counts"


def test_without_a_session_nothing_is_kept(clients) -> None:
    clients.detach(attach(clients, "", 1), now=0.0)
    assert clients.slowest(0.0, 20) == 20
    assert attach(clients, "", 20).place == at(20)
    assert clients.statistics()["parked"] == 0


def test_detaching_twice_is_told_and_changes_nothing(clients) -> None:
    one, other = attach(clients, "s", 1), attach(clients, "t", 2)
    assert clients.detach(one, now=0.0)
    assert not clients.detach(one, now=50.0)
    assert clients.attachments == [other]
    assert one.client.parked_at == 0.0


def test_the_slowest_is_who_was_delivered_least_attached_or_parked(clients) -> None:
    assert clients.slowest(0.0, 20) == 20
    fast, slow, parked = (attach(clients, s) for s in "abc")
    fast.place = fast.delivered = at(12)
    slow.place, slow.delivered = at(12), at(8)
    parked.place, parked.delivered = at(12), at(4)
    assert clients.slowest(0.0, 20) == 4
    clients.detach(parked, now=10.0)
    assert clients.slowest(10.0, 20) == 4
    clients.detach(slow, now=20.0)
    assert clients.slowest(10.0 + HOUR + 1, 20) == 8, "parked too long to hold anything"
    assert clients.slowest(20.0 + HOUR + 1, 20) == 12
    assert attach(clients, "c", 20).place == at(4), "it resumes all the same, as far as it goes"


def test_without_a_time_to_resume_no_place_is_kept_but_the_client_is() -> None:
    clients = Clients(0.0)
    first = attach(clients, "s", 1)
    first.place = first.delivered = at(5)
    clients.detach(first, now=10.0)
    assert clients.slowest(10.0, 20) == 20, "and it holds nothing"
    again = attach(clients, "s", 20)
    assert again.place == again.delivered == at(20)
    assert again.client is first.client, "answers to what it asked are still its own"


def test_no_more_places_are_kept_than_there_is_room_for(clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 3)
    made = [attach(clients, f"s{i}", i) for i in range(5)]
    for i, attachment in enumerate(made):
        clients.detach(attachment, now=float(i))
    assert clients.statistics()["parked"] == 3
    assert len(clients._by_session) == 3
    assert attach(clients, "s4", 20).place == at(4)
    again = attach(clients, "s0", 20)
    assert again.place == at(20)
    assert again.client is not made[0].client


def test_who_came_back_is_not_among_the_longest_parked(clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 2)
    first = attach(clients, "first", 1)
    clients.detach(first, now=0.0)
    back = attach(clients, "first", 9)
    for i in range(3):
        clients.detach(attach(clients, f"s{i}", i), now=1.0 + i)
    assert list(back.client.attachments.values()) == [back]
    back.delivered = at(5)
    clients.detach(back, now=9.0)
    assert attach(clients, "first", 20).place == at(5)


def test_blocked_websockets_are_counted(clients) -> None:
    made: list[Any] = [attach(clients) for _ in range(3)]
    made[1].blocked = True
    assert clients.statistics() == {"attached": 3, "blocked": 1, "parked": 0}


def test_the_place_of_the_newest_is_kept_while_older_ones_stay(clients) -> None:
    older, newest = attach(clients, "s"), attach(clients, "s")
    newest.delivered = at(10)
    clients.detach(newest, now=1.0)
    assert clients.slowest(1.0, 50) == 0, "the older one reads, too"
    assert attach(clients, "s", 50).place == at(10)
    assert clients.detach(older, now=2.0)


def test_an_older_one_that_goes_takes_nothing_along(clients) -> None:
    older, newest = attach(clients, "s"), attach(clients, "s")
    newest.delivered = at(10)
    clients.detach(newest, now=1.0)
    older.delivered = at(40)
    clients.detach(older, now=2.0)
    assert attach(clients, "s", 50).place == at(10)


def test_who_comes_back_before_the_old_one_is_known_to_be_dead_goes_on_where_that_got_stuck(
    clients,
) -> None:
    stuck: Any = attach(clients, "s")
    stuck.delivered, stuck.blocked = at(7), True
    assert attach(clients, "s", 50).place == at(7)


@pytest.mark.parametrize("arrived", [7, 50])
def test_beside_another_one_starts_behind_what_has_arrived_there(clients, arrived) -> None:
    """A connection that broke in silence looks like one whose acknowledgement is on its way."""
    reading: Any = attach(clients, "s")
    reading.place, reading.delivered = at(50), at(arrived)
    assert attach(clients, "s", 50).place == at(arrived)


def test_one_that_is_connected_is_not_forgotten_with_its_old_place(clients, monkeypatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 1)
    older, newest = attach(clients, "s"), attach(clients, "s")
    clients.detach(newest, now=1.0)
    clients.detach(attach(clients, "another"), now=2.0)
    older.place = older.delivered = at(50)
    again = attach(clients, "s", 50)
    assert again.client is older.client
    assert again.place == at(50)


def test_who_goes_again_holds_from_then_on(clients) -> None:
    older, newest = attach(clients, "s"), attach(clients, "s")
    clients.detach(newest, now=0.0)
    clients.detach(attach(clients, "another", 40), now=1.0)
    older.delivered = at(10)
    clients.detach(older, now=2 * HOUR)
    assert clients.slowest(2 * HOUR + 1, 50) == 10


def test_a_handshake_that_died_does_not_take_a_living_websockets_place(clients) -> None:
    living = attach(clients, "s", 1)
    living.place = living.delivered = at(5)
    dead = attach(clients, "s", 20)
    assert dead.place == at(5)
    living.delivered = at(9)
    clients.detach(dead, now=0.0)
    living.place = living.delivered = at(12)
    clients.detach(living, now=1.0)
    assert attach(clients, "s", 20).place == at(12)


def test_a_handshake_that_died_beside_a_silent_one_does_not_lead_back_to_that(clients) -> None:
    silent = attach(clients, "s", 1)
    silent.place = at(9)
    gone = attach(clients, "s", 9)
    gone.place = gone.delivered = at(5)
    clients.detach(gone, now=0.0)
    dead = attach(clients, "s", 9)
    clients.detach(dead, now=1.0)
    assert attach(clients, "s", 20).place == at(5)


def test_one_that_goes_while_who_told_last_is_here_is_not_parked(clients) -> None:
    older, newest = attach(clients, "s", 1), attach(clients, "s", 1)
    newest.place = newest.delivered = at(5)
    clients.detach(older, now=0.0)
    assert clients.statistics()["parked"] == 0
    newest.delivered = at(8)
    assert clients.slowest(0.0, 20) == 8, "nobody is held to a place that is long passed"


# -- what it costs --------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch) -> list[None]:
    """One item for each time that the place of some client is looked at."""
    seen: list[None] = []
    get = Attachment.delivered.fget
    assert get is not None

    def delivered(attachment: Attachment) -> Place:
        seen.append(None)
        return get(attachment)

    monkeypatch.setattr(Attachment, "delivered", property(delivered, Attachment.delivered.fset))
    return seen


def pongs(clients: Clients, made: list[Attachment], rounds: int = 5) -> int:
    """Let all but the first websocket acknowledge in turn; return the lowest number then."""
    lowest = 0
    for step in range(1, rounds + 1):
        for attachment in made[1:]:
            attachment.delivered = at(step)
            lowest = clients.slowest(0.0, 100)
    return lowest


@pytest.mark.parametrize("stalled", [True, False])
def test_a_pong_costs_the_same_however_many_clients_there_are(clients, reads, stalled) -> None:
    def cost(number: int) -> float:
        clients = Clients(HOUR)
        made = [attach(clients, f"s{i}") for i in range(number)]
        if not stalled:
            made[0].delivered = at(90)
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
        reader.delivered = at(seq)
        assert clients.slowest(1000.0, 200) == 5
    assert len(reads) <= 300
    idle.delivered = at(50)
    assert clients.slowest(2 * HOUR, 200) == 50, "and they hold nothing for ever"


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
    assert attach(clients, other, 9).client is not first.client
    assert len(first.client.session_id) <= 128
    assert clients.known(long) is first.client
    assert attach(clients, long, 9).place == at(3)


def test_one_that_begins_further_back_holds_from_there(clients) -> None:
    attach(clients, "a", 9)
    back = attach(clients, "b", 9)
    assert clients.slowest(0.0, 20) == 9
    clients.begin(back, at(2))
    assert clients.slowest(0.0, 20) == 2
    back.delivered = at(12)
    assert clients.slowest(0.0, 20) == 9


def test_the_furthest_is_the_fastest_of_those_that_are_here(clients) -> None:
    assert clients.furthest() is None
    fast, slow = attach(clients, "a", 3), attach(clients, "b", 3)
    fast.place = at(8)
    assert clients.furthest() == 8
    clients.detach(fast, now=0.0)
    assert clients.furthest() == 3
    assert slow.place == at(3)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 40)), max_size=120))
def test_the_slowest_is_as_a_walk_over_all_would_find_it(steps) -> None:
    """A client comes where it is not here, goes where the number is below 0, or acknowledges."""
    clients = Clients(HOUR)
    here: dict[int, Attachment] = {}
    owed: dict[int, int] = {}
    for who, seq in steps:
        if who not in here:
            here[who] = attach(clients, f"s{who}", max(seq, 0))
            owed[who] = here[who].delivered.seq
        elif seq < 0:
            clients.detach(here.pop(who), now=0.0)
        elif seq > owed[who]:
            here[who].delivered = at(seq)
            owed[who] = seq
        assert clients.slowest(1.0, 100) == min(owed.values())
