"""`python -m benchmarks.attacker ATTACK PORT COUNT`: a client without a token that attacks until it
is terminated.

It keeps COUNT connections open, and opens a new one when the server closes one. It runs with the
lowest priority, because a real attacker would use another machine.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
import time
from collections.abc import Callable
from functools import cache

from benchmarks.address import HOST

# Seconds between two requests of a connection, which limits the rate for fast servers.
PAUSE = 0.0005
_HEAD = f"Host: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


def silent(_number: int) -> bytes:
    return b""


def half(number: int) -> bytes:
    """Most of a handshake."""
    return f"GET /api/kernels/{number}/channels HTTP/1.1\r\n{_HEAD}".encode()


def guess(number: int) -> bytes:
    """A complete handshake with a wrong token."""
    return (
        f"GET /api/kernels/none/channels?token={number:048x} HTTP/1.1\r\n{_HEAD}"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()


def noise(_number: int) -> bytes:
    return os.urandom(300) + b"\r\n\r\n"


@cache
def bomb(target: str = "/", headers: str = "") -> bytes:
    """A request that is expensive to read: 60 kB of very short parts."""
    return f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode()


NAMES = [f"{n:x}" for n in range(9_000)]
COOKIES = f"Cookie: {'=; '.join(NAMES)}=\r\n"
HEADERS = ":\r\n".join(NAMES[:8_000]) + ":\r\n"
PARAMETERS = f"/?{'=&'.join(NAMES)}="


def cookies(_number: int) -> bytes:
    return bomb(headers=COOKIES)


def headers(_number: int) -> bytes:
    return bomb(headers=HEADERS)


def parameters(_number: int) -> bytes:
    return bomb(target=PARAMETERS)


def query(_number: int) -> bytes:
    """Return a request whose URL takes long to search for tokens if the pattern backtracks."""
    return bomb(target="/" + "?token" * 800)


ATTACKS: dict[str, Callable[[int], bytes]] = {
    "silent": silent,
    "half": half,
    "trickle": half,
    "guess": guess,
    "noise": noise,
    "cookies": cookies,
    "headers": headers,
    "parameters": parameters,
    "query": query,
}


class Attacker:
    def __init__(self, attack: str, port: int) -> None:
        self.says = ATTACKS[attack]
        self.port = port
        self.number = 0
        self.selector = selectors.DefaultSelector()

    def dial(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)  # sent in one piece
        sock.connect_ex((HOST, self.port))
        self.selector.register(sock, selectors.EVENT_WRITE)

    def step(self, timeout: float) -> None:
        """Send on the open connections, and replace those that have ended."""
        for key, events in self.selector.select(timeout):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if events & selectors.EVENT_WRITE:
                    self.number += 1
                    sock.send(self.says(self.number))
                    self.selector.modify(sock, selectors.EVENT_READ)
                elif not sock.recv(1 << 16):
                    raise ConnectionError
            except OSError:
                self.selector.unregister(sock)
                sock.close()
                self.dial()
                time.sleep(PAUSE)

    def drip(self) -> None:
        """Send one more header on each connection."""
        for key in list(self.selector.get_map().values()):
            if key.events == selectors.EVENT_READ:
                try:
                    key.fileobj.send(b"X-A: b\r\n")  # type: ignore[union-attr]
                except OSError:
                    continue  # the next step sees that it has ended

    def run(self, count: int, *, drips: bool) -> None:
        for _ in range(count):
            self.dial()
        print("it begins", flush=True)
        while True:
            self.step(0.05)
            if drips:
                self.drip()


if __name__ == "__main__":
    os.nice(19)  # inherits the raised limit of file descriptors
    Attacker(sys.argv[1], int(sys.argv[2])).run(int(sys.argv[3]), drips=sys.argv[1] == "trickle")
