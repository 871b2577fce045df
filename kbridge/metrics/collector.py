"""Hands the values to prometheus_client, which writes both text formats.

Import this module late: prometheus_client takes 40 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from kbridge._version import __version__
from kbridge.flow.histogram import Histogram
from kbridge.metrics import families
from kbridge.metrics.families import METRICS, PREFIX, MetricType
from kbridge.metrics.samples import Samples

__all__ = ["BridgeCollector", "exposition", "make_registry"]


class BridgeCollector(Collector):
    """Reads all values when Prometheus asks for them.

    Parameters
    ----------
    read : callable
        Adds the current values to the samples that it is given. Called on the thread of the scrape,
        which must be that of the event loop.
    """

    def __init__(self, read: Callable[[Samples], None]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without values; reads nothing."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their values; gauges without a value are left out."""
        samples = Samples()
        samples.add(1, "build_info", __version__)
        self._read(samples)
        by_name: dict[str, Metric] = {}
        for metric in METRICS:
            by_name[metric.name] = _family(metric)
            if metric.type is MetricType.COUNTER and not metric.labels:
                samples.add(0, metric.name)  # a rate needs a first value
        for (name, *labels), value in samples.values.items():
            by_name[name].add_metric(labels, value)  # type: ignore[attr-defined]
        for (name, *labels), histogram in samples.histograms.items():
            buckets, total = _cumulated(histogram)
            by_name[name].add_metric(labels, buckets, total)  # type: ignore[attr-defined]
        for family in by_name.values():
            if family.samples:
                yield family


def make_registry(read: Callable[[Samples], None]) -> CollectorRegistry:
    """Return a registry with kbridge's metrics, and those of the process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BridgeCollector(read))
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """Return the metrics in the format that a header Accept asks for, and their Content-Type."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _family(metric: families.Metric) -> Metric:
    name = PREFIX + metric.name
    match metric.type:
        case MetricType.COUNTER:
            return CounterMetricFamily(name, metric.help, labels=metric.labels)
        case MetricType.GAUGE:
            return GaugeMetricFamily(name, metric.help, labels=metric.labels)
        case MetricType.HISTOGRAM:
            return HistogramMetricFamily(name, metric.help, labels=metric.labels)


def _cumulated(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Return the buckets as Prometheus has them, each with all smaller values, and the sum."""
    bounds = [*(f"{bound!r}" for bound in histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total
