"""Reads the metrics of a standalone server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.metrics.hubs import add_followed, add_hubs, add_kernels
from kbridge.metrics.loop_lag import LoopLag
from kbridge.metrics.samples import Samples

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from kbridge.cluster.relays import Relays

__all__ = ["ServerMetrics"]


@dataclass
class ServerMetrics:
    """The metrics of one server.

    Parameters
    ----------
    hubs : HubTable
    kernels : BridgeKernelManager
    per_kernel : bool
        True to export the ids of kernels.
    relays : Relays or None
        The websockets that are passed on to other replicas; None without a cluster.

    Attributes
    ----------
    lag : LoopLag
        Measures the event loop, from its `start` on.
    """

    hubs: HubTable
    kernels: BridgeKernelManager
    per_kernel: bool = False
    relays: Relays | None = None
    lag: LoopLag = field(default_factory=LoopLag, init=False)
    _registry: CollectorRegistry | None = field(default=None, init=False)

    def read(self, samples: Samples) -> None:
        """Add all values."""
        per_kernel, kernels = self.per_kernel, self.kernels
        add_kernels(samples, kernels.states(), per_kernel=per_kernel)
        add_hubs(samples, [self.hubs], per_kernel=per_kernel)
        for name, durations in kernels.starts.durations.items():
            samples.add_histogram(durations, "kernel_start_seconds", name)
        for name, failures in kernels.starts.failures.items():
            samples.add(failures, "kernel_start_failures", name)
        if kernels.max_kernels is not None:
            samples.add(kernels.max_kernels, "kernels_limit")
        if self.relays is not None:
            add_followed(samples, self.hubs)
            samples.add(len(self.relays), "passed_websockets")
            samples.add(self.relays.opened, "passed_websockets_opened")
        writer = kernels.writer
        samples.add(int(writer.enabled), "registry_enabled")
        samples.add(int(writer.failing), "registry_failing")
        samples.add(writer.unwritten, "registry_unwritten_rows")
        samples.add_histogram(self.lag.histogram, "event_loop_lag_seconds")

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that a header Accept asks for, and their Content-Type.

        The first call imports prometheus_client, in a thread.
        """
        if self._registry is None:
            self._registry = await asyncio.to_thread(self._make_registry)
        from kbridge.metrics.collector import exposition

        return exposition(self._registry, accept)

    def _make_registry(self) -> CollectorRegistry:
        from kbridge.metrics.collector import make_registry

        return make_registry(self.read)
