"""Which connections may stay: no socket, no clock."""

from kbridge.server.http.connection_limiter import Guard, GuardLimits

LIMITS = GuardLimits(strangers=3, request_timeout=10.0, keep_alive_timeout=100.0)


def nobody(_key: str) -> bool:
    return False


def guard(*names: str) -> Guard[str]:
    made: Guard[str] = Guard(LIMITS)
    for at, name in enumerate(names):
        assert made.came(name, float(at)) == []
    return made


def test_the_oldest_stranger_goes_where_one_more_comes() -> None:
    made = guard("a", "b", "c")
    assert made.came("d", 3.0) == ["a"]
    made.gone("a")
    assert made.came("e", 4.0) == ["b"]


def test_who_was_let_in_neither_counts_nor_goes() -> None:
    made = guard("a", "b", "c")
    made.proved("a", 3.0)
    assert made.came("d", 4.0) == []
    assert made.came("e", 5.0) == ["b"]
    assert made.statistics() == {"strangers": 4, "known": 1}
    assert made.surplus(99) == ["b", "c", "d", "e"]


def test_a_stranger_has_one_time_for_all_of_its_request() -> None:
    made = guard("a", "b")
    assert made.overdue(10.0, nobody) == []
    assert made.overdue(10.5, nobody) == ["a"]
    assert made.overdue(11.5, nobody) == ["a", "b"]


def test_what_the_server_works_on_is_not_late() -> None:
    made = guard("a")
    made.works("a")
    assert made.overdue(1000.0, nobody) == []


def test_an_answer_that_is_not_read_is_the_clients_time() -> None:
    made = guard("a")
    made.works("a")
    assert made.overdue(50.0, lambda key: key == "a") == []
    assert made.overdue(60.0, nobody) == []
    assert made.overdue(60.5, nobody) == ["a"]


def test_a_stranger_has_one_request() -> None:
    made = guard("a")
    assert made.awaits("a", 0.0)
    made.works("a")
    assert not made.awaits("a", 1.0)


def test_who_was_let_in_may_ask_again_and_takes_longer() -> None:
    made = guard("a")
    made.proved("a", 1.0)
    made.works("a")
    assert made.awaits("a", 500.0)
    assert made.overdue(600.0, nobody) == []
    assert made.overdue(600.5, nobody) == ["a"]


def test_the_body_of_who_was_let_in_has_its_own_time() -> None:
    made = guard("a")
    made.proved("a", 9.0)
    assert made.overdue(50.0, nobody) == []
    assert made.overdue(109.5, nobody) == ["a"]


def test_those_who_are_gone_are_forgotten() -> None:
    made = guard("a", "b")
    made.proved("b", 1.0)
    for name in ("a", "b", "b", "never here"):
        made.gone(name)
    made.proved("a", 2.0)  # its headers were on their way when it was closed
    made.works("a")
    assert not made.awaits("a", 3.0)
    assert made.statistics() == {"strangers": 0, "known": 0}
    assert made.overdue(1e9, nobody) == []
