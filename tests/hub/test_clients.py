"""Who reads, from where, and what is kept for whom went away."""

from typing import Any

import pytest

from kbridge.flow.journal import Place
from kbridge.hub import clients as module
from kbridge.hub.clients import Attachment, Clients
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
    assert first.client.attachments == [first, second]
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
    assert back.client.attachments == [back]
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
