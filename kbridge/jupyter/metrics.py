"""Adds kbridge's metrics to those of Jupyter Server.

Jupyter Server's `/metrics` shows the default registry of prometheus_client, which belongs to the
process. So there is one collector for all Jupyter Servers of a process, usually one.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Final

from kbridge.jupyter.hubs import JupyterHubs
from kbridge.metrics.hubs import add_hubs, add_kernels
from kbridge.metrics.loop_lag import LoopLag
from kbridge.metrics.samples import Samples

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from kbridge.metrics.collector import BridgeCollector

__all__ = ["EXPORT", "MetricsExport"]


class MetricsExport:
    """The metrics of the hubs of a process.

    Parameters
    ----------
    registry : CollectorRegistry, optional
        The registry that shows them; by default that of Jupyter Server's `/metrics`.

    Attributes
    ----------
    per_kernel : bool
        True to export the ids of kernels.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.per_kernel = False
        self._registry = registry
        self._lags: weakref.WeakKeyDictionary[JupyterHubs, LoopLag] = weakref.WeakKeyDictionary()
        self._collector: BridgeCollector | None = None

    def register(self) -> None:
        """Show the metrics; may be called twice."""
        if self._collector is None:
            from kbridge.metrics.collector import BridgeCollector

            self._collector = BridgeCollector(self.read)
            self._shown_by().register(self._collector)

    def add(self, hubs: JupyterHubs) -> None:
        """Show the metrics of a server, on its running event loop."""
        self.register()
        lag = self._lags[hubs] = LoopLag()
        lag.start()

    def remove(self, hubs: JupyterHubs) -> None:
        """Forget a server; may be called twice."""
        lag = self._lags.pop(hubs, None)
        if lag is not None:
            lag.stop()

    def unregister(self) -> None:
        """Show no metrics any longer, unless another server of this process has some."""
        if self._collector is not None and not self._lags:
            self._shown_by().unregister(self._collector)
            self._collector = None

    def _shown_by(self) -> CollectorRegistry:
        from prometheus_client import REGISTRY

        return REGISTRY if self._registry is None else self._registry

    def read(self, samples: Samples) -> None:
        """Add all values."""
        servers = list(self._lags.items())
        for hubs, lag in servers:
            add_kernels(samples, hubs.states(), per_kernel=self.per_kernel)
            samples.add_histogram(lag.histogram, "event_loop_lag_seconds")
        tables = [hubs.table for hubs, _ in servers]
        add_hubs(samples, tables, per_kernel=self.per_kernel)


EXPORT: Final = MetricsExport()
"""The metrics of this process."""
