"""Round trips and small messages of a websocket over a unix socket (`--sock`)."""

from __future__ import annotations

from benchmarks.address import Transport
from benchmarks.rows import message, roundtrip
from benchmarks.servers import HIGH_LIMITS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values

FIGURES = (
    Figure("p50", "round trip p50", "ms"),
    Figure("trip_cpu", "round trip, CPU of the server", "us"),
    Figure("cpu", "CPU per 100-byte message", "us"),
    Figure("rate", "messages per second", "1/s", more_is_better=True),
)


def over(transport: Transport, server: Server, settings: Settings) -> Values:
    """Measure a websocket over a transport."""
    count = settings.count or settings.pick(20_000, 2_000)
    with server.twin(HIGH_LIMITS, transport) as twin, twin.kernel() as kernel_id:
        trips = roundtrip.cost(twin, kernel_id, 2_000, settings.pick(3.0, 0.5))
        flooded = message.flood(twin, kernel_id, count, 1)
    return {**flooded, "p50": trips["p50"], "trip_cpu": trips["cpu"]}


def measure(server: Server, settings: Settings) -> Values:
    return over(Transport.UNIX, server, settings)


ROW = Row(
    name="unix",
    title="A websocket over a unix socket",
    figures=FIGURES,
    measure=measure,
    life=Life.OWN,
    rounds=2,
)
