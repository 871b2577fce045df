"""Round trips and small messages of a websocket over TLS (`--certfile`)."""

from __future__ import annotations

from benchmarks.address import Transport
from benchmarks.rows import unix
from benchmarks.servers import Server
from benchmarks.table import Life, Row, Settings, Values


def measure(server: Server, settings: Settings) -> Values:
    return unix.over(Transport.TLS, server, settings)


ROW = Row(
    name="tls",
    title="A websocket over TLS",
    figures=unix.FIGURES,
    measure=measure,
    life=Life.OWN,
    rounds=2,
)
