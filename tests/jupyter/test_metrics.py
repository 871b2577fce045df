"""kbridge's metrics among those of Jupyter Server."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kbridge.hub.table import HubTable
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.jupyter.metrics import MetricsExport
from kbridge.link.memory import MemoryKernel
from tests.jupyter.rig import FakeKernel, FakeKernels

REGISTRY = CollectorRegistry(auto_describe=True)


def shown() -> dict[tuple[str, ...], float]:
    """Return kbridge's values in the registry of this test."""
    text = generate_latest(REGISTRY).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("kbridge_")
    }


@pytest.fixture
def export() -> Any:
    made = MetricsExport(REGISTRY)
    yield made
    made.unregister()


async def test_metrics_are_shown_until_the_server_ends(export: MetricsExport) -> None:
    kernels = FakeKernels(FakeKernel("one"))
    hubs = JupyterHubs(kernels, HubTable(link=MemoryKernel))
    export.register()
    export.register()
    assert [key for key in shown() if key[0] == "kbridge_build_info"]
    export.add(hubs)
    hubs.open_for(kernels["one"])
    try:
        values = shown()
        assert sum(v for key, v in values.items() if key[0] == "kbridge_kernels") == 1
        assert values["kbridge_websockets",] == 0
        assert not [key for key in values if "one" in key], "no ids of kernels"
        export.per_kernel = True
        assert shown()["kbridge_kernel_websockets", "one"] == 0
        export.unregister()
        assert shown(), "another server of the process still has metrics"
    finally:
        await hubs.aclose()
        export.remove(hubs)
        export.remove(hubs)
    export.unregister()
    export.unregister()
    assert shown() == {}
