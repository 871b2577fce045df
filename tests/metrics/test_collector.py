"""The exported text, as Prometheus's own parsers read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from kbridge.flow.histogram import Histogram
from kbridge.metrics.collector import exposition, make_registry
from kbridge.metrics.families import METRICS, MetricType
from kbridge.metrics.samples import Samples

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def everything(samples: Samples) -> None:
    """Add a value to every metric."""
    for metric in METRICS:
        labels = [f"a-{label}" for label in metric.labels]
        if metric.type is MetricType.HISTOGRAM:
            histogram = Histogram((0.5, 1.0))
            for value in (0.1, 0.7, 3.0):
                histogram.observe(value)
            samples.add_histogram(histogram, metric.name, *labels)
        else:
            samples.add(7, metric.name, *labels)


def parsed(families: Iterable[Any]) -> dict[str, float]:
    """Return the values by name and labels, as one text."""
    return {
        " ".join([sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))]): (
            sample.value
        )
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", ["", "text/plain", OPENMETRICS])
def test_both_formats_have_every_metric(accept: str) -> None:
    body, content_type = exposition(make_registry(everything), accept)
    text = body.decode()
    if accept == OPENMETRICS:
        assert content_type.startswith("application/openmetrics-text")
        values = parsed(openmetrics.text_string_to_metric_families(text))
    else:
        assert content_type.startswith("text/plain")
        values = parsed(text_string_to_metric_families(text))
    names = {key.partition(" ")[0] for key in values}
    for metric in METRICS:
        ending = "_count" if metric.type is MetricType.HISTOGRAM else ""
        assert metric.exported + ending in names, metric.name
    assert "process_cpu_seconds_total" in names


def test_buckets_are_cumulated() -> None:
    values = parsed(
        text_string_to_metric_families(exposition(make_registry(everything), "")[0].decode())
    )
    name = "kbridge_event_loop_lag_seconds"
    assert [values[f"{name}_bucket le={le}"] for le in ("0.5", "1.0", "+Inf")] == [1, 2, 3]
    assert values[f"{name}_count"] == 3
    assert values[f"{name}_sum"] == pytest.approx(3.8)
