"""The cost of acknowledgements, coalescing and verification while they have no effect.

Servers with different options take turns, so that a slow phase of the machine affects all of them:
one with everything off, one with everything on (the default with high limits), and one for each
feature alone. A ratio compares the best turns of both, because disturbances only add time. The
spread is half the distance between the quartiles of the ratios of adjacent turns.

Off means: pings without sequence numbers; no limits and no joining; an empty key, so that messages
are neither signed nor verified.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

from benchmarks.rows import roundtrip
from benchmarks.rows.message import flood
from benchmarks.servers import CONNECTION, HIGH_LIMITS, OURS, Server
from benchmarks.table import Figure, Life, Row, Settings, Values

ACKNOWLEDGED = (f"{CONNECTION}acknowledge=True",)
JOINED = (*HIGH_LIMITS, f"{CONNECTION}rate_limit_policy=coalesce")
VERIFIED: tuple[str, ...] = ()  # the key of a kernel is random by default

UNACKNOWLEDGED = (f"{CONNECTION}acknowledge=False",)
UNLIMITED = (f"{CONNECTION}limit_rate=False", f"{CONNECTION}rate_limit_policy=drop")
UNSIGNED = ("--Session.key=",)

OFF, ALL = "off", "all"
SETTINGS: dict[str, tuple[str, ...]] = {
    OFF: (*UNACKNOWLEDGED, *UNLIMITED, *UNSIGNED),
    ALL: (*ACKNOWLEDGED, *JOINED, *VERIFIED),
    "acks": (*ACKNOWLEDGED, *UNLIMITED, *UNSIGNED),
    "joins": (*UNACKNOWLEDGED, *JOINED, *UNSIGNED),
    "signs": (*UNACKNOWLEDGED, *UNLIMITED, *VERIFIED),
}
WORDS = {
    ALL: "together",
    "acks": "acknowledgement",
    "joins": "coalescing policy",
    "signs": "verification",
}
LOADS = {
    "one": "1 client, CPU per message",
    "many": "16 clients, CPU per delivery",
    "trip": "round trip, CPU",
    "wait": "round trip, p50",
}
VIEWERS = 16


def turn(server: Server, kernel: str, settings: Settings) -> Values:
    """One turn of one server: microseconds by load."""
    count = settings.count or settings.pick(10_000, 2_000)
    one = flood(server, kernel, count, 1)
    many = flood(server, kernel, count // 4, VIEWERS)
    trips = roundtrip.cost(server, kernel, 300, settings.pick(1.0, 0.3))
    return {
        "one": one["cpu"],
        "many": many["cpu"],
        "trip": trips["cpu"],
        "wait": trips["p50"] * 1e3,
        "frames": one["frames"],
    }


def measure(server: Server, settings: Settings) -> Values:
    turns: dict[str, list[Values]] = {name: [] for name in SETTINGS}
    with ExitStack() as stack:
        kernels = {}
        for name, options in SETTINGS.items():
            twin = stack.enter_context(server.twin(options))
            kernels[name] = twin, stack.enter_context(twin.kernel())
            flood(*kernels[name], 1_000, VIEWERS)  # the first turn allocates memory
        for i in range(settings.pick(8, 1)):
            for name in SETTINGS if i % 2 == 0 else reversed(SETTINGS):
                turns[name].append(turn(*kernels[name], settings))
    values: dict[str, float] = {"frames": statistics.median(t["frames"] for t in turns[ALL])}
    for load in LOADS:
        best = {name: min(t[load] for t in taken) for name, taken in turns.items()}
        values[f"{load}_{OFF}"] = best[OFF]
        values |= {f"{load}_{name}": best[name] / best[OFF] for name in WORDS}
        pairs = zip(turns[ALL], turns[OFF], strict=True)
        values[f"{load}_spread"] = spread([on[load] / off[load] for on, off in pairs])
    return values


def spread(ratios: list[float]) -> float:
    """Half the distance between the quartiles."""
    if len(ratios) < 2:
        return 0.0
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return (high - low) / 2


def figures(load: str) -> list[Figure]:
    title = LOADS[load]
    # The target is for the CPU time; a round trip also includes the kernel and the client.
    made = [Figure(f"{load}_{OFF}", f"{title}: all off", "us", info=True)]
    for name, words in WORDS.items():
        limit = 1.25 if name == ALL else None
        made.append(
            Figure(f"{load}_{name}", f"{title}: {words} / off", "x", limit=limit, info=True)
        )
    made.append(Figure(f"{load}_spread", f"{title}: spread of together", "x", info=True))
    return made


ROW = Row(
    name="cost",
    title="The cost of acknowledging, coalescing and verifying",
    figures=(
        *(figure for load in LOADS for figure in figures(load)),
        Figure("frames", "1 client: frames per message, with all of it", "", info=True),
    ),
    measure=measure,
    life=Life.OWN,
    rounds=2,
    servers=(OURS,),
    alike=False,
)
