"""Four replicas against one server, with 200 kernels and 5,000 websockets.

Each kernel has 25 websockets, and sends the same number of lines to each. All lines are counted.
There are three passes: one server; four replicas, each websocket at the owner of its kernel; and
the same replicas, each websocket at any of them, so that three of four are passed on.

The kernels, the clients and all servers share the cores of the machine, so the rate says little on
a small one. The CPU time per delivery of all servers together says what replicas cost.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import measure as proc
from benchmarks.measure import BenchmarkError
from benchmarks.replicas import cluster, wait_followed
from benchmarks.rows.idle import close_all, open_all
from benchmarks.servers import HIGH_LIMITS, OURS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values
from benchmarks.tally import Tally, new_token, pump

ROOM = 1 << 16  # bytes of the buffer of one of thousands of clients
IDLE_SECONDS = 30.0  # the interval of pings


def start_kernels(servers: Sequence[Server], count: int) -> list[tuple[Server, str]]:
    """Start kernels, spread over the servers; return each with its owner."""

    def start(number: int) -> tuple[Server, str]:
        owner = servers[number % len(servers)]
        return owner, owner.request("POST", "/api/kernels", {"name": "stub"})["id"]

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(start, range(count)))


def cpu(servers: Sequence[Server]) -> float:
    return sum(proc.cpu_seconds(server.pid) for server in servers)


def settle(servers: Sequence[Server]) -> None:
    for server in servers:
        proc.settle(server.pid)


def traffic(
    servers: Sequence[Server], places: Sequence[tuple[Server, str]], lines: int, rest: float
) -> dict[str, float]:
    """Let all kernels send lines at the same time; return CPU per delivery, rate and memory.

    Before, all websockets are idle for `rest` seconds.

    `places` has the server and the kernel of each websocket; the first websocket of a kernel
    executes its cell.

    Raises
    ------
    BenchmarkError
        If a websocket did not receive all lines.
    """
    before = sum(proc.rss(server.pid) for server in servers)
    websockets = open_all(places)
    try:
        first: dict[str, int] = {}
        for number, (_, kernel) in enumerate(places):
            first.setdefault(kernel, number)
        for number in first.values():
            websockets[number].ready()
        settle(servers)
        memory = sum(proc.rss(server.pid) for server in servers) - before
        idle = share(servers, rest)
        token = new_token()
        tallies = [Tally(websocket, token, room=ROOM) for websocket in websockets]
        used, begin = cpu(servers), time.monotonic()
        for number in first.values():
            websockets[number].execute({"flood": lines, "size": 100, "end": token})
        complete = pump(tallies, timeout=30)
        passed = time.monotonic() - begin
        settle(servers)
        used = cpu(servers) - used
        missing = sum(lines - tally.lines for tally in tallies)
        if not complete or missing:
            raise BenchmarkError(f"{missing} lines are missing at {len(tallies)} clients")
        deliveries = lines * len(tallies)
        return {
            "cpu": used / deliveries * 1e6,
            "rate": deliveries / passed,
            "memory": memory / len(websockets) / 1024,
            "idle": idle / len(websockets) * 1e6,
        }
    finally:
        close_all(websockets)


def share(servers: Sequence[Server], seconds: float) -> float:
    """Return the CPU time of all servers per second of rest, as a share of one core."""
    settle(servers)
    before, begin = cpu(servers), time.monotonic()
    time.sleep(seconds)
    return (cpu(servers) - before) / (time.monotonic() - begin)


def cost_of_list(server: Server, count: int) -> float:
    """Return the CPU milliseconds of a server per request for the list of all kernels."""
    before = proc.cpu_seconds(server.pid)
    for _ in range(count):
        server.request("GET", "/api/kernels")
    return (proc.cpu_seconds(server.pid) - before) / count * 1e3


def measure(server: Server, settings: Settings) -> Values:
    replicas, kernels, viewers = settings.pick((4, 200, 25), (2, 4, 2))
    lines = settings.count or settings.pick(200, 20)
    seconds = settings.pick(IDLE_SECONDS, 0.3)
    with server.twin(HIGH_LIMITS) as alone:
        before = proc.rss(alone.pid)
        owned = start_kernels([alone], kernels)
        settle([alone])
        per_kernel = (proc.rss(alone.pid) - before) / kernels / 1024
        one = traffic([alone], owned * viewers, lines, seconds)
    with cluster(server, replicas) as fleet:
        before = sum(proc.rss(replica.pid) for replica in fleet)
        owned = start_kernels(fleet, kernels)
        wait_followed(fleet, [kernel for _, kernel in owned])
        settle(fleet)
        followed = (sum(proc.rss(replica.pid) for replica in fleet) - before) / kernels / 1024
        rest = share(fleet, seconds)
        listing = cost_of_list(fleet[0], settings.pick(50, 3))
        direct = traffic(fleet, owned * viewers, lines, seconds)
        anywhere = [
            (fleet[(number + turn) % replicas], kernel)
            for turn in range(viewers)
            for number, (_, kernel) in enumerate(owned)
        ]
        passed = traffic(fleet, anywhere, lines, seconds)
    return {
        "websockets": kernels * viewers,
        "one_cpu": one["cpu"],
        "fleet_cpu": direct["cpu"] / one["cpu"],
        "passed_cpu": passed["cpu"] / one["cpu"],
        "one_rate": one["rate"],
        "fleet_rate": direct["rate"] / one["rate"],
        "passed_rate": passed["rate"] / one["rate"],
        "memory": direct["memory"],
        "passed_memory": passed["memory"],
        "kernel": per_kernel,
        "kernel_followed": followed,
        "idle": one["idle"],
        "listing": listing,
        "rest": rest / replicas * 100,
    }


ROW = Row(
    name="fleet",
    title="4 replicas with 200 kernels and 5,000 websockets",
    figures=(
        Figure("websockets", "websockets", "", info=True),
        Figure("one_cpu", "one server: CPU per delivery", "us", info=True),
        Figure("fleet_cpu", "CPU of all replicas / of one server", "x", info=True),
        Figure("passed_cpu", "the same, 3 of 4 websockets passed on", "x", info=True),
        Figure("one_rate", "one server: deliveries per second", "1/s", info=True),
        Figure("fleet_rate", "deliveries of 4 replicas / of one server", "x", info=True),
        Figure("passed_rate", "the same, 3 of 4 websockets passed on", "x", info=True),
        Figure("memory", "memory of all replicas per websocket", "KiB", info=True),
        Figure("passed_memory", "the same, 3 of 4 websockets passed on", "KiB", info=True),
        Figure("idle", "one server: CPU per idle websocket and second", "us", info=True),
        Figure("kernel", "one server: memory per kernel", "KiB", info=True),
        Figure("kernel_followed", "all replicas: memory per kernel", "KiB", info=True),
        Figure("listing", "CPU of a replica per list of all kernels", "ms", info=True),
        Figure("rest", "CPU of a replica at rest, 50 kernels each", "%", info=True),
    ),
    measure=measure,
    life=Life.OWN,
    rounds=1,
    servers=(OURS,),
)
