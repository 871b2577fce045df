"""The state of a connection, with libzmq as the oracle and with peers written by hand."""

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from kbridge.errors import MessageTooBig, NotZmtp, OldZmtp, ZmtpError
from kbridge.wire.message import RawMessage
from kbridge.wire.zmtp.commands import ready, subscribe
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.greeting import GREETING
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType
from tests.wire.zmtp.libzmq import (
    BORDERS,
    LIMITS,
    PEERS,
    TIMEOUT,
    connected,
    next_message,
    receive,
    shake_hands,
    zmq_socket,
)

GREETINGS = {0: GREETING.replace(b"\3\1", b"\3\0"), 1: GREETING}
# The handshake of a peer after its greeting, by the type of our socket.
READY = {
    SocketType.SUB: ready(SocketType.SUB).replace(b"\3SUB", b"\3PUB"),
    SocketType.DEALER: ready(SocketType.DEALER).replace(b"\6DEALER", b"\6ROUTER"),
}
MINORS = pytest.mark.parametrize("minor", GREETINGS)
TYPES = pytest.mark.parametrize("socket_type", SocketType)


def command(body: bytes) -> bytes:
    return bytes((4, len(body))) + body


def new_peer(socket_type: SocketType = SocketType.SUB, limits: Limits = LIMITS) -> Peer:
    return Peer(socket_type, b"me", limits)


def established(socket_type: SocketType = SocketType.SUB, limits: Limits = LIMITS) -> Peer:
    """A peer after the handshake, whose subscription was sent."""
    peer = new_peer(socket_type, limits)
    assert peer.feed(GREETING + READY[socket_type]) == []
    assert peer.established
    peer.take_output()
    return peer


def feed(peer: Peer, data: bytes) -> list[RawMessage]:
    """Give bytes to a peer, as the owner of a socket does."""
    if peer.pending is None:
        return peer.feed(data)
    size = min(len(data), len(peer.pending))
    peer.pending[:size] = data[:size]
    messages = peer.received(size)
    return messages + feed(peer, data[size:]) if size < len(data) else messages


@TYPES
def test_the_bytes_of_the_handshake_are_counted(socket_type: SocketType) -> None:
    peer = new_peer(socket_type)
    handshake = GREETING + READY[socket_type]
    peer.feed(handshake[:-1])
    peer.feed(handshake[-1:] + encode((b"one",)) + b"\1")
    assert peer.begin == len(handshake)
    assert peer.taken - peer.unfinished == len(handshake + encode((b"one",)))


