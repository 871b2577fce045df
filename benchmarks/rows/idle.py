"""Memory and descriptors of another idle websocket."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Life, Row, Settings, Values

AT_ONCE = 20


def open_all(places: Sequence[tuple[Server, str]]) -> list[Websocket]:
    """Open an idle websocket for each server and kernel, a few at a time."""
    opened: list[Websocket] = []
    try:
        for begin in range(0, len(places), AT_ONCE):
            batch = [
                Websocket(server, kernel) for server, kernel in places[begin : begin + AT_ONCE]
            ]
            opened += batch
            for websocket in batch:
                websocket.finish()
    except BaseException:
        close_all(opened)
        raise
    return opened


def open_many(server: Server, kernel_ids: list[str], count: int) -> list[Websocket]:
    """Open idle websockets, spread over the kernels."""
    return open_all([(server, kernel_ids[i % len(kernel_ids)]) for i in range(count)])


def close_all(websockets: list[Websocket]) -> None:
    for websocket in websockets:
        websocket.close()


def measure(server: Server, settings: Settings) -> Values:
    many = settings.pick(100, 20) if server.name == BASE else settings.pick(1_000, 100)
    many = settings.count or many
    with server.kernel() as kernel_id, Websocket.open(server, kernel_id) as first:
        first.ready()
        # The first websockets also create shared objects: pools, caches, lazily loaded modules.
        warm = open_many(server, [kernel_id], AT_ONCE)
        try:
            proc.settle(server.pid)
            memory, descriptors = proc.rss(server.pid), proc.descriptors(server.pid)
            opened = open_many(server, [kernel_id], many)
            try:
                proc.settle(server.pid)
                model = server.request("GET", f"/api/kernels/{kernel_id}")
                if model["connections"] < 1 + AT_ONCE + many:
                    raise BenchmarkError(f"{model['connections']} connections are counted")
                return {
                    "rss": (proc.rss(server.pid) - memory) / many / 1024,
                    "descriptors": (proc.descriptors(server.pid) - descriptors) / many,
                }
            finally:
                close_all(opened)
        finally:
            close_all(warm)


ROW = Row(
    name="idle",
    title="Another idle websocket",
    figures=(
        Figure("rss", "memory", "KiB", limit=40),
        Figure("descriptors", "descriptors", "", limit=1.05),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
)
