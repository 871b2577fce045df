"""CPU time of the server per stream message of 100 bytes, with one client that reads everything.

The ids of the messages are a session and a number, as those of ipykernel; other kernels have random
ids, which a second pass shows. jupyter_server gets half as many messages, because it is slow; its
CPU per message hardly depends on the number.
"""

from __future__ import annotations

import time

from benchmarks import floor as bare_client
from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

TEXT = 100


def flood(server: Server, kernel_id: str, count: int, viewers: int, ids: str = "counted") -> Values:
    """Send `count` lines to `viewers` websockets; return CPU per delivery and the rate."""
    token = new_token()
    websockets = [Websocket(server, kernel_id).finish().ready() for _ in range(viewers)]
    try:
        proc.settle(server.pid)
        tallies = [Tally(websocket, token) for websocket in websockets]
        before = proc.cpu_seconds(server.pid)
        websockets[0].execute({"flood": count, "size": TEXT, "end": token, "ids": ids})
        complete = pump(tallies, timeout=20)
        used = proc.cpu_seconds(server.pid) - before
        if not complete or any(tally.lines != count for tally in tallies):
            lines = [tally.lines for tally in tallies]
            raise BenchmarkError(f"of {count} lines the viewers got {lines}")
        # A few lines may arrive in a single read.
        slowest = max(1e-6, *(tally.last_at - tally.first_at for tally in tallies))
        return {
            "cpu": used / count / viewers * 1e6,
            "rate": count / slowest,
            "frames": max(tally.frames for tally in tallies) / count,
        }
    finally:
        for websocket in websockets:
            websocket.close()


def measure(server: Server, settings: Settings) -> Values:
    many = settings.pick(10_000 if server.name == BASE else 20_000, 2_000)
    count = settings.count or many
    with server.kernel() as kernel_id:
        counted = flood(server, kernel_id, count, 1)
        if server.name == BASE:  # it parses every header
            return counted
        return {**counted, "cpu_random": flood(server, kernel_id, count, 1, "random")["cpu"]}


def floor(settings: Settings) -> Values:
    count = settings.count or settings.pick(20_000, 2_000)
    token = new_token()
    with bare_client.bare(settings.home) as client:
        client.execute({"flood": count, "size": TEXT, "end": token})
        # The first messages of the request (busy, execute_input) are sent after the flood is
        # signed.
        client.iopub.recv_multipart()
        client.iopub.recv_multipart()
        client.iopub.poll(20_000)
        cpu, begin = time.process_time(), time.monotonic()
        received = client.receive_until(token)
        used, passed = time.process_time() - cpu, time.monotonic() - begin
    if received != count:
        raise BenchmarkError(f"of {count} messages the bare client got {received}")
    return {"cpu": used / count * 1e6, "rate": count / passed}


ROW = Row(
    name="message",
    title="100-byte stream messages, 1 client",
    figures=(
        Figure("cpu", "CPU per message", "us", ratio=8, limit=12, aim=0.65),
        Figure("cpu_random", "CPU per message with a random id", "us"),
        Figure("rate", "messages per second", "1/s", more_is_better=True),
        Figure("frames", "websocket frames per message", "", info=True),
    ),
    measure=measure,
    floor=floor,
    compared=True,
)
