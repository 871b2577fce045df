"""Run one soak, from the start of the servers to the final checks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kbridge.hub.rejected import REJECTED
from tests.soak import chaos, resource_usage
from tests.soak.client_profiles import PROFILES, ClientProfile
from tests.soak.cooperative import CooperativeClient
from tests.soak.expected import RequestLog
from tests.soak.findings import Findings
from tests.soak.fleet import Fleet
from tests.soak.hostile import Hostile
from tests.soak.resource_usage import ResourceUsage
from tests.support.waiting import eventually

__all__ = ["Outcome", "Settings", "soak"]

_REJECTED = REJECTED.partition(" %d ")[2].partition("%s")[0]  # messages of a kernel
DRAIN = 300.0  # seconds for clients to end

# Server, kernelspec, and True if the soak does not disturb the kernel.
_KERNELS = (
    ("roomy", "stub", True),
    ("roomy", "python3", True),
    ("roomy", "stub", False),
    ("roomy", "python3", False),
    ("narrow", "stub", True),
    ("narrow", "stub", False),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a soak.

    Attributes
    ----------
    seconds : float
        Minutes for the clients, without the start and the end.
    seed : str
        The seed of the random numbers.
    profiles : tuple of ClientProfile
        The clients; each runs in both dialects on both servers.
    hostile, trouble : bool
        True to run hostile clients, and to disturb kernels.
    progress : callable
        Called with a line of progress.
    every : float
        Seconds between two lines.
    """

    seconds: float = 300.0
    seed: str = "1"
    profiles: tuple[ClientProfile, ...] = PROFILES
    hostile: bool = True
    trouble: bool = True
    progress: Callable[[str], None] = print
    every: float = 5.0
    echo: bool = False


@dataclass(slots=True)
class Outcome:
    """The results of a soak."""

    findings: Findings
    before: dict[str, ResourceUsage] = field(default_factory=dict)
    after: dict[str, ResourceUsage] = field(default_factory=dict)


async def soak(settings: Settings, home: Path) -> Outcome:
    """Run the soak; leave no process in any case."""
    outcome = Outcome(Findings(settings.echo))
    fleet = Fleet(home, outcome.findings)
    try:
        await fleet.open()
        await _warm_up(fleet)
        for name, server in fleet.servers.items():
            outcome.before[name] = await resource_usage.at_rest(server)
        await _live(settings, fleet, outcome.findings)
        await _balance(fleet, outcome)
        await _stop(fleet, outcome.findings)
    finally:
        fleet.kill()
    return outcome


async def _warm_up(fleet: Fleet) -> None:
    """Use a kernel, a client, a session and a restart once, which create lazy objects."""
    quiet, requests, over = Findings(), RequestLog(), asyncio.Event()

    async def once(name: str) -> None:
        kernel = await fleet.add(name, "stub", calm=True)
        for dialect in ("v1", "legacy"):
            profile, narrow = ClientProfile("warming up", asks=2), name == "narrow"
            guest = CooperativeClient(
                profile, dialect, fleet, requests, quiet, over, narrow=narrow, seed="0"
            )
            await guest.visit(kernel)
        await chaos.all_requests(kernel, quiet)
        await fleet.remove(kernel)

    await asyncio.gather(*map(once, fleet.servers))
    assert not quiet.faults, quiet.faults


