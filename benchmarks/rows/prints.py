"""A cell of ipykernel that prints 500 kB in a loop: the memory of the server, and lost output.

ipykernel joins the text that a cell prints within 0.2 s into one message, so the messages have
hundreds of megabytes, and their size differs from run to run. The figure to compare is therefore
the growth of the server per byte of the largest message.
"""

from __future__ import annotations

import time

from benchmarks.client import Websocket, decode
from benchmarks.measure import BenchmarkError, PeakRss
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values

TEXT = 500_000
MIB = 2**20
SECONDS = 60.0


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(600, 20)
    with (
        server.kernel("python3") as kernel_id,
        Websocket.open(server, kernel_id, agent="benchmark") as websocket,
    ):
        websocket.ready()
        with PeakRss(server.pid) as memory:
            code = f"line = 'x' * {TEXT}\nfor _ in range({count}): print(line)"
            largest, received = receive(websocket, websocket.execute(code))
    return {
        "largest": largest / 1e6,
        "growth": memory.growth / MIB,
        "copies": memory.growth / largest,
        "missing": count * (TEXT + 1) - received,
    }


def receive(websocket: Websocket, msg_id: str) -> tuple[int, int]:
    """Read until the cell is idle; return the length of its longest text and of all its text."""
    deadline = time.monotonic() + SECONDS
    largest = total = 0
    while (left := deadline - time.monotonic()) > 0:
        message = decode(websocket.payload(left))
        if message.parent_id != msg_id:
            continue
        length = len(message.content.get("text", ""))
        largest, total = max(largest, length), total + length
        if message.content.get("execution_state") == "idle":
            return largest, total
    raise BenchmarkError(f"the cell did not end within {SECONDS:.0f} s")


ROW = Row(
    name="prints",
    title="500 kB printed in a loop (ipykernel)",
    figures=(
        Figure("largest", "largest message", "MB", info=True),
        Figure("growth", "memory, growth at its peak", "MiB", info=True),
        Figure("copies", "growth per byte of the largest message", "bytes", limit=2.5),
        Figure("missing", "missing output", "bytes", limit=0, info=True),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
)
