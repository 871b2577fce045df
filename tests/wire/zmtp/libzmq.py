"""libzmq as the oracle: its sockets, and plain sockets that talk to them."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from kbridge.wire.message import RawMessage
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType

TIMEOUT = 180
LIMITS = Limits(part=1 << 20, message=1 << 21, parts=100)
# Parts whose sizes are at the borders of the formats of frames.
BORDERS = [b"", b"a", b"b" * 254, b"c" * 255, b"d" * 256, b"e" * 65535, b"f" * 65537]
# The sockets of libzmq, and the types of socket that connect to them.
PEERS = {
    "PUB": SocketType.SUB,
    "XPUB": SocketType.SUB,
    "ROUTER": SocketType.DEALER,
    "DEALER": SocketType.DEALER,
    "REP": SocketType.DEALER,
}


@contextmanager
def zmq_socket(name: str) -> Iterator[zmq.Socket[bytes]]:
    """Yield a socket of libzmq that waits at most `TIMEOUT` seconds."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    found = context.socket(getattr(zmq, name))
    found.rcvtimeo = found.sndtimeo = TIMEOUT * 1000
    try:
        yield found
    finally:
        context.destroy(linger=0)


@contextmanager
def connected(peer: zmq.Socket[bytes]) -> Iterator[socket.socket]:
    """Yield a plain socket that is connected to a port of libzmq."""
    port = peer.bind_to_random_port("tcp://127.0.0.1")
    with socket.create_connection(("127.0.0.1", port), TIMEOUT) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield plain


@contextmanager
def accepted(peer: zmq.Socket[bytes]) -> Iterator[socket.socket]:
    """Yield a plain socket to which a socket of libzmq has connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        peer.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        plain, _ = listener.accept()
        with plain:
            plain.settimeout(TIMEOUT)
            yield plain


def receive(plain: socket.socket, size: int) -> bytes:
    """Receive exactly this many bytes."""
    data = b""
    while len(data) < size:
        data += (chunk := plain.recv(size - len(data)))
        assert chunk, "the peer has hung up"
    return data


def shake_hands(plain: socket.socket, peer: Peer) -> None:
    """Connect a `Peer` with the socket of libzmq."""
    plain.sendall(peer.start())
    while not peer.established:
        assert peer.feed(receive(plain, 1)) == []
        assert peer.fault is None
    plain.sendall(peer.take_output())


def next_message(plain: socket.socket, peer: Peer) -> tuple[RawMessage, bytes]:
    """Return the only message that libzmq has sent, and the bytes that it consists of."""
    data = b""
    messages: list[RawMessage] = []
    while not messages:
        if peer.pending is None:
            data += (chunk := plain.recv(4096))
            assert chunk, "the peer has hung up"
            messages = peer.feed(chunk)
        else:
            data += (chunk := receive(plain, len(peer.pending)))
            peer.pending[:] = chunk
            messages = peer.received(len(chunk))
        assert peer.fault is None
    [message] = messages
    return message, data
