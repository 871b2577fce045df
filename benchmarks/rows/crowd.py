"""Round trips of an active websocket, without and with a crowd of idle ones on ten kernels.

kbridge has 2,000 of them, jupyter_server 100 (with nine descriptors each, 2,000 would exceed usual
limits). The active websocket has its own kernel, so the idle ones receive nothing. In a second pair
of figures, the active websocket shares a kernel with a tenth of the crowd, which receives its
output.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.rows.idle import close_all, open_many
from benchmarks.rows.roundtrip import round_trips
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Life, Row, Settings, Values

KERNELS = 10


def measure(server: Server, settings: Settings) -> Values:
    many = settings.pick(100, 20) if server.name == BASE else settings.pick(2_000, 200)
    seconds = settings.pick(3.0, 0.5)
    with ExitStack() as stack:
        kernels = [stack.enter_context(server.kernel()) for _ in range(KERNELS)]
        own = stack.enter_context(server.kernel())
        active = stack.enter_context(Websocket.open(server, own)).ready()
        shared = stack.enter_context(Websocket.open(server, kernels[0])).ready()
        proc.settle(server.pid)
        alone = round_trips(active, 2_000, seconds)
        crowd = open_many(server, kernels, settings.count or many)
        try:
            proc.settle(server.pid)
            among = round_trips(active, 2_000, seconds)
            # Few enough for the receive buffers of clients that do not read.
            with_viewers = round_trips(shared, 100, seconds)
        finally:
            close_all(crowd)
    return {
        "p50_alone": alone["p50"],
        "p99_alone": alone["p99"],
        "p50": among["p50"],
        "p99": among["p99"],
        "p50_shared": with_viewers["p50"],
        "harm_p50": among["p50"] / alone["p50"],
        "harm_p99": among["p99"] / alone["p99"],
        "crowd": settings.count or many,
    }


ROW = Row(
    name="crowd",
    title="A crowd of idle websockets on 10 kernels",
    figures=(
        Figure("crowd", "idle websockets", "", info=True),
        Figure("p50_alone", "round trip p50 without them", "ms", info=True),
        Figure("p99_alone", "round trip p99 without them", "ms", info=True),
        Figure("p50", "round trip p50 among them", "ms"),
        Figure("p99", "round trip p99 among them", "ms"),
        Figure("harm_p50", "p50 among them / without", "x", limit=1.25, info=True),
        Figure("harm_p99", "p99 among them / without", "x", limit=1.5, info=True),
        Figure("p50_shared", "p50 on a kernel that a tenth of them view", "ms", info=True),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
)
