"""File descriptors of the server per kernel, with a websocket each and after these have closed.

The sockets of the websockets are not counted. Descriptors that all kernels share belong to the
first kernel, which is not counted either.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values


def measure(server: Server, settings: Settings) -> Values:
    count = settings.pick(10, 3)
    with ExitStack() as kernels, ExitStack() as websockets:

        def add() -> None:
            kernel_id = kernels.enter_context(server.kernel())
            websockets.enter_context(Websocket.open(server, kernel_id)).ready()

        add()
        proc.settle(server.pid)
        before, files = proc.descriptors(server.pid), proc.open_files(server.pid)
        for _ in range(count):
            add()
        proc.settle(server.pid)
        opened = proc.descriptors(server.pid) - before
        files = proc.open_files(server.pid) - files
        websockets.close()
        proc.settle(server.pid)
        closed = proc.descriptors(server.pid) - before + 1  # the first one has closed, too
    return {"viewed": opened / count - 1, "alone": closed / count, "files": files / count}


ROW = Row(
    name="descriptors",
    title="Descriptors of another kernel",
    figures=(
        Figure("viewed", "with a client", "", limit=6),
        Figure("alone", "after its client has left", "", limit=6),
        Figure("files", "files of the journal among them", "", info=True),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=1,
    compared=True,
)
