"""100 MB of output while nobody is connected, and a client that comes afterwards.

There are two passes, each with a separate kernel:

- the client that sent the request disconnects before the output begins, and comes back with the
  same session_id when the kernel is silent. jupyter_server stores the output for it, in memory;
- another client connects when the kernel is silent, and asks for everything (`?since=start`, which
  jupyter_server does not support).

The memory is the growth at its peak, until all output has been read.
"""

from __future__ import annotations

import time

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

TEXT = 1_000
PACE = 60e6  # bytes per second
MIB = 2**20


def wait_for(server: Server, kernel_id: str, state: str) -> None:
    """Wait until the server reports an execution state.

    Raises
    ------
    BenchmarkError
        If that takes more than 60 s.
    """
    deadline = time.monotonic() + 60
    while server.request("GET", f"/api/kernels/{kernel_id}")["execution_state"] != state:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{server.name}: the kernel did not become {state} in 60 s")
        time.sleep(0.02)


def left_alone(server: Server, kernel_id: str, count: int, *, since: str = "") -> Values:
    """Let a kernel send `count` lines to nobody, read them afterwards, and count them."""
    token = new_token()
    before = proc.rss(server.pid)
    first = Websocket.open(server, kernel_id).ready()
    pace = {"batch": 100, "interval": TEXT * 100 / PACE}
    first.execute({"flood": count, "size": TEXT, "end": token, **pace})
    wait_for(server, kernel_id, "busy")  # the stub signs all messages before it sends the first
    first.close()
    with proc.PeakRss(server.pid) as memory:
        wait_for(server, kernel_id, "idle")
        begin = time.monotonic()
        how = {"query": f"&since={since}"} if since else {"session_id": first.session_id}
        with Websocket.open(server, kernel_id, **how) as second:
            tally = Tally(second, token)
            pump([tally], timeout=10)
            passed = tally.last_at - begin
            lines = tally.lines
    return {
        "missing": count - lines,
        "rate": lines * TEXT / passed / 1e6 if lines == count else 0.0,
        "growth": (memory.peak - before) / MIB,
    }


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(100_000, 5_000)
    with server.kernel() as kernel_id:
        values = dict(left_alone(server, kernel_id, count))
    if server.name != BASE:
        with server.kernel() as kernel_id:
            found = left_alone(server, kernel_id, count, since="start")
        values |= {f"{key}_start": value for key, value in found.items()}
    return values


ROW = Row(
    name="away",
    title="100 MB of output while nobody is connected",
    figures=(
        Figure("missing", "missing, with the same session_id", "messages", limit=0, info=True),
        Figure("rate", "read afterwards", "MB/s", more_is_better=True),
        Figure("growth", "memory, growth at its peak", "MiB"),
        Figure("missing_start", "missing, since=start", "messages", limit=0, info=True),
        Figure("rate_start", "read afterwards, since=start", "MB/s", info=True),
        Figure("growth_start", "memory, growth at its peak, since=start", "MiB", info=True),
    ),
    measure=measure,
    rounds=2,
)
