"""Time from the start of the process to the first connection that it answers, and its memory after
the start.

An extension can only add to the time of its server, so it is not compared with the standalone
server.
"""

from __future__ import annotations

from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values


def measure(server: Server, settings: Settings) -> Values:
    server.start()
    try:
        return {"seconds": server.listening_after, "rss": server.rss_then / 2**20}
    finally:
        server.stop()


ROW = Row(
    name="start",
    title="Start to listening",
    figures=(
        Figure("seconds", "start to listening", "s", limit=0.6),
        Figure("rss", "memory after the start", "MiB", limit=44),
    ),
    measure=measure,
    life=Life.OWN,
    alike=False,
)
