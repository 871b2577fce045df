"""Time from `kill -9` of a kernel until its client is informed (status restarting or dead).

Not measured for the extension, where jupyter_server's own restarter notices the death.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import ExitStack

from benchmarks.client import Websocket, decode
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import BASE, OURS, Figure, Life, Row, Settings, Values

# Some servers poll every few seconds; kills at regular intervals cover every phase of the polling.
PERIOD = 3.0


def measure(server: Server, settings: Settings) -> Values:
    kills = settings.count or settings.pick(5, 2)
    taken = []
    with ExitStack() as stack:
        websockets = []
        for _ in range(kills):
            # Never deleted: jupyter_server answers 500 while a kernel is being restarted.
            # They end with their server, which runs only for this round.
            kernel_id = server.request("POST", "/api/kernels", {"name": "stub"})["id"]
            websockets.append(stack.enter_context(Websocket.open(server, kernel_id)).ready())
        pids = [websocket.kernel_pid() for websocket in websockets]
        for websocket, pid in zip(websockets, pids, strict=True):
            time.sleep(random.uniform(0.5, 1.5) * PERIOD / kills)
            begin = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            wait_for_news(websocket)
            taken.append(time.monotonic() - begin)
    return {"mean": sum(taken) / len(taken), "worst": max(taken)}


def wait_for_news(websocket: Websocket) -> None:
    """Read until a status reports the death of the kernel."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        message = decode(websocket.payload(15))
        if message.content.get("execution_state") in {"restarting", "dead"}:
            return
    raise BenchmarkError("the death of the kernel was not reported")


ROW = Row(
    name="death",
    title="Time until the death of a kernel (kill -9) is noticed",
    figures=(
        Figure("mean", "mean", "s"),
        Figure("worst", "worst", "s", limit=0.25),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
    servers=(BASE, OURS),
)
