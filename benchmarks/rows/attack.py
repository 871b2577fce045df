"""Round trips of a client during attacks by clients without a token.

One process opens 5,000 silent or half-open connections, or 500 slow connections, guess tokens or
send noise, or 50 that send requests which are expensive to read. It opens a new connection when the
server ends one. The result is the p99 of the client during the attack, divided by its p99 before.
jupyter_server is not measured: by default, it keeps all connections, up to its limit of file
descriptors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import measure as proc
from benchmarks.attacker import ATTACKS
from benchmarks.client import Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.rows.roundtrip import round_trips
from benchmarks.servers import OURS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values

MANY = {
    "silent": 5_000,
    "half": 5_000,
    # Each of these requests is large: a few connections send as many as the server accepts.
    **dict.fromkeys(("cookies", "headers", "parameters", "query"), 50),
}
FEW = 500
LABELS = {
    "silent": "5,000 silent connections",
    "half": "5,000 incomplete handshakes",
    "trickle": "500 slow connections",
    "guess": "500 connections that guess tokens",
    "noise": "500 connections that send random bytes",
    "cookies": "requests with 9,000 cookies",
    "headers": "requests with 8,000 headers",
    "parameters": "requests with 9,000 parameters",
    "query": "requests for /?token?token...",
}


@contextmanager
def attack(name: str, server: Server, settings: Settings) -> Iterator[None]:
    count = settings.count or settings.pick(MANY.get(name, FEW), 50)
    argv = [sys.executable, "-m", "benchmarks.attacker", name, str(server.port), str(count)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != b"it begins\n":
                raise BenchmarkError(f"the attack {name} did not begin")
            yield
        finally:
            process.kill()


def measure(server: Server, settings: Settings) -> Values:
    seconds = settings.pick(4.0, 0.5)
    values: dict[str, float] = {}
    with server.kernel() as kernel, Websocket.open(server, kernel) as honest:
        honest.ready()
        proc.settle(server.pid)
        before = proc.rss(server.pid)
        alone = round_trips(honest, 4_000, seconds)
        values["p99_alone"] = alone["p99"]
        for name in ATTACKS:
            with attack(name, server, settings):
                among = round_trips(honest, 4_000, seconds)
                grown = (proc.rss(server.pid) - before) / 2**20
            values[f"p99_{name}"] = among["p99"]
            values[f"harm_{name}"] = among["p99"] / alone["p99"]
            values["memory"] = max(values.get("memory", 0.0), grown)
            # Connections that were not accepted wait in the backlog of the listening socket.
            honest.ready()
            proc.settle(server.pid, timeout=20)
    return values


ROW = Row(
    name="attack",
    title="A client during attacks without a token",
    figures=(
        Figure("p99_alone", "round trip p99 before", "ms", info=True),
        *(Figure(f"p99_{n}", f"{LABELS[n]}: p99", "ms", info=True) for n in ATTACKS),
        *(
            Figure(f"harm_{n}", f"{LABELS[n]}: p99 / before", "x", limit=5, info=True)
            for n in ATTACKS
        ),
        Figure("memory", "memory, growth at its peak", "MiB", limit=64, info=True),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
    servers=(OURS,),
    alike=False,
)
