"""The cost of a follower for the replica that serves a kernel.

Two clusters of two replicas take turns, one with a follower of each kernel and one without. A ratio
compares the best turns of both, because disturbances only add time. The kernel of a cluster sends
each message to its follower, too; that is work of the kernel, which is not counted here, and of the
follower, which is.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks import measure as proc
from benchmarks.replicas import cluster, wait_followed
from benchmarks.rows import roundtrip
from benchmarks.rows.message import flood
from benchmarks.servers import OURS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values

VIEWERS = 16
WITH, WITHOUT = "with", "without"
LOADS = {
    "one": "1 client, CPU per message",
    "many": "16 clients, CPU per delivery",
    "trip": "round trip, CPU",
}


def turn(owner: Server, other: Server, kernel: str, settings: Settings) -> Values:
    """One turn of one cluster: microseconds by load."""
    count = settings.count or settings.pick(10_000, 2_000)
    before = proc.cpu_seconds(other.pid)
    one = flood(owner, kernel, count, 1)
    proc.settle(other.pid)
    following = (proc.cpu_seconds(other.pid) - before) / count * 1e6
    return {
        "one": one["cpu"],
        "many": flood(owner, kernel, count // 4, VIEWERS)["cpu"],
        "trip": roundtrip.cost(owner, kernel, 300, settings.pick(1.0, 0.3))["cpu"],
        "following": following,
    }


def measure(server: Server, settings: Settings) -> Values:
    turns: dict[str, list[Values]] = {WITH: [], WITHOUT: []}
    with ExitStack() as stack:
        sides = {}
        for name, count in ((WITH, 1), (WITHOUT, 0)):
            owner, other = stack.enter_context(cluster(server, 2, [f"--followers={count}"]))
            kernel = stack.enter_context(owner.kernel())
            if count:
                wait_followed([other], [kernel])
            sides[name] = owner, other, kernel
            flood(owner, kernel, 1_000, VIEWERS)  # the first turn allocates memory
        for i in range(settings.pick(6, 1)):
            for name in turns if i % 2 == 0 else reversed(turns):
                turns[name].append(turn(*sides[name], settings))
    best = {
        name: {load: min(taken[load] for taken in each) for load in (*LOADS, "following")}
        for name, each in turns.items()
    }
    values = {f"{load}_{WITHOUT}": best[WITHOUT][load] for load in LOADS}
    values |= {f"{load}_ratio": best[WITH][load] / best[WITHOUT][load] for load in LOADS}
    return {**values, "following": best[WITH]["following"] - best[WITHOUT]["following"]}


def figures(load: str) -> tuple[Figure, Figure]:
    title = LOADS[load]
    return (
        Figure(f"{load}_{WITHOUT}", f"{title}: no follower", "us", info=True),
        Figure(f"{load}_ratio", f"{title}: with a follower / without", "x", limit=1.0, info=True),
    )


ROW = Row(
    name="follower",
    title="A follower of a kernel (replicas)",
    figures=(
        *(figure for load in LOADS for figure in figures(load)),
        Figure("following", "CPU of the follower per message", "us", info=True),
    ),
    measure=measure,
    life=Life.OWN,
    rounds=2,
    servers=(OURS,),
)
