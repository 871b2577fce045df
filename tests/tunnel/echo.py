"""Five servers in place of a kernel: each sends the name of its channel, then echoes its input."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseServer, StreamRequestHandler, ThreadingMixIn
from socketserver import TCPServer as _TCPServer
from socketserver import UnixStreamServer as _UnixServer
from typing import Any, Self

from tests.support.waiting import TIMEOUT

__all__ = ["CHANNELS", "KEY", "Talk", "echo_kernel", "hear", "ipc_echo_kernel"]

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
KEY = "a-secret-of-the-kernel's"


class _Echo(StreamRequestHandler):
    def handle(self) -> None:
        self.request.sendall(f"{self.server.channel}\n".encode())  # type: ignore[attr-defined]
        try:
            while chunk := self.request.recv(65536):
                self.request.sendall(chunk)
        except OSError:
            pass  # a tunnel that is cut resets its connections


class _Tcp(ThreadingMixIn, _TCPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Tcp6(_Tcp):
    address_family = socket.AF_INET6


class _Unix(ThreadingMixIn, _UnixServer):
    daemon_threads = True


@contextmanager
def _served(servers: dict[str, BaseServer]) -> Iterator[None]:
    threads = []
    for channel, server in servers.items():
        server.channel = channel  # type: ignore[attr-defined]
        threads.append(threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True))
        threads[-1].start()
    try:
        yield
    finally:
        for server in servers.values():
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join(TIMEOUT)


@contextmanager
def echo_kernel(ip: str = "127.0.0.1") -> Iterator[dict[str, Any]]:
    """Serve on free ports; yield the connection info."""
    kind = _Tcp6 if ":" in ip else _Tcp
    servers = {channel: kind((ip, 0), _Echo) for channel in CHANNELS}
    ports = {f"{c}_port": server.server_address[1] for c, server in servers.items()}
    more = {"transport": "tcp", "ip": ip, "key": KEY, "signature_scheme": "hmac-sha256"}
    with _served(dict(servers)):
        yield {**ports, **more, "kernel_name": "echo", "curve_publickey": "public"}


@contextmanager
def ipc_echo_kernel(stem: Path) -> Iterator[dict[str, Any]]:
    """Serve on unix sockets; yield the connection info."""
    numbers = {channel: n for n, channel in enumerate(CHANNELS, start=1)}
    servers = {channel: _Unix(f"{stem}-{n}", _Echo) for channel, n in numbers.items()}
    ports = {f"{channel}_port": n for channel, n in numbers.items()}
    with _served(dict(servers)):
        yield {**ports, "transport": "ipc", "ip": str(stem), "key": KEY}


class Talk:
    """One connection to a local port."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._file.close()
        self.socket.close()

    def line(self) -> str:
        return self._file.readline().decode().strip()

    def says(self, text: str) -> str:
        self.socket.sendall(f"{text}\n".encode())
        return self.line()


def hear(ports: dict[str, int]) -> dict[str, str]:
    """Return the channel that answers behind each port."""
    found = {}
    for channel, port in ports.items():
        with Talk(port) as talk:
            found[channel] = talk.line()
            assert talk.says(f"hello {channel}") == f"hello {channel}"
    return found
