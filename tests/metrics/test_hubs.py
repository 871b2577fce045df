"""The values of hubs in the exported text."""

from __future__ import annotations

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.metrics.collector import exposition, make_registry
from kbridge.metrics.hubs import add_followed, add_hubs, add_kernels
from kbridge.metrics.samples import Samples
from kbridge.wire.dialects import V1
from tests.hub.rig import INFO


def values_of(body: bytes) -> dict[str, float]:
    """Return the values by name and labels, as one text."""
    return {
        " ".join([s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items()))]): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }


async def test_hubs_fill_the_metrics_and_name_no_kernel_unless_asked(tmp_path: Path) -> None:
    hubs = HubTable(HubSettings(journal_dir=str(tmp_path)), link=MemoryKernel)
    await hubs.open_journal()
    hub = hubs.open("a-kernel", INFO)
    hub.attach(MemoryClient(), V1, "s")
    hub.say(hub.notices.status("idle"))

    def scrape(*, per_kernel: bool) -> dict[str, float]:
        def read(samples: Samples) -> None:
            add_kernels(samples, [("a-kernel", "python3", "idle")], per_kernel=per_kernel)
            add_hubs(samples, [hubs], per_kernel=per_kernel)

        body, _ = exposition(make_registry(read), "")
        return values_of(body)

    try:
        values = scrape(per_kernel=False)
        assert values["kbridge_kernels kernelspec=python3 state=idle"] == 1
        assert values["kbridge_websockets"] == 1
        assert values["kbridge_websockets_opened_total"] == 1
        assert values["kbridge_journal_bytes kind=memory"] > 0
        assert values["kbridge_journal_limit_bytes kind=disk"] == HubSettings().journal_disk_total
        assert values["kbridge_journals_failing"] == 0
        assert not [key for key in values if "a-kernel" in key]
        values = scrape(per_kernel=True)
        assert values["kbridge_kernel_websockets kernel_id=a-kernel"] == 1
        assert values["kbridge_kernel_state kernel_id=a-kernel kernelspec=python3 state=idle"] == 1
    finally:
        await hubs.aclose()


async def test_followed_hubs_are_counted_apart() -> None:
    hubs = HubTable(link=MemoryKernel)
    try:
        hub = hubs.follow("of another replica", INFO)
        hub.say(hub.notices.status("idle"))

        def read(samples: Samples) -> None:
            add_hubs(samples, [hubs], per_kernel=True)
            add_followed(samples, hubs)

        values = values_of(exposition(make_registry(read), "")[0])
        assert values["kbridge_followed_kernels"] == 1
        assert values["kbridge_followed_journal_bytes"] > 0
        assert not [key for key in values if "of another" in key]
    finally:
        await hubs.aclose()
