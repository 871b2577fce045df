"""1 GB past a client that does not read: the memory of the server, compared with its limit.

Ten cells of 100 MB each at 60 MB/s; the next one starts when another client has received the
previous one. kbridge runs it again with a quarter of the limit: the memory should follow the
setting.

A server that stores all output is stopped when it has grown by 1.5 GB or by half of the free
memory. The figure then says how many MB were sent.
"""

from __future__ import annotations

from typing import NamedTuple

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.rows.stalled import PACE, TEXT
from benchmarks.servers import CONNECTION, HIGH_LIMITS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

MIB = 2**20
CELLS = 10
LIMIT = 64 * MIB
CAP = 1.5e9


class Passed(NamedTuple):
    """Messages sent, messages missing at the reading client, and growth in bytes."""

    messages: int
    missing: int
    peak: int
    held: int


def past_a_stalled_viewer(server: Server, cells: int, count: int) -> Passed:
    """Run some cells with some messages each."""
    with server.kernel() as kernel_id, Websocket.open(server, kernel_id) as websocket:
        websocket.ready()  # the cost of the first kernel and websocket is not part of the flood
    before = proc.rss(server.pid)
    cap = min(CAP, proc.memory("MemAvailable") / 2)
    messages = missing = 0
    with (
        server.kernel() as kernel_id,
        Websocket.open(server, kernel_id, receive_buffer=65_536) as stalled,
        Websocket.open(server, kernel_id) as honest,
        proc.PeakRss(server.pid) as memory,
    ):
        stalled.ready()  # from now on it does not read
        honest.ready()
        tally = Tally(honest, "")
        for _ in range(cells):
            token = new_token()
            tally.arm(token)
            honest.execute({"flood": count, "size": TEXT, "end": token, **PACE})
            complete = pump([tally], timeout=20)
            messages += count
            missing += count - tally.lines
            if not complete or memory.peak - before > cap:
                break
        proc.settle(server.pid, timeout=30)
        held = proc.rss(server.pid) - before
    return Passed(messages, missing, memory.peak - before, held)


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(1_000, 100)
    found = past_a_stalled_viewer(server, CELLS, count)
    values: dict[str, float] = {
        "passed": found.messages * TEXT / 1e6,
        "growth": found.peak / MIB,
        "held": found.held / MIB,
        "missing": found.missing,
    }
    if server.standalone:
        options = (*HIGH_LIMITS, f"{CONNECTION}journal_limit={LIMIT // 4}")
        with server.twin(options) as small:
            found = past_a_stalled_viewer(small, CELLS // 3, count)
        values |= {"growth_small": found.peak / MIB, "missing_small": found.missing}
    return values


ROW = Row(
    name="gigabyte",
    title="1 GB while one client does not read",
    figures=(
        Figure("passed", "output sent", "MB", info=True),
        # The limit of the journal, and a quarter for the data structures.
        Figure("growth", "memory, growth at its peak, journal_limit 64 MiB", "MiB", limit=80),
        Figure("held", "memory, growth held afterwards", "MiB", info=True),
        Figure("missing", "missing at the client that reads", "messages", limit=0, info=True),
        Figure(
            "growth_small",
            "memory, growth at its peak, journal_limit 16 MiB",
            "MiB",
            limit=32,
            info=True,
        ),
        Figure(
            "missing_small", "missing with journal_limit 16 MiB", "messages", limit=0, info=True
        ),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=1,
)
