"""Replies are routed to their clients; the routes are bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbridge.flow.routing import Routing


def test_each_reply_of_a_request_finds_its_client() -> None:
    routing = Routing()
    routing.note("a", 1)
    routing.note("b", 2)
    for _ in range(3):
        assert routing.owner("a") == 1
        assert routing.owner("b") == 2


def test_unknown_ids_have_no_client() -> None:
    routing = Routing()
    assert routing.owner("a") is None
    assert routing.owner("") is None


def test_the_oldest_routes_are_dropped_first() -> None:
    routing = Routing(limit=3)
    for n in range(5):
        routing.note(str(n), n)
    assert [routing.owner(str(n)) for n in range(5)] == [None, None, 2, 3, 4]


def test_a_reused_id_belongs_to_its_last_client() -> None:
    routing = Routing(limit=2)
    routing.note("a", 1)
    routing.note("b", 1)
    routing.note("a", 2)
    assert routing.owner("a") == 2
    routing.note("c", 1)
    assert routing.owner("b") is None
    assert routing.owner("a") == 2


def test_long_ids_are_bounded_too() -> None:
    routing = Routing(limit_bytes=1000)
    ids = [f"{n:0100}" for n in range(50)]
    for msg_id in ids:
        routing.note(msg_id, 1)
    assert [msg_id for msg_id in ids if routing.owner(msg_id) == 1] == ids[-10:]
    routing.note("x" * 5000, 2)
    assert routing.owner("x" * 5000) == 2
    assert not any(routing.owner(msg_id) for msg_id in ids)
    for msg_id in ids:
        routing.note(msg_id, 1)
    assert [msg_id for msg_id in ids if routing.owner(msg_id) == 1] == ids[-10:]


def test_clear_removes_all_routes() -> None:
    routing = Routing()
    routing.note("a", 1)
    routing.clear()
    assert routing.owner("a") is None


def test_a_limit_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        Routing(limit=0)


STEP = st.one_of(
    st.tuples(st.just("note"), st.sampled_from("abcdefgh"), st.integers(1, 3)),
    st.tuples(st.just("clear"), st.just(""), st.just(0)),
)


@settings(deadline=None)
@given(limit=st.integers(1, 5), steps=st.lists(STEP, max_size=40))
def test_routes_agree_with_a_list(limit: int, steps: list[tuple[str, str, int]]) -> None:
    routing = Routing(limit)
    model: list[tuple[str, int]] = []
    for verb, msg_id, client in steps:
        if verb == "note":
            routing.note(msg_id, client)
            model = [*(r for r in model if r[0] != msg_id), (msg_id, client)][-limit:]
        else:
            routing.clear()
            model = []
        known = dict(model)
        assert {i: routing.owner(i) for i in "abcdefgh"} == {i: known.get(i) for i in "abcdefgh"}
