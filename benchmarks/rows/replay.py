"""Round trips on one kernel while a client reads the full journal of another kernel.

The journal has 64 MiB, which one client has read. Another client, a separate process, asks for all
of it (`?since=start`, which jupyter_server does not support) again and again. The result is the p50
meanwhile, divided by the p50 before. The lines of each replay are counted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import measure as proc
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.rows.away import PACE, TEXT
from benchmarks.rows.roundtrip import round_trips
from benchmarks.servers import CONNECTION, EXTENSION, HIGH_LIMITS, OURS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

LIMIT = 64 << 20
OPTIONS = (*HIGH_LIMITS, f"{CONNECTION}history_limit={LIMIT}")
FRAME = 1_600  # bytes of a frame with TEXT bytes of text, at most


def fill(server: Server, kernel_id: str, count: int) -> str:
    """Let a kernel send lines, and read them; return the token that ends them."""
    token = new_token()
    with Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        tally = Tally(websocket, token)
        pace = {"batch": 100, "interval": TEXT * 100 / PACE}
        websocket.execute({"flood": count, "size": TEXT, "end": token, **pace})
        if not pump([tally], timeout=20) or tally.lines != count:
            raise BenchmarkError(f"of {count} lines {tally.lines} came")
    return token


@contextmanager
def replays(server: Server, kernel_id: str, end: str) -> Iterator[list[int]]:
    """Replay until the `with` block ends; yields a list that then has the lines of each replay."""
    argv = [sys.executable, "-m", "benchmarks.replayer"]
    argv += [str(server.home), str(server.port), server.token, kernel_id, end]
    lines: list[int] = []
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not (first := process.stdout.readline()):
                raise BenchmarkError("the replay failed")
            yield lines
            if process.poll() is not None:
                raise BenchmarkError(f"the replay ended with status {process.returncode}")
        finally:
            process.terminate()
            rest, _ = process.communicate()
        lines += [int(line) for line in (first, *rest.splitlines(keepends=True)) if "\n" in line]


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(LIMIT // FRAME, 2_000)
    seconds = settings.pick(4.0, 0.5)
    with (
        server.twin(OPTIONS) as twin,
        twin.kernel() as full,
        twin.kernel() as own,
        Websocket.open(twin, own) as active,
    ):
        active.ready()
        end = fill(twin, full, count)
        proc.settle(twin.pid)
        alone = round_trips(active, 8_000, seconds)
        with replays(twin, full, end) as lines:
            among = round_trips(active, 8_000, seconds)
    return {
        "p50_alone": alone["p50"],
        "p50": among["p50"],
        "p99": among["p99"],
        "harm": among["p50"] / alone["p50"],
        "replays": len(lines),
        "missing": sum(count - found for found in lines),
    }


ROW = Row(
    name="replay",
    title="A client reads 64 MiB of another kernel's journal again",
    figures=(
        Figure("p50_alone", "round trip p50 before", "ms", info=True),
        Figure("p50", "round trip p50 meanwhile", "ms"),
        Figure("p99", "round trip p99 meanwhile", "ms", info=True),
        Figure("harm", "p50 meanwhile / before", "x", limit=2, info=True),
        Figure("replays", "complete replays", "", info=True),
        Figure("missing", "missing in replays", "lines", limit=0, info=True),
    ),
    measure=measure,
    life=Life.OWN,
    rounds=2,
    servers=(EXTENSION, OURS),
    compared=True,
)
