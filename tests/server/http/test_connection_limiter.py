"""Which connections may stay: no socket, no clock."""

from kbridge.server.http.connection_limiter import ConnectionLimiter, ConnectionLimits

LIMITS = ConnectionLimits(unauthenticated=3, request_timeout=10.0, keep_alive_timeout=100.0)


def nobody(_key: str) -> bool:
    return False


def limiter(*names: str) -> ConnectionLimiter[str]:
    made: ConnectionLimiter[str] = ConnectionLimiter(LIMITS)
    for at, name in enumerate(names):
        assert made.opened(name, float(at)) == []
    return made


def test_the_oldest_unauthenticated_connection_makes_room() -> None:
    made = limiter("a", "b", "c")
    assert made.opened("d", 3.0) == ["a"]
    made.closed("a")
    assert made.opened("e", 4.0) == ["b"]


def test_authenticated_connections_are_not_counted_and_not_closed() -> None:
    made = limiter("a", "b", "c")
    made.authenticated("a", 3.0)
    assert made.opened("d", 4.0) == []
    assert made.opened("e", 5.0) == ["b"]
    assert (made.unauthenticated_connections, made.authenticated_connections) == (4, 1)
    assert made.oldest(99) == ["b", "c", "d", "e"]


def test_an_unauthenticated_client_has_one_timeout_for_its_request() -> None:
    made = limiter("a", "b")
    assert made.expired(10.0, nobody) == []
    assert made.expired(10.5, nobody) == ["a"]
    assert made.expired(11.5, nobody) == ["a", "b"]


def test_a_connection_does_not_expire_while_the_server_works() -> None:
    made = limiter("a")
    made.request_complete("a")
    assert made.expired(1000.0, nobody) == []


def test_the_time_of_reading_a_reply_counts() -> None:
    made = limiter("a")
    made.request_complete("a")
    assert made.expired(50.0, lambda key: key == "a") == []
    assert made.expired(60.0, nobody) == []
    assert made.expired(60.5, nobody) == ["a"]


def test_an_unauthenticated_connection_has_one_request() -> None:
    made = limiter("a")
    assert made.next_request("a", 0.0)
    made.request_complete("a")
    assert not made.next_request("a", 1.0)


def test_an_authenticated_connection_may_send_further_requests() -> None:
    made = limiter("a")
    made.authenticated("a", 1.0)
    made.request_complete("a")
    assert made.next_request("a", 500.0)
    assert made.expired(600.0, nobody) == []
    assert made.expired(600.5, nobody) == ["a"]


def test_the_body_of_an_authenticated_request_has_a_separate_timeout() -> None:
    made = limiter("a")
    made.authenticated("a", 9.0)
    assert made.expired(50.0, nobody) == []
    assert made.expired(109.5, nobody) == ["a"]


def test_closed_connections_are_removed() -> None:
    made = limiter("a", "b")
    made.authenticated("b", 1.0)
    for name in ("a", "b", "b", "never here"):
        made.closed(name)
    made.authenticated("a", 2.0)  # its headers were on their way when it was closed
    made.request_complete("a")
    assert not made.next_request("a", 3.0)
    assert (made.unauthenticated_connections, made.authenticated_connections) == (0, 0)
    assert made.expired(1e9, nobody) == []
