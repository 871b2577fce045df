"""Time from the request for a kernel to the first answer of that kernel, after the server's start.

The server starts twice. The first kernel is requested as soon as the server has answered a request,
or after the server has come to rest, as by a person who opens a page. Later kernels show the time
of the kernel itself.
"""

from __future__ import annotations

import statistics
import time

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values


def until_answer(server: Server) -> float:
    """Start a kernel; return the seconds until it has answered through a websocket."""
    begin = time.monotonic()
    with server.kernel() as kernel_id, Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        return time.monotonic() - begin


def measure(server: Server, settings: Settings) -> Values:
    with server.twin(()) as twin:
        at_once = until_answer(twin)
        total = twin.listening_after + at_once
    with server.twin(()) as twin:
        proc.settle(twin.pid)
        first = until_answer(twin)
        later = [until_answer(twin) for _ in range(settings.pick(10, 2))]
    return {"total": total, "at_once": at_once, "first": first, "later": statistics.median(later)}


ROW = Row(
    name="first",
    title="The first kernel after the start",
    figures=(
        Figure("at_once", "first kernel, requested at once", "s"),
        Figure("total", "start of the server to its answer", "s"),
        Figure("first", "first kernel, requested when the server is at rest", "s"),
        Figure("later", "later kernels", "s"),
    ),
    measure=measure,
    life=Life.OWN,
    alike=False,
    compared=True,
)
