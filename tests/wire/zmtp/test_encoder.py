"""Encoded messages, compared with the bytes of libzmq."""

import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.wire.message import Buffer
from kbridge.wire.speedups import Functions
from kbridge.wire.zmtp.commands import SocketType
from kbridge.wire.zmtp.decoder import Decoder
from kbridge.wire.zmtp.encoder import LARGE, encode, encode_large
from kbridge.wire.zmtp.peer import Peer
from tests.support.twins import functions
from tests.wire.zmtp.libzmq import BORDERS, LIMITS, connected, next_message, shake_hands, zmq_socket

MESSAGES: dict[str, list[Buffer]] = {
    **{f"{len(part)}": [part] for part in BORDERS},
    "ascending": [*BORDERS],
    "descending": BORDERS[::-1],
    "empty parts": [b"", b"", b""],
}
PARTS = st.lists(
    st.binary(max_size=300) | st.sampled_from(BORDERS) | st.just(b"L" * (LARGE + 1)), max_size=6
)


@pytest.mark.parametrize("name", MESSAGES)
def test_our_bytes_are_those_of_libzmq(twin: Functions, name: str) -> None:
    message = MESSAGES[name]
    peer = Peer(SocketType.DEALER, b"me", LIMITS)
    with zmq_socket("DEALER") as dealer, connected(dealer) as plain:
        shake_hands(plain, peer)
        dealer.send_multipart(message)
        received, data = next_message(plain, peer)
    assert received == message
    assert data == twin.encode(message)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("large", [False, True])
def test_libzmq_reads_our_bytes(name: str, large: bool) -> None:
    message = MESSAGES[name]
    peer = Peer(SocketType.DEALER, b"me", LIMITS)
    with zmq_socket("ROUTER") as router, connected(router) as plain:
        shake_hands(plain, peer)
        for piece in encode_large(message) if large else [encode(message)]:
            plain.sendall(piece)
        assert router.recv_multipart() == [b"me", *message]


@given(PARTS)
def test_both_ways_of_encoding_give_the_same_bytes(message: list[Buffer]) -> None:
    pieces = encode_large(message)
    assert b"".join(pieces) == encode(message) == functions("C").encode(message)
    for part in message:
        assert (len(part) >= LARGE) == any(piece is part for piece in pieces)


def test_small_parts_between_large_ones_are_joined() -> None:
    large = b"x" * LARGE
    pieces = encode_large([b"a", b"b", large, b"c", b"d", large, b"e"])
    assert [piece is large for piece in pieces] == [False, True, False, True, False]


def test_views_are_encoded_by_their_bytes(twin: Functions) -> None:
    doubles = memoryview(array.array("d", [1.5, 2.5]))
    wide = memoryview(array.array("d", bytes(LARGE)))
    strided = memoryview(b"a_b_c_")[::2]
    message: list[Buffer] = [memoryview(b"view"), doubles, strided, memoryview(b"")]
    expected = [b"view", doubles.tobytes(), b"abc", b""]
    assert twin.encode(message) == encode(expected)
    assert b"".join(encode_large([*message, wide])) == encode([*expected, bytes(LARGE)])
    assert encode_large([wide])[1] is wide


@pytest.mark.parametrize("number", [1, 63, 64, 65, 1000])
@pytest.mark.parametrize("size", [0, 255, 256, 20_000, 1 << 20, (1 << 20) + 1])
def test_both_implementations_encode_the_same(number: int, size: int) -> None:
    message: list[Buffer] = [b"a"] * (number - 1) + [b"x" * size]
    assert functions("C").encode(message) == encode(message)
    assert functions("C").encode(tuple(message)) == encode(message)


def test_a_message_without_parts_has_no_bytes(twin: Functions) -> None:
    assert twin.encode([]) == b""
    assert encode_large([]) == []


@given(st.lists(PARTS.filter(bool), max_size=4))
def test_the_decoder_reads_what_was_encoded(messages: list[list[Buffer]]) -> None:
    decoder = Decoder(*LIMITS)
    assert decoder.feed(b"".join(map(encode, messages))) == messages
    assert decoder.fault is None
