"""Greetings of this version, of other versions, and of other programs."""

import pytest

from kbridge.errors import NotZmtp, OldZmtp, ZmtpError
from kbridge.wire.zmtp.greeting import GREETING, GREETING_SIZE, parse_greeting
from tests.wire.zmtp.libzmq import connected, receive, zmq_socket

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"


def greeting(version: bytes = b"\3\1", mechanism: bytes = b"NULL", rest: bytes = b"") -> bytes:
    return SIGNATURE + version + mechanism.ljust(20, b"\0") + rest.ljust(32, b"\0")


GOOD = {
    "3.0": (greeting(b"\3\0"), 0),
    "3.1": (greeting(b"\3\1"), 1),
    "a later 3": (greeting(b"\3\7"), 1),
    "a later version": (greeting(b"\4\0"), 1),
    "a server": (greeting(rest=b"\1"), 1),
    "another filler": (greeting(rest=b"\0" + b"x" * 31), 1),
    "another padding": (b"\xff" + b"\0\0\0\0\0\0\0\1" + b"\x7f" + greeting()[10:], 1),
}
# Bytes, the error, the number of bytes after which it is raised, and a part of its text.
BAD = {
    "1.0": (b"\1\0" + b"\1\1x", OldZmtp, 2, "ZMTP 1.0"),
    "1.0 with an identity": (b"\3\0me", OldZmtp, 2, "ZMTP 1.0"),
    "1.0 with a long identity": (b"\xff" + (256).to_bytes(8, "big") + b"\0x", OldZmtp, 10, "1.0"),
    "1.0 of libzmq 3": (SIGNATURE + b"\0\5", OldZmtp, 11, "ZMTP 1.0"),
    "2.0": (SIGNATURE + b"\1\2\0\0", OldZmtp, 11, "ZMTP 2.0"),
    "2.1": (SIGNATURE + b"\2\2\0\0", OldZmtp, 11, "ZMTP 3.0 or newer"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", NotZmtp, 2, "HT"),
    "a server that greets with zeros": (bytes(70), NotZmtp, 1, "?"),
    "another signature": (b"\xff" + bytes(8) + b"\x7e" + greeting()[10:], NotZmtp, 10, "~"),
    "telnet": (b"\xff\xfd\x18\xff\xfd\x20\xff\xfd\x23\0", NotZmtp, 10, "?"),
    "CURVE": (greeting(mechanism=b"CURVE"), ZmtpError, 32, "mechanism CURVE, not NULL"),
    "a name like NULL": (greeting(mechanism=b"NULLS"), ZmtpError, 32, "mechanism NULLS"),
    "a name in control characters": (greeting(mechanism=b"\x1b[1m"), ZmtpError, 32, "?[1m"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_greeting_is_complete_after_64_bytes(name: str) -> None:
    data, minor = GOOD[name]
    assert [parse_greeting(data[:size]) for size in range(64)] == [None] * 64
    assert parse_greeting(data) == minor
    assert parse_greeting(bytearray(data + b"more")) == minor


@pytest.mark.parametrize("name", BAD)
def test_a_fault_is_noticed_as_early_as_possible(name: str) -> None:
    data, error, size, text = BAD[name]
    assert [parse_greeting(data[:end]) for end in range(size)] == [None] * size
    for end in range(size, len(data) + 1):
        with pytest.raises(error) as caught:
            parse_greeting(data[:end])
        assert type(caught.value) is error
        assert text in caught.value.reason
        assert caught.value.reason.isprintable()


def test_our_greeting_is_the_one_of_libzmq() -> None:
    assert parse_greeting(GREETING) == 1
    with zmq_socket("ROUTER") as router, connected(router) as plain:
        plain.sendall(GREETING)
        theirs = receive(plain, GREETING_SIZE)
    # libzmq fills the padding as if the greeting were the head of an identity in ZMTP 1.0.
    assert theirs[:1] + bytes(8) + theirs[9:] == GREETING


@pytest.mark.parametrize("mechanism", ["PLAIN", "CURVE"])
def test_the_mechanism_of_libzmq_is_named(mechanism: str) -> None:
    with zmq_socket("ROUTER") as router:
        if mechanism == "PLAIN":
            router.plain_server = True
        else:
            router.curve_server = True
            router.curve_secretkey = b"rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
        with connected(router) as plain:
            plain.sendall(GREETING[:12])  # libzmq hangs up when it reads another mechanism
            theirs = receive(plain, GREETING_SIZE)
    with pytest.raises(ZmtpError, match=f"mechanism {mechanism}, not NULL"):
        parse_greeting(theirs)
