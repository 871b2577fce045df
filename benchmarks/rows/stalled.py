"""300 MB past a viewer that stopped reading: memory, and what an honest viewer gets."""

from __future__ import annotations

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

TEXT = 10_000


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(30_000, 10_000)
    token = new_token()
    with (
        server.kernel() as kernel_id,
        Websocket.open(server, kernel_id, receive_buffer=65_536) as stalled,
        Websocket.open(server, kernel_id) as honest,
    ):
        stalled.ready()  # and from here on it reads nothing
        honest.ready()
        proc.settle(server.pid)
        tally = Tally(honest, token)
        with proc.PeakRss(server.pid) as memory:
            honest.execute({"flood": count, "size": TEXT, "end": token})
            pump([tally], timeout=20)
            proc.settle(server.pid)
        held = proc.rss(server.pid) - memory.before
    seconds = max(tally.last_at - tally.first_at, 1e-9)
    return {
        "growth": memory.growth / 2**20,
        "held": held / 2**20,
        "missing": count - tally.lines,
        "rate": tally.lines * TEXT / 1e6 / seconds,
    }


ROW = Row(
    name="stalled",
    title="300 MB past a viewer that stopped reading",
    figures=(
        # The journal's limit (64 MiB), and a quarter for what holds it.
        Figure("growth", "memory, growth at its peak", "MiB", limit=80),
        Figure("held", "memory, growth held afterwards", "MiB", info=True),
        Figure("missing", "missing at an honest viewer", "messages", limit=0, info=True),
        Figure("rate", "rate of the honest viewer", "MB/s", more_is_better=True),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
)
