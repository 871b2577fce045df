"""CPU of an idle server with two kernels, without and with 20 open live pages.

A page is a connection that reads `/api/live`: one sample per second, as server-sent events.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import OURS, Server
from benchmarks.table import Figure, Row, Settings, Values

PAGES = 20
TIMEOUT = 30.0


def open_page(server: Server) -> socket.socket:
    """Open a live page, and read its first sample."""
    page = server.address.connect(TIMEOUT)
    request = f"GET /api/live HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {server.token}"
    page.sendall(f"{request}\r\n\r\n".encode())
    received = b""
    while b"data: {" not in received or not received.endswith(b"\n\n\r\n"):
        piece = page.recv(1 << 16)
        received += piece
        if not piece or not received.startswith(b"HTTP/1.1 200 "[: len(received)]):
            raise BenchmarkError(f"{server.name}: no live page: {received[:200]!r}")
    return page


def watch(pid: int, pages: Sequence[socket.socket], seconds: float) -> tuple[float, int]:
    """Read pages for some seconds; return the CPU per second of a process, and the bytes."""
    received = 0
    with selectors.DefaultSelector() as selector:
        for page in pages:
            selector.register(page, selectors.EVENT_READ)
        begin, before = time.monotonic(), proc.cpu_seconds(pid)
        while (left := begin + seconds - time.monotonic()) > 0:
            if not pages:
                time.sleep(left)
                break
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                piece = key.fileobj.recv(1 << 16)
                if not piece:
                    raise BenchmarkError("the server has closed a page")
                received += len(piece)
        return (proc.cpu_seconds(pid) - before) / (time.monotonic() - begin), received


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(PAGES, 2)
    seconds = settings.pick(30.0, 3.0)
    with ExitStack() as stack:
        for _ in range(2):
            kernel_id = stack.enter_context(server.kernel())
            stack.enter_context(Websocket.open(server, kernel_id)).ready()
        proc.settle(server.pid)
        without, _ = watch(server.pid, [], seconds)
        pages = [stack.enter_context(open_page(server)) for _ in range(count)]
        share, received = watch(server.pid, pages, seconds)
    return {
        "cpu": share * 100,
        "without": without * 100,
        "bytes": received / seconds / count / 1024,
    }


ROW = Row(
    name="pages",
    title="20 open live pages of an idle server with 2 kernels",
    figures=(
        Figure("cpu", "CPU of the server", "%", limit=1),
        Figure("without", "CPU without pages", "%", info=True),
        Figure("bytes", "received per page and second", "KiB", info=True),
    ),
    measure=measure,
    servers=(OURS,),
    rounds=2,
)
