"""From the start of the process to the first connection that it will answer; its memory then.

An extension can only add to what its server takes for that, so it is not held against the
standalone server here.
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
        Figure("rss", "memory then", "MiB", limit=44),
    ),
    measure=measure,
    life=Life.OWN,
    alike=False,
)
