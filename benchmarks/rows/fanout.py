"""CPU time of the server per delivery, with 16 websockets on one kernel.

Fewer messages for jupyter_server, as in `message`.
"""

from __future__ import annotations

from benchmarks.rows.message import flood
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Row, Settings, Values

VIEWERS = 16


def measure(server: Server, settings: Settings) -> Values:
    many = settings.pick(2_000 if server.name == BASE else 5_000, 300)
    with server.kernel() as kernel_id:
        return flood(server, kernel_id, settings.count or many, VIEWERS)


ROW = Row(
    name="fanout",
    title="16 clients on one kernel",
    figures=(
        Figure("cpu", "CPU per delivery", "us", ratio=30, limit=1.5, aim=0.9),
        Figure("rate", "messages per second to each", "1/s", more_is_better=True),
    ),
    measure=measure,
    compared=True,
)