async def _live(settings: Settings, fleet: Fleet, findings: Findings) -> None:
    """Run all clients."""
    starts = [fleet.add(s, k, calm=calm or not settings.trouble) for s, k, calm in _KERNELS]
    await asyncio.gather(*starts)
    requests, over, quiet = RequestLog(), asyncio.Event(), asyncio.Event()
    clients = [
        CooperativeClient(
            profile, dialect, fleet, requests, findings, over, narrow=narrow, seed=settings.seed
        )
        for profile in settings.profiles
        for dialect in ("v1", "legacy")
        for narrow in (False, True)
    ]
    others = [chaos.rest(fleet, findings, quiet, settings.seed)]
    if settings.trouble:
        others.append(chaos.trouble(fleet, findings, quiet, settings.seed))
    if settings.hostile:
        kinds = [Hostile(kind, fleet, findings, quiet, settings.seed) for kind in Hostile.KINDS]
        others += [hostile.run() for hostile in kinds]
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(client.run(), name=client.name) for client in clients]
        company = [group.create_task(other) for other in others]
        ticker = group.create_task(_tell(settings, fleet, findings))
        await asyncio.wait(
            [*clients, *company, ticker],
            timeout=settings.seconds,
            return_when=asyncio.FIRST_EXCEPTION,
        )
        # Stop the disturbances first, so that each client receives its last answer.
        quiet.set()
        await asyncio.wait(company, timeout=DRAIN)
        over.set()
        _, late = await asyncio.wait(clients, timeout=DRAIN)
        for task in late:
            findings.fault(task.get_name(), f"did not come to an end within {DRAIN:.0f} s")
            task.cancel()
        ticker.cancel()


async def _tell(settings: Settings, fleet: Fleet, findings: Findings) -> None:
    """Report progress."""
    begin = time.monotonic()
    while True:
        await asyncio.sleep(settings.every)
        fleet.look()
        rss = " ".join(f"{server.rss() >> 20}" for server in fleet.servers.values())
        settings.progress(
            f"{time.monotonic() - begin:5.0f} s"
            f"  connections {findings.total('connections'):,}"
            f"  deaths {findings.total('deaths'):,}"
            f"  requests {findings.total('requests'):,}"
            f"  messages {findings.total('messages'):,}"
            f"  lines {findings.total('lines'):,}"
            f"  rss {rss} MiB"
            f"  findings {findings.count}"
        )


async def _balance(fleet: Fleet, outcome: Outcome) -> None:
    """Check the remaining resources after the clients end, and after the kernels end."""
    for name, server in fleet.servers.items():
        connections = await _connections(server)
        if connections:
            outcome.findings.fault(name, f"connections of nobody: {connections}")
    await asyncio.gather(*map(fleet.remove, list(fleet.kernels)))
    for name, server in fleet.servers.items():
        after = await resource_usage.settled(server, outcome.before[name], 60.0)
        outcome.after[name] = after
        for more in after.above(outcome.before[name]):
            outcome.findings.fault(name, f"left over: {more}")
        left = await server.call("GET", "/api/kernels")
        if left.json():
            outcome.findings.fault(name, f"kernels of nobody: {left.json()}")


async def _connections(server: resource_usage.Server) -> dict[str, int]:
    """Return the number of websockets of each server, after it had time to notice disconnects."""
    deadline = time.monotonic() + 60.0
    while True:
        models = (await server.call("GET", "/api/kernels")).json()
        held = {str(m["id"]): int(m["connections"]) for m in models if m["connections"]}
        if not held or time.monotonic() > deadline:
            return held
        await asyncio.sleep(0.1)


async def _stop(fleet: Fleet, findings: Findings) -> None:
    """Stop the servers, and check remaining files, processes and their logs."""
    fleet.look()
    for name, server in fleet.servers.items():
        code = await asyncio.to_thread(server.stop)
        if code:
            findings.fault(name, f"ended with {code}:\n{server.tail()}")
        try:
            server.assert_clean_log()
        except AssertionError as dirty:
            findings.fault(name, f"its log: {dirty}")
        for line in server.log.read_text(errors="replace").splitlines():
            if _REJECTED in line:
                findings.fault(name, f"its log: {line}")
    try:
        await asyncio.to_thread(
            eventually,
            lambda: not resource_usage.survivors(fleet.pids),
            "all processes have ended",
        )
    except AssertionError:
        alive = resource_usage.survivors(fleet.pids)
        findings.fault("fleet", f"processes that outlive their server: {alive}")
