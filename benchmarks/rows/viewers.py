"""The cost of a cell that 2,000 clients view, without and with one client that does not read.

jupyter_server has 100 clients, as in `crowd`. A cell sends ten lines. There are two passes, each
with a separate kernel; in the second, one client stopped reading 16 MB earlier. The result is the
CPU time of the server per cell, and the ratio of the passes. The lines of all clients that read are
counted.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.rows.idle import close_all, open_many
from benchmarks.rows.stalled import PACE, TEXT
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Life, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

LINES = 10
BACKLOG = 16_000_000  # more than the buffers of a connection
ROOM = 1 << 16  # bytes of the buffer of one of thousands of clients
SECONDS = 20.0


@contextmanager
def stalled_client(server: Server, kernel_id: str) -> Iterator[None]:
    """Keep a websocket that does not read, and for which output waits in the server."""
    token = new_token()
    with (
        Websocket.open(server, kernel_id, receive_buffer=65_536) as stalled,
        Websocket.open(server, kernel_id) as honest,
    ):
        stalled.ready()  # from now on it does not read
        honest.ready()
        tally = Tally(honest, token)
        honest.execute({"flood": BACKLOG // TEXT, "size": TEXT, "end": token, **PACE})
        if not pump([tally], timeout=20):
            raise BenchmarkError("the output before the cells did not arrive")
        honest.close()
        yield


def cost(server: Server, kernel_id: str, viewers: int, cells: int) -> float:
    """Return the CPU milliseconds of the server per cell; stop after 20 s."""
    websockets = open_many(server, [kernel_id], viewers)
    try:
        websockets[0].ready()
        tallies = [Tally(websocket, "", room=ROOM) for websocket in websockets]
        run_cell(tallies)  # the first one has more work, for example the kernel's answers
        proc.settle(server.pid)
        before, stop, done = proc.cpu_seconds(server.pid), time.monotonic() + SECONDS, 0
        while done < cells and time.monotonic() < stop:
            run_cell(tallies)
            done += 1
        proc.settle(server.pid)  # pongs of clients are part of the cost
        return (proc.cpu_seconds(server.pid) - before) / done * 1e3
    finally:
        close_all(websockets)


def run_cell(tallies: list[Tally]) -> None:
    """Execute a cell through the first websocket; read its output from all of them.

    Raises
    ------
    BenchmarkError
        If a client did not receive all lines.
    """
    token = new_token()
    for tally in tallies:
        tally.arm(token)
    tallies[0].websocket.execute({"flood": LINES, "size": 100, "end": token})
    complete = pump(tallies, timeout=20)
    missing = sum(LINES - tally.lines for tally in tallies)
    if not complete or missing:
        raise BenchmarkError(f"{missing} lines are missing at {len(tallies)} clients")


def measure(server: Server, settings: Settings) -> Values:
    many = settings.pick(100, 20) if server.name == BASE else settings.pick(2_000, 100)
    many = settings.count or many
    cells = settings.pick(20, 2)
    with server.kernel() as kernel_id:
        alone = cost(server, kernel_id, many, cells)
    with server.kernel() as kernel_id, stalled_client(server, kernel_id):
        beside = cost(server, kernel_id, many, cells)
    return {
        "viewers": many,
        "cell": alone,
        "cell_stalled": beside,
        "delivery": alone * 1e3 / many / LINES,
        "harm": beside / alone,
    }


ROW = Row(
    name="viewers",
    title="2,000 clients on one kernel",
    figures=(
        Figure("viewers", "clients", "", info=True),
        Figure("cell", "CPU per cell of ten lines", "ms", info=True),
        Figure("cell_stalled", "CPU per cell, beside a client that does not read", "ms", info=True),
        Figure("delivery", "CPU per line and client", "us"),
        Figure(
            "harm", "cost beside a client that does not read / without", "x", limit=1.5, info=True
        ),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
    compared=True,
)
