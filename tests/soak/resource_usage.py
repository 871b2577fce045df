"""The resources of a server process: descriptors, tasks, threads, memory, objects, children."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.server import Server, gone
from tests.support.waiting import TIMEOUT

__all__ = [
    "ALLOWED",
    "ResourceUsage",
    "at_rest",
    "observed_command",
    "settled",
    "survivors",
    "take",
]

MIB = 1 << 20

ALLOWED = {
    "descriptors": 0,
    "tasks": 0,
    "threads": 8,  # asyncio's thread pool starts threads on demand and keeps them
    "rss": 16 * MIB,  # memory fragmentation after floods
}
"""The allowed increase of each resource."""

# Kept on purpose and bounded, or created once on first use.
_KEPT_OBJECTS = 3


def observed_command(home: Path, module: str = "kbridge") -> list[str]:
    """The command that starts a server whose objects can be counted."""
    script = Path(__file__).with_name("observed.py")
    return [sys.executable, str(script), str(home / "census.json"), module]


@dataclass(slots=True)
class ResourceUsage:
    """The resources of a server process at one time."""

    numbers: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    children: set[int] = field(default_factory=set)

    def above(self, before: ResourceUsage) -> list[str]:
        """Return the resources that have grown by more than allowed."""
        found = [
            f"{name}: {before.numbers[name]:,} -> {now:,} (allowed: {allowed:,} more)"
            for name, allowed in ALLOWED.items()
            if (now := self.numbers[name]) > before.numbers[name] + allowed
        ]
        found += [
            f"objects of {name}: {before.objects.get(name, 0)} -> {count}"
            for name, count in sorted(self.objects.items())
            if count > before.objects.get(name, 0) + _KEPT_OBJECTS
        ]
        if self.children - before.children:
            found.append(f"children: {sorted(self.children - before.children)}")
        return found


async def take(server: Server) -> ResourceUsage:
    """Measure now."""
    process = psutil.Process(server.process.pid)
    path = server.home / "census.json"
    path.unlink(missing_ok=True)
    os.kill(process.pid, signal.SIGPROF)
    deadline = time.monotonic() + TIMEOUT
    while not path.exists():
        assert server.process.poll() is None, f"the server ended:\n{server.tail()}"
        assert time.monotonic() < deadline, "the server does not answer SIGPROF"
        await asyncio.sleep(0.01)
    census = json.loads(path.read_text(encoding="utf-8"))
    return ResourceUsage(
        {
            "descriptors": process.num_fds(),
            "tasks": census["process"]["tasks"],
            "threads": process.num_threads(),
            "rss": process.memory_info().rss,
        },
        census["objects"],
        {child.pid for child in process.children(recursive=True)},
    )


async def at_rest(server: Server) -> ResourceUsage:
    """Measure when the server is idle."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        now = await take(server)
        if not now.numbers["tasks"] and not now.objects.get("HTTPServerRequest"):
            return now
        assert time.monotonic() < deadline, f"the server is still busy: {now}"
        await asyncio.sleep(0.1)


async def settled(server: Server, before: ResourceUsage, patience: float) -> ResourceUsage:
    """Measure until all resources are as before, or for `patience` seconds; return the last one."""
    deadline = time.monotonic() + patience
    while True:
        now = await take(server)
        if not now.above(before) or time.monotonic() > deadline:
            return now
        await asyncio.sleep(0.2)


def survivors(pids: set[int]) -> list[int]:
    """Return the processes that still run."""
    return sorted(pid for pid in pids if not gone(pid))
