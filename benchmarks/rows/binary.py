"""Outputs with a binary buffer of 1 MB: throughput and CPU per MB.

The kernel sends bursts of 200 MB at full speed; the next one starts when the previous one has
arrived. Outputs are counted: a server that loses one has no throughput.
"""

from __future__ import annotations

import time

from benchmarks import floor as bare_client
from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import Figure, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

BLOB = 1_000_000
BURST = 200


def burst(server: Server, kernel_id: str) -> tuple[float, float]:
    """Return the seconds from the first to the last byte of one burst, and CPU seconds."""
    token = new_token()
    with Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        tally = Tally(websocket, token, enough=BURST * BLOB, size=BLOB)
        before = proc.cpu_seconds(server.pid)
        websocket.execute({"blob": BLOB, "count": BURST, "end": token})
        complete = pump([tally], timeout=20)
        used = proc.cpu_seconds(server.pid) - before
        if not complete or tally.large != BURST:
            raise BenchmarkError(f"of {BURST} outputs {tally.large} came")
        return tally.last_at - tally.first_at, used


def measure(server: Server, settings: Settings) -> Values:
    bursts = settings.count or settings.pick(5, 1)
    with server.kernel() as kernel_id:
        burst(server, kernel_id)  # the first burst allocates memory
        figures = [burst(server, kernel_id) for _ in range(bursts)]
    total = bursts * BURST * BLOB / 1e6
    return {
        "rate": total / sum(seconds for seconds, _ in figures),
        "cpu": sum(cpu for _, cpu in figures) * 1e3 / total,
    }


def floor(settings: Settings) -> Values:
    bursts = settings.count or settings.pick(5, 1)
    seconds = cpu = 0.0
    with bare_client.bare(settings.home) as client:
        for _ in range(bursts):
            token = new_token()
            client.execute({"blob": BLOB, "count": BURST, "end": token})
            client.iopub.recv_multipart()
            client.iopub.recv_multipart()
            client.iopub.poll(20_000)
            began, used = time.monotonic(), time.process_time()
            if client.receive_big_until(token) != BURST * BLOB:
                raise BenchmarkError("the bare client lost output")
            seconds += time.monotonic() - began
            cpu += time.process_time() - used
            while client.iopub.poll(50):
                client.iopub.recv_multipart()
    total = bursts * BURST * BLOB / 1e6
    return {"rate": total / seconds, "cpu": cpu * 1e3 / total}


ROW = Row(
    name="binary",
    title="1 MB binary outputs",
    figures=(
        Figure("rate", "throughput", "MB/s", more_is_better=True, ratio=1.4),
        Figure("cpu", "CPU per MB", "ms", limit=1.0, aim=0.75),
    ),
    measure=measure,
    floor=floor,
    compared=True,
)
