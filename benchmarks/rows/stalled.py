"""300 MB past a client that stopped reading: memory, and the messages of a reading client.

At 60 MB/s, both servers keep up, so the memory grows because of the stalled client. A second pass
at full speed (more than 1 GB/s) shows the messages that the server has received but not processed.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

TEXT = 100_000
PACE = {"batch": 12, "interval": 0.02}


class Passed(NamedTuple):
    """Memory in bytes, missing messages and rate of one flood; no rate if messages are missing."""

    peak: int
    held: int
    missing: int
    rate: float | None


def flood(server: Server, count: int, pace: dict[str, float]) -> Passed:
    """Run one flood with two clients, one of which does not read."""
    token = new_token()
    with (
        server.kernel() as kernel_id,
        Websocket.open(server, kernel_id, receive_buffer=65_536) as stalled,
        Websocket.open(server, kernel_id) as honest,
    ):
        stalled.ready()  # from now on it does not read
        honest.ready()
        proc.settle(server.pid)
        tally = Tally(honest, token)
        with proc.PeakRss(server.pid) as memory:
            honest.execute({"flood": count, "size": TEXT, "end": token, **pace})
            pump([tally], timeout=20)
            proc.settle(server.pid, timeout=30)
        held = proc.rss(server.pid)
    seconds = max(tally.last_at - tally.first_at, 1e-9)
    missing = count - tally.lines
    rate = None if missing else count * TEXT / 1e6 / seconds
    return Passed(memory.peak, held, missing, rate)


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(3_000, 1_000)
    with server.kernel() as kernel_id, Websocket.open(server, kernel_id) as websocket:
        websocket.ready()  # the cost of the first kernel and websocket is not part of the flood
    before = proc.rss(server.pid)
    paced = flood(server, count, PACE)
    at_once = flood(server, count, {})
    values: dict[str, float] = {
        "growth": (paced.peak - before) / 2**20,
        "held": (paced.held - before) / 2**20,
        "missing": paced.missing,
        "growth_fast": (at_once.peak - before) / 2**20,
        "missing_fast": at_once.missing,
    }
    if at_once.rate is not None:
        values["rate_fast"] = at_once.rate
    return values


ROW = Row(
    name="stalled",
    title="300 MB while one client does not read",
    figures=(
        # The limit of the journal (64 MiB), and a quarter for the data structures.
        Figure("growth", "memory, growth at its peak", "MiB", limit=80),
        Figure("held", "memory, growth held afterwards", "MiB", info=True),
        Figure("missing", "missing at a client that reads", "messages", limit=0, info=True),
        Figure("growth_fast", "at full speed: growth at its peak", "MiB", info=True),
        Figure(
            "missing_fast", "at full speed: missing at the client that reads", "messages", info=True
        ),
        Figure(
            "rate_fast", "at full speed: rate of the client that reads", "MB/s", more_is_better=True
        ),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
)
