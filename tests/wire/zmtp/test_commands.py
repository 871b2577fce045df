"""Commands, compared with those of libzmq, and malformed ones."""

import pytest

from kbridge.errors import ZmtpError
from kbridge.wire.zmtp.commands import (
    SocketType,
    check_ready,
    error_reason,
    parse_command,
    parse_properties,
    pong,
    printable,
    ready,
    subscribe,
)
from kbridge.wire.zmtp.greeting import GREETING, GREETING_SIZE
from tests.wire.zmtp.libzmq import accepted, connected, receive, zmq_socket

PUB = ready(SocketType.SUB).replace(b"\x03SUB", b"\x03PUB")
ROUTER = ready(SocketType.DEALER).replace(b"\x06DEALER", b"\x06ROUTER")
OLD_GREETING = GREETING.replace(b"\3\1", b"\3\0")


def properties(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"".join(
        bytes((len(name),)) + name + len(value).to_bytes(4, "big") + value for name, value in pairs
    )


@pytest.mark.parametrize("identity", [b"me", b"\xfe" * 200, b"i" * 255])
def test_our_ready_is_the_one_of_a_dealer_of_libzmq(identity: bytes) -> None:
    ours = ready(SocketType.DEALER, identity)
    with zmq_socket("DEALER") as dealer:
        dealer.identity = identity
        with accepted(dealer) as plain:
            plain.sendall(GREETING + ROUTER)
            receive(plain, GREETING_SIZE)
            assert receive(plain, len(ours)) == ours


@pytest.mark.parametrize(("greeting", "minor"), [(OLD_GREETING, 0), (GREETING, 1)])
def test_our_ready_and_subscription_are_those_of_a_sub_of_libzmq(
    greeting: bytes, minor: int
) -> None:
    ours = ready(SocketType.SUB) + subscribe(minor)
    with zmq_socket("SUB") as sub:
        sub.subscribe(b"")
        with accepted(sub) as plain:
            plain.sendall(greeting + PUB)
            receive(plain, GREETING_SIZE)
            assert receive(plain, len(ours)) == ours


@pytest.mark.parametrize("context", [b"", b"c", b"0123456789abcdef", b"0123456789abcdef+"])
def test_our_pong_is_the_one_of_libzmq(context: bytes) -> None:
    ours = pong(b"\0\x0a" + context)
    with zmq_socket("ROUTER") as router, connected(router) as plain:
        plain.sendall(GREETING + ready(SocketType.DEALER))
        receive(plain, GREETING_SIZE + len(ROUTER))
        body = b"\x04PING\0\x0a" + context
        plain.sendall(bytes((4, len(body))) + body)
        assert receive(plain, len(ours)) == ours


@pytest.mark.parametrize(
    ("body", "name", "data"),
    [
        (b"\x04PING\0\0", b"PING", b"\0\0"),
        (b"\x05READY", b"READY", b""),
        (b"\0rest", b"", b"rest"),
    ],
)
def test_a_command_is_split(body: bytes, name: bytes, data: bytes) -> None:
    assert parse_command(body) == (name, data)


@pytest.mark.parametrize("body", [b"", b"\x01", b"\x05READ", b"\xff" + b"x" * 254])
def test_a_command_without_a_whole_name_is_refused(body: bytes) -> None:
    with pytest.raises(ZmtpError, match="without a whole name"):
        parse_command(body)


def test_the_names_of_properties_do_not_depend_on_case() -> None:
    data = properties((b"SOCKET-type", b"PUB"), (b"", b""), (b"X-Long", b"v" * 300))
    assert parse_properties(data) == {b"socket-type": b"PUB", b"": b"", b"x-long": b"v" * 300}
    assert parse_properties(b"") == {}


def test_properties_that_are_cut_are_refused_at_every_byte() -> None:
    first, second = properties((b"Socket-Type", b"PUB")), properties((b"Identity", b"me"))
    whole = first + second
    for end in range(1, len(whole)):
        if end != len(first):
            with pytest.raises(ZmtpError, match="ends within a property"):
                parse_properties(whole[:end])


@pytest.mark.parametrize("size", [3, 1 << 31, (1 << 32) - 1])
def test_a_property_that_claims_more_than_there_is_is_refused(size: int) -> None:
    with pytest.raises(ZmtpError, match="ends within a property"):
        parse_properties(b"\x01X" + size.to_bytes(4, "big") + b"12")


FITTING = {
    SocketType.SUB: {b"PUB", b"XPUB"},
    SocketType.DEALER: {b"ROUTER", b"DEALER", b"REP"},
}
TYPES = [b"REQ", b"REP", b"DEALER", b"ROUTER", b"PUB", b"XPUB", b"SUB", b"XSUB", b"PUSH", b"PULL"]


@pytest.mark.parametrize("ours", SocketType)
@pytest.mark.parametrize("theirs", [*TYPES, b"PAIR", b"STREAM", b"pub", b"", b"\x1b[1m"])
def test_the_socket_of_the_peer_must_fit(ours: SocketType, theirs: bytes) -> None:
    data = properties((b"Identity", b""), (b"Socket-Type", theirs))
    if theirs in FITTING[ours]:
        check_ready(data, ours)
        return
    with pytest.raises(ZmtpError, match=f"to which a {ours.value} cannot connect") as caught:
        check_ready(data, ours)
    assert caught.value.reason.isprintable()
    assert printable(theirs) in caught.value.reason


@pytest.mark.parametrize("ours", SocketType)
def test_a_peer_that_does_not_name_its_socket_is_accepted(ours: SocketType) -> None:
    check_ready(properties((b"Identity", b"x")), ours)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", ""),
        (b"\0", ""),
        (b"\x04busy", "busy"),
        (b"\x04busy and more", "busy"),
        (b"\x09cut", "cut"),
        (b"\x07\x1b[1m\r\n\xff", "?[1m???"),
    ],
)
def test_the_reason_of_an_error_has_no_control_characters(data: bytes, reason: str) -> None:
    assert error_reason(data) == reason


def test_texts_of_a_peer_are_bounded() -> None:
    assert printable(b"x" * 256) == "x" * 255
