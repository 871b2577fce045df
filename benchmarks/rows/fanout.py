"""CPU time of the server per delivery, with 16 websockets on one kernel.

In a second pass, other processes keep all cores busy, so that the clients fall behind by different
amounts and read from different places. Fewer messages for jupyter_server, as in `message`.
"""

from __future__ import annotations

from benchmarks.load import busy_cores
from benchmarks.rows.message import flood
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Row, Settings, Values

VIEWERS = 16


def measure(server: Server, settings: Settings) -> Values:
    many = settings.pick(2_000 if server.name == BASE else 5_000, 300)
    count = settings.count or many
    with server.kernel() as kernel_id:
        quiet = flood(server, kernel_id, count, VIEWERS)
        with busy_cores():
            loaded = flood(server, kernel_id, count, VIEWERS)
    harm = loaded["cpu"] / quiet["cpu"]
    return {**quiet, "cpu_loaded": loaded["cpu"], "harm": harm}


ROW = Row(
    name="fanout",
    title="16 clients on one kernel",
    figures=(
        Figure("cpu", "CPU per delivery", "us", ratio=30, limit=1.5, aim=0.9),
        Figure("rate", "messages per second to each", "1/s", more_is_better=True),
        Figure("cpu_loaded", "CPU per delivery, all cores busy", "us", info=True),
        Figure("harm", "CPU per delivery, all cores busy / quiet", "x", limit=1.2, info=True),
    ),
    measure=measure,
    compared=True,
)
