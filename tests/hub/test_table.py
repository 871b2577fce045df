"""The hubs of all kernels: one per kernel, found by id, removed when closed."""

import pytest

from kbridge.errors import HubClosed, KernelNotFound
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.wire.dialects import V1
from tests.hub.rig import INFO


@pytest.fixture
async def table():
    made = HubTable(HubSettings(journal_limit=12345), link=MemoryKernel)
    yield made
    await made.aclose()


async def test_a_kernel_has_one_hub_with_the_tables_settings(table) -> None:
    hub = table.open("a", INFO)
    assert isinstance(hub, Hub)
    assert hub.kernel_id == "a"
    assert hub.settings.journal_limit == 12345
    assert isinstance(hub._kernel._link.link, MemoryKernel)
    assert table.open("a", {"not": "looked at"}) is hub
    assert table.open("b", INFO) is not hub
    assert len(table) == 2
    assert [h.kernel_id for h in table] == ["a", "b"]


async def test_hubs_are_found_or_not(table) -> None:
    hub = table.open("a", INFO)
    assert table.get("a") is hub
    assert table["a"] is hub
    assert table.get("b") is None
    with pytest.raises(KernelNotFound, match="'b'"):
        table["b"]
    assert len(table) == 1, "asking makes none"


async def test_connections_are_counted_by_kernel(table) -> None:
    hub = table.open("a", INFO)
    table.open("b", INFO)
    attached = [hub.attach(MemoryClient(), V1) for _ in range(3)]
    hub.detach(attached[0])
    assert [table.connections(k) for k in ("a", "b", "c")] == [2, 0, 0]


async def test_closing_one_closes_its_websockets_and_leaves_the_others(table) -> None:
    one, other = table.open("a", INFO), table.open("b", INFO)
    client, bystander = MemoryClient(), MemoryClient()
    one.attach(client, V1)
    other.attach(bystander, V1)
    await table.close("a")
    await table.close("a")
    await table.close("never there")
    assert client.closed_with == (1012, "the kernel was shut down")
    assert not bystander.closed
    assert table.get("a") is None
    with pytest.raises(HubClosed):
        one.attach(MemoryClient(), V1)
    assert table.open("a", INFO) is not one, "a new kernel with the same id gets its own hub"


async def test_closing_all_may_be_done_twice(table) -> None:
    clients = []
    for kernel_id in "abc":
        clients.append(MemoryClient())
        table.open(kernel_id, INFO).attach(clients[-1], V1)
    await table.aclose()
    await table.aclose()
    assert len(table) == 0
    assert all(c.closed for c in clients)


async def test_a_connection_file_without_a_port_makes_no_hub(table) -> None:
    with pytest.raises(ValueError, match="shell_port"):
        table.open("a", {**INFO, "shell_port": 0})
    with pytest.raises(ValueError, match="signature_scheme"):
        table.open("a", {**INFO, "signature_scheme": "none"})
    assert len(table) == 0


async def test_statistics_are_each_hubs(table) -> None:
    table.open("a", INFO)
    statistics = table.statistics()
    assert set(statistics) == {"a"}
    assert statistics["a"]["journal"]["limit"] == 12345


async def test_settings_have_defaults() -> None:
    assert HubTable().settings == HubSettings()