@contextmanager
def connected_by_path(peer: zmq.Socket[bytes], path: Path) -> Iterator[socket.socket]:
    peer.bind(f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(TIMEOUT)
        plain.connect(str(path))
        yield plain


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("name", PEERS)
def test_messages_of_libzmq_are_read(name: str, transport: str, tmp_path: Path) -> None:
    peer = new_peer(PEERS[name])
    message = list(BORDERS)
    with zmq_socket(name) as theirs:
        way = connected(theirs) if transport == "tcp" else connected_by_path(theirs, tmp_path / "s")
        with way as plain:
            shake_hands(plain, peer)
            prefix: list[bytes] = []
            if name == "ROUTER":
                plain.sendall(encode([b"hello"]))
                prefix = theirs.recv_multipart()[:1]
                assert prefix == [b"me"]
            if name == "REP":
                plain.sendall(encode([b"", b"question"]))
                assert theirs.recv() == b"question"
            if name == "XPUB":
                assert theirs.recv() == b"\1", "a subscription to all messages"
            while name == "PUB" and not select.select([plain], [], [], 0.01)[0]:
                theirs.send_multipart(message)  # dropped until it has read the subscription
            if name != "PUB":
                theirs.send_multipart(prefix + message)
            received, _ = next_message(plain, peer)
            assert received == ([b"", *message] if name == "REP" else message)


@pytest.mark.parametrize("name", ["XPUB", "ROUTER"])
def test_the_bytes_of_libzmq_may_be_cut_anywhere(name: str) -> None:
    messages = [[b"topic", b"a" * 300, b""], [b"second"], [b""]]
    with zmq_socket(name) as theirs, connected(theirs) as plain:
        plain.sendall(new_peer(PEERS[name]).start())
        greeting = receive(plain, len(GREETING))
        head = receive(plain, 2)
        handshake = greeting + head + receive(plain, head[1])
        if name == "XPUB":
            plain.sendall(subscribe(1))
        else:
            plain.sendall(encode([b"hello"]))
        theirs.recv_multipart()  # now libzmq knows the subscription, or the identity
        for message in messages:
            theirs.send_multipart(([b"me"] if name == "ROUTER" else []) + message)
        data = handshake + receive(plain, sum(len(encode(message)) for message in messages))
    for cut in range(len(data) + 1):
        peer = new_peer(PEERS[name])
        assert peer.feed(data[:cut]) + peer.feed(data[cut:]) == messages
        assert peer.established
        assert peer.fault is None
    peer = new_peer(PEERS[name])
    received = [message for byte in data for message in peer.feed(bytes((byte,)))]
    assert received == messages


def test_libzmq_reads_our_bytes_one_by_one() -> None:
    message = [b"a" * 300, b"", b"b"]
    peer = new_peer(SocketType.DEALER)
    with zmq_socket("ROUTER") as router, connected(router) as plain:
        for byte in peer.start():
            plain.sendall(bytes((byte,)))
        while not peer.established:
            peer.feed(receive(plain, 1))
        for byte in encode(message):
            plain.sendall(bytes((byte,)))
        assert router.recv_multipart() == [b"me", *message]


def test_a_heartbeat_of_libzmq_is_answered() -> None:
    with zmq_socket("ROUTER") as router:
        router.heartbeat_ivl = 10
        router.heartbeat_timeout = router.heartbeat_ttl = TIMEOUT * 1000
        with connected(router) as plain:
            peer = new_peer(SocketType.DEALER)
            shake_hands(plain, peer)
            for _ in range(3):
                while not peer.output:
                    peer.feed(receive(plain, 1))
                assert peer.output == command(b"\4PONG")
                plain.sendall(peer.take_output())
            plain.sendall(encode([b"alive"]))
            assert router.recv_multipart() == [b"me", b"alive"]


@MINORS
@TYPES
def test_a_handshake_is_read_wherever_it_is_cut(minor: int, socket_type: SocketType) -> None:
    handshake = GREETINGS[minor] + READY[socket_type]
    for cut in range(len(handshake)):
        peer = new_peer(socket_type)
        assert peer.feed(handshake[:cut]) == []
        assert not peer.established
        assert peer.output == b"", "nothing is sent before the READY of the peer"
        assert peer.feed(handshake[cut:] + encode([b"first"])) == [[b"first"]]
        assert peer.established
        assert peer.fault is None
        assert peer.output == (subscribe(minor) if socket_type is SocketType.SUB else b"")


@TYPES
def test_a_connection_starts_with_greeting_and_ready(socket_type: SocketType) -> None:
    assert new_peer(socket_type).start() == GREETING + ready(socket_type, b"me")


def test_a_ready_in_a_long_frame_is_read() -> None:
    body = READY[SocketType.SUB][2:] + b"\1X" + (400).to_bytes(4, "big") + bytes(400)
    peer = new_peer()
    for byte in GREETING + b"\6" + len(body).to_bytes(8, "big") + body:
        assert not peer.established
        peer.feed(bytes((byte,)))
    assert peer.established


FAULTS = {
    "1.0": (b"\1\0", OldZmtp, "ZMTP 1.0"),
    "2.0": (b"\xff" + bytes(8) + b"\x7f\1\2\0\0", OldZmtp, "ZMTP 2.0"),
    "HTTP": (b"HTTP/1.1 400 Bad Request\r\n", NotZmtp, "HT"),
    "CURVE": (GREETING.replace(b"NULL\0", b"CURVE"), ZmtpError, "mechanism CURVE, not NULL"),
    "a message": (GREETING + encode([b"READY"]), ZmtpError, "something else than READY"),
    "another command": (GREETING + command(b"\4PING\0\0"), ZmtpError, "something else than READY"),
    "a long command": (GREETING + b"\6" + b"\xff" * 8, ZmtpError, "something else than READY"),
    "no name": (GREETING + command(b"\x09READY"), ZmtpError, "without a whole name"),
    "no command": (GREETING + command(b""), ZmtpError, "without a whole name"),
    "no socket": (GREETING + command(b"\5READY\4"), ZmtpError, "ends within a property"),
    "another socket": (GREETING + READY[SocketType.DEALER], ZmtpError, "of the type ROUTER, to"),
    "an error": (
        GREETING + command(b"\5ERROR\x0eno\x1b[1m service"),
        ZmtpError,
        "refuses the connection: no?[1m service",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_handshake_is_found_wherever_it_is_cut(name: str) -> None:
    data, kind, text = FAULTS[name]
    for cut in range(len(data)):
        peer = new_peer()
        assert peer.feed(data[:cut]) + peer.feed(data[cut:]) == []
        assert type(peer.fault) is kind
        assert text in peer.fault.reason
        assert not peer.established
        assert peer.output == b""
        fault = peer.fault
        assert peer.feed(GREETING + READY[SocketType.SUB] + encode([b"x"])) == []
        assert peer.fault is fault


def test_a_ping_is_answered_with_its_context() -> None:
    peer = established()
    data = encode([b"a"]) + command(b"\4PING\0\0context") + encode([b"b"])
    assert peer.feed(data) == [[b"a"], [b"b"]]
    assert peer.output == peer.take_output() == command(b"\4PONGcontext")
    assert peer.output == peer.take_output() == b""


def test_many_pings_are_answered_once() -> None:
    """A peer that does not read cannot make this side keep answers."""
    peer = established()
    for number in range(100):
        peer.feed(b"".join(command(b"\4PING\0\0%02d" % i) for i in range(number)))
    assert peer.take_output() == command(b"\4PONG98")


def test_a_ping_before_the_subscription_is_sent_does_not_replace_it() -> None:
    peer = new_peer()
    peer.feed(GREETING + READY[SocketType.SUB] + command(b"\4PING\0\0a"))
    peer.feed(command(b"\4PING\0\0b"))
    assert peer.take_output() == subscribe(1) + command(b"\4PONGb")
    peer.feed(command(b"\4PING\0\0c"))
    assert peer.take_output() == command(b"\4PONGc")


@pytest.mark.parametrize("body", [b"\4PONG", b"\7UNKNOWNdata", b"\0", READY[SocketType.SUB][2:]])
def test_other_commands_are_ignored(body: bytes) -> None:
    peer = established()
    assert peer.feed(command(body) + encode([b"a"])) == [[b"a"]]
    assert (peer.fault, peer.output) == (None, b"")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (command(b"\5ERROR\4busy"), "the peer reports: busy"),
        (command(b"\5ERROR"), "the peer reports: "),
        (command(b"\7PING"), "without a whole name"),
        (b"\5\0", "flags 0x05"),
    ],
)
def test_messages_before_a_fault_are_returned(data: bytes, text: str) -> None:
    peer = established()
    data = encode([b"a"]) + command(b"\4PING\0\0") + data + encode([b"after"])
    assert peer.feed(data) == [[b"a"]]
    assert peer.fault is not None
    assert peer.fault.reason.startswith(text) or text in peer.fault.reason
    assert peer.feed(encode([b"b"])) == []


@pytest.mark.parametrize("size", [1001, 100_000])
def test_a_part_above_the_limit_is_a_fault(size: int) -> None:
    peer = established(limits=Limits(part=1000, message=1 << 20))
    assert feed(peer, encode([b"before"]) + encode([bytes(size)])) == [[b"before"]]
    assert isinstance(peer.fault, MessageTooBig)
    assert peer.fault.limit == 1000


def test_a_fault_is_found_after_a_long_part() -> None:
    peer = established(limits=Limits(part=1 << 20, message=1 << 20, parts=1))
    data = encode([b"", bytes(100_000)])
    assert peer.feed(data[:-1]) == []
    assert peer.pending is not None
    assert feed(peer, data[-1:]) == []
    assert peer.fault is not None
    assert "more than 1 parts" in peer.fault.reason


def test_long_parts_are_received_through_the_peer() -> None:
    peer = established(SocketType.DEALER)
    message = [b"a", b"b" * 100_000, b"c" * 200_000]
    data = encode(message) * 2
    received = [m for at in range(0, len(data), 30_000) for m in feed(peer, data[at : at + 30_000])]
    assert received == [message, message]


@MINORS
@TYPES
def test_a_connection_is_resumed_after_its_handshake(minor: int, socket_type: SocketType) -> None:
    first = new_peer(socket_type)
    handshake = GREETINGS[minor] + READY[socket_type]
    for size in range(len(handshake)):
        assert (first.unfinished, first.minor) == (size, 0)
        first.feed(handshake[size : size + 1])
    assert (first.unfinished, first.minor) == (0, minor)
    data = encode([b"a", b"b"]) + encode([b"c", b"d" * 100_000])
    assert first.feed(data[:60_000]) == [[b"a", b"b"]]
    second = Peer.resume(socket_type, b"me", LIMITS, first.minor)
    assert (second.established, second.minor, second.output) == (True, minor, b"")
    assert second.feed(data[60_000 - first.unfinished : 60_000]) == []
    assert feed(second, data[60_000:]) == [[b"c", b"d" * 100_000]]
