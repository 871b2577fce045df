"""The table of metrics: conventions, and the page that describes it."""

from __future__ import annotations

import re
from pathlib import Path

import kbridge
from kbridge.metrics.families import METRICS, MetricType

PAGE = Path(kbridge.__file__).parents[1] / "docs" / "monitoring.md"


def test_names_follow_the_conventions() -> None:
    for metric in METRICS:
        assert metric.name == metric.name.lower()
        assert not metric.name.endswith(("_total", "_ms", "_count", "_sum", "_bucket"))
        assert metric.exported.startswith("kbridge_")
        assert metric.exported.endswith("_total") == (metric.type is MetricType.COUNTER)
        assert metric.help.endswith(".")
        if metric.type is MetricType.HISTOGRAM:
            assert metric.name.endswith("_seconds")
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_ids_of_kernels_are_labels_of_the_last_group_only() -> None:
    with_ids = [metric for metric in METRICS if "kernel_id" in metric.labels]
    assert with_ids
    assert METRICS[-len(with_ids) :] == tuple(with_ids)


def test_the_page_describes_exactly_the_exported_metrics() -> None:
    rows = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)))
        for name, kind, labels, _ in re.findall(
            r"^\| `(kbridge_\w+)` \| (\w+) \| ?([^|]*?) ?\| (.+) \|$",
            PAGE.read_text(),
            re.MULTILINE,
        )
    ]
    assert rows == [(m.exported, str(m.type), m.labels) for m in METRICS]
