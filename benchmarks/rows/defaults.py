"""As `message`, with default settings: CPU time of the server per stream message of 100 bytes.

The messages exceed the default limits, so that kbridge joins them. jupyter_server, which drops most
of them, is not measured; the row `flood` counts its losses.
"""

from __future__ import annotations

from benchmarks.rows.message import flood
from benchmarks.servers import EXTENSION, OURS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(20_000, 2_000)
    with server.twin(()) as twin, twin.kernel() as kernel_id:
        return flood(twin, kernel_id, count, 1)


ROW = Row(
    name="defaults",
    title="100-byte stream messages, 1 client, default settings",
    figures=(
        Figure("cpu", "CPU per message", "us", aim=0.65),
        Figure("rate", "messages per second", "1/s", more_is_better=True),
        Figure("frames", "websocket frames per message", "", info=True),
    ),
    measure=measure,
    life=Life.OWN,
    servers=(EXTENSION, OURS),
    compared=True,
)
