"""From an execute_request to its execute_reply and idle, one at a time: time and CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import floor as bare_client
from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import percentile
from benchmarks.servers import Server
from benchmarks.table import Figure, Row, Settings, Values

# The first segments of a connection are acknowledged immediately, so they do not show the delay
# that Nagle's algorithm and delayed acknowledgements cause later.
WARM_UP = 25


def sample(once: Callable[[], None], count: int, seconds: float) -> Values:
    """Milliseconds of `once`, called up to `count` times or for so many seconds."""
    for _ in range(WARM_UP):
        once()
    taken: list[float] = []
    stop = time.monotonic() + seconds
    while len(taken) < count and time.monotonic() < stop:
        begin = time.perf_counter()
        once()
        taken.append((time.perf_counter() - begin) * 1e3)
    return {"p50": percentile(taken, 50), "p99": percentile(taken, 99), "samples": len(taken)}


def round_trips(websocket: Websocket, count: int, seconds: float) -> Values:
    """Measure round trips of an empty cell through an open websocket."""

    def once() -> None:
        wanted = websocket.execute({}).encode()
        reply = idle = False
        while not (reply and idle):
            payload = websocket.payload()
            if wanted in payload:
                reply = reply or b'"execute_reply"' in payload
                idle = idle or b'"idle"' in payload

    return sample(once, count, seconds)


def cost(server: Server, kernel_id: str, count: int, seconds: float) -> Values:
    """Measure round trips of a new websocket, and the server's CPU microseconds for each."""
    with Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        proc.settle(server.pid)
        before = proc.cpu_seconds(server.pid)
        trips = round_trips(websocket, count, seconds)
        used = proc.cpu_seconds(server.pid) - before
    return {**trips, "cpu": used / (trips["samples"] + WARM_UP) * 1e6}


def measure(server: Server, settings: Settings) -> Values:
    with server.kernel() as kernel_id:
        return cost(server, kernel_id, settings.count or 2_000, settings.pick(4.0, 0.5))


def floor(settings: Settings) -> Values:
    with bare_client.bare(settings.home) as client:

        def once() -> None:
            client.wait_done(client.execute({}))

        return sample(once, settings.count or 2_000, settings.pick(4.0, 0.5))


ROW = Row(
    name="roundtrip",
    title="Execute round trip",
    figures=(
        Figure("p50", "p50", "ms", ratio=70, limit=0.6, aim=0.8),
        Figure("p99", "p99", "ms"),
        Figure("cpu", "CPU of the server", "us", aim=0.6),
    ),
    measure=measure,
    floor=floor,
    compared=True,
)
