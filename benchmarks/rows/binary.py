"""Outputs with a binary buffer of 1 MB: throughput and CPU per MB.

The kernel sends bursts of 200 MB at full speed; the next one starts when the previous one has
arrived. Two more bursts are sent at 200 MB/s. Outputs are counted: a server that loses one has no
throughput, and its CPU time is divided by the megabytes that arrived.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from benchmarks import floor as bare_client
from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import Figure, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

BLOB = 1_000_000
BURST = 200
PACE = {"batch": 10, "interval": 10 * BLOB / 200e6}


class Passed(NamedTuple):
    """The seconds from the first to the last byte of bursts, CPU seconds, and outputs."""

    seconds: float
    cpu: float
    arrived: int
    missing: int

    @property
    def cpu_per_mb(self) -> float:
        """CPU milliseconds of the server per megabyte that arrived."""
        return self.cpu * 1e3 / (self.arrived * BLOB / 1e6)


def bursts(server: Server, kernel_id: str, count: int, pace: dict[str, float]) -> Passed:
    """Return the sums over some bursts.

    Raises
    ------
    BenchmarkError
        If no output arrived.
    """
    each = [burst(server, kernel_id, pace) for _ in range(count)]
    total = Passed(*map(sum, zip(*each, strict=True)))
    if not total.arrived:
        raise BenchmarkError("no output arrived")
    return total


def burst(server: Server, kernel_id: str, pace: dict[str, float]) -> Passed:
    """Send one burst and count its outputs."""
    token = new_token()
    with Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        tally = Tally(websocket, token, enough=BURST * BLOB, size=BLOB)
        before = proc.cpu_seconds(server.pid)
        websocket.execute({"blob": BLOB, "count": BURST, "end": token, **pace})
        pump([tally], timeout=20)
        proc.settle(server.pid)  # the journal may write output to disk after clients have it
        used = proc.cpu_seconds(server.pid) - before
    return Passed(tally.last_at - tally.first_at, used, tally.large, BURST - tally.large)


def measure(server: Server, settings: Settings) -> Values:
    with server.kernel() as kernel_id:
        burst(server, kernel_id, {})  # the first burst allocates memory
        fast = bursts(server, kernel_id, settings.count or settings.pick(5, 1), {})
        paced = bursts(server, kernel_id, settings.pick(2, 1), PACE)
    return summary(fast, paced)


def summary(fast: Passed, paced: Passed) -> Values:
    """Return the figures of the row."""
    values: dict[str, float] = {
        "cpu": fast.cpu_per_mb,
        "missing": fast.missing,
        "cpu_paced": paced.cpu_per_mb,
        "missing_paced": paced.missing,
    }
    if not fast.missing:
        values["rate"] = fast.arrived * BLOB / 1e6 / fast.seconds
    return values


def floor(settings: Settings) -> Values:
    count = settings.count or settings.pick(5, 1)
    seconds = cpu = 0.0
    with bare_client.bare(settings.home) as client:
        for _ in range(count):
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
    total = count * BURST * BLOB / 1e6
    return {"rate": total / seconds, "cpu": cpu * 1e3 / total}


ROW = Row(
    name="binary",
    title="1 MB binary outputs",
    figures=(
        Figure("rate", "throughput", "MB/s", more_is_better=True, ratio=1.4),
        Figure("cpu", "CPU per MB", "ms", limit=1.0, aim=0.75),
        Figure("missing", "missing", "outputs", limit=0, info=True),
        Figure("cpu_paced", "at 200 MB/s: CPU per MB", "ms", aim=0.75),
        Figure("missing_paced", "at 200 MB/s: missing", "outputs", limit=0, info=True),
    ),
    measure=measure,
    floor=floor,
    compared=True,
)
