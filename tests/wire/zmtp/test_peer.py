"""The state of a connection, with libzmq as the oracle and with peers written by hand."""

import pytest

from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.peer import Peer
from tests.wire.zmtp.libzmq import (
    BORDERS,
    LIMITS,
    PEERS,
    connected,
    next_message,
    shake_hands,
    zmq_socket,
)


@pytest.mark.parametrize("name", PEERS)
def test_messages_of_libzmq_are_read(name: str) -> None:
    peer = Peer(PEERS[name], b"me", LIMITS)
    message = list(BORDERS)
    with zmq_socket(name) as theirs, connected(theirs) as plain:
        shake_hands(plain, peer)
        prefix = []
        if name == "XPUB":
            assert theirs.recv() == b"\x01"
        if name == "ROUTER":
            prefix = [b"me"]
        if name == "REP":
            plain.sendall(encode([b"", b"question"]))
            assert theirs.recv() == b"question"
        if name != "PUB":
            theirs.send_multipart(prefix + message)
            received, _ = next_message(plain, peer)
            assert received == [b"", *message] if name == "REP" else message
