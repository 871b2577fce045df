"""The hubs of kernels that Jupyter Server manages."""

import asyncio
import contextvars
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kbridge.errors import HubClosed
from kbridge.hub.kernel import process_link as line_module
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.jupyter import hubs as hubs_module
from kbridge.jupyter import kernel_watch as watch_module
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel
from kbridge.wire.zmq import serialize
from tests.jupyter.rig import PORTS, FakeKernel, FakeKernels, until


class Hubs(JupyterHubs):
    """Hubs that are linked to kernels in memory."""

    def __init__(self, kernels: FakeKernels) -> None:
        super().__init__(kernels, HubTable(link=self._make))
        self.links: list[MemoryKernel] = []

    def _make(self, endpoints: Any, events: Any, identity: bytes) -> MemoryKernel:
        self.links.append(MemoryKernel(endpoints, events, identity))
        return self.links[-1]

    def watches(self) -> int:
        return len(self._watches)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> FakeKernels:
    monkeypatch.setattr(watch_module, "_CHECK_SECONDS", 0.001)
    monkeypatch.setattr(line_module, "_FLUSH_TIMEOUT", 0.001)
    monkeypatch.setattr(hubs_module, "_SWEEP_SECONDS", 0.005)
    return FakeKernels(FakeKernel("one"), FakeKernel("two"))


@pytest.fixture
async def hubs(kernels: FakeKernels) -> AsyncIterator[Hubs]:
    made = Hubs(kernels)
    before = asyncio.all_tasks()
    yield made
    await made.aclose()
    await made.aclose()
    assert len(made.table) == made.watches() == 0
    assert all(link.closed for link in made.links)
    await until(lambda: asyncio.all_tasks() <= before | {asyncio.current_task()})


async def test_one_kernel_always_has_the_same_hub(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    assert hubs.open_for(kernels["one"]) is one
    assert hubs.open_for(kernels["two"]) is not one
    assert len(hubs.table) == hubs.watches() == 2
    assert kernels["one"].listeners() == 2 + len(PORTS), "listened to once"


async def test_a_kernel_that_ends_closes_its_hub(hubs, kernels) -> None:
    one, two = hubs.open_for(kernels["one"]), hubs.open_for(kernels["two"])
    client = MemoryClient()
    one.attach(client, V1)
    kernel = kernels.pop("one")
    hubs.links[0].disconnect()
    await until(lambda: one.closed)
    assert client.closed_with is not None
    assert client.closed_with[0] == 1012
    assert hubs.table.get("one") is None
    assert list(hubs.table) == [two]
    assert kernel.listeners() == 0
    assert hubs.links[0].closed
    assert not hubs.links[1].closed


async def test_the_hub_of_a_vanished_kernel_is_closed(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    kernel = kernels.pop("one")
    await until(lambda: one.closed)
    assert hubs.table.get("one") is None
    assert kernel.listeners() == 0


async def test_a_websocket_does_the_same_work_with_many_kernels(hubs, kernels) -> None:
    for number in range(40):
        kernels[f"kernel {number}"] = FakeKernel(f"kernel {number}")
    asked = []
    for kernel in list(kernels.values()) * 2:
        before = kernels.asked
        hubs.open_for(kernel)
        asked.append(kernels.asked - before)
    assert max(asked) <= 2, asked


async def test_a_new_kernel_under_the_same_id_has_a_new_hub(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    first, second = kernels["one"], FakeKernel("one")
    kernels["one"] = second
    again = hubs.open_for(second)
    assert again is not one
    assert hubs.table["one"] is again
    assert (first.listeners(), second.listeners()) == (0, 2 + len(PORTS))
    await until(lambda: one.closed)
    assert hubs.table["one"] is again
    assert not again.closed


async def test_a_closed_hub_is_no_longer_watched(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    await hubs.close("one")
    await hubs.close("one")
    assert one.closed
    assert kernels["one"].listeners() == 0
    assert hubs.watches() == 0
    assert hubs.open_for(kernels["one"]) is not one, "and may be opened again"


async def test_closing_waits_for_hubs_that_are_closing(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    del kernels["one"]
    hubs.open_for(kernels["two"])
    await hubs.aclose()
    assert one.closed
    with pytest.raises(HubClosed):
        one.attach(MemoryClient(), V1)


async def test_a_kernel_without_known_ports_has_no_hub(hubs, kernels) -> None:
    kernels["one"].shell_port = 0
    with pytest.raises(ValueError, match="shell_port"):
        hubs.open_for(kernels["one"])
    assert len(hubs.table) == hubs.watches() == 0
    assert kernels["one"].listeners() == 0


async def test_a_running_kernel_that_leaves_the_manager_loses_its_hub(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    welcome = build(Channel.IOPUB, "iopub_welcome", {"subscription": ""}, session="k", date="now")
    hubs.links[0].connect()
    hubs.links[0].say(Channel.IOPUB, serialize(welcome, one.signer))
    assert one.ready
    kernels.pop("one")  # without a disconnect of its sockets
    await until(lambda: one.closed)
    assert hubs.table.get("one") is None


async def test_longer_lived_objects_hold_no_request(hubs, kernels) -> None:
    request: contextvars.ContextVar[object] = contextvars.ContextVar("request")

    class Request:
        pass

    made = Request()
    seen = weakref.ref(made)
    context = contextvars.copy_context()
    context.run(request.set, made)
    context.run(hubs.open_for, kernels["one"])
    del context, made
    gc.collect()
    assert seen() is None


async def test_a_kernel_missing_at_one_check_keeps_its_hub(hubs, kernels) -> None:
    one = hubs.open_for(kernels["one"])
    welcome = build(Channel.IOPUB, "iopub_welcome", {"subscription": ""}, session="k", date="now")
    hubs.links[0].say(Channel.IOPUB, serialize(welcome, one.signer))
    kernels.absences, kernels.asked = 1, 0
    await until(lambda: kernels.asked > 5)
    assert not one.closed


async def test_files_end_with_their_kernels_and_with_the_server(kernels, tmp_path) -> None:
    journals = tmp_path / "journals"
    settings = HubSettings(journal_dir=str(journals))
    hubs = JupyterHubs(kernels, HubTable(settings, link=MemoryKernel))
    await asyncio.gather(hubs.open(), hubs.open())
    for name in ("one", "two"):
        hubs.open_for(kernels[name]).announce("starting")
    await until(lambda: all((journals / name / "owner").exists() for name in ("one", "two")))
    await hubs.close("one")
    await until(lambda: not (journals / "one").exists())
    await hubs.aclose()
    assert not journals.exists()


async def test_journals_are_not_opened_after_the_first_hub(kernels, tmp_path) -> None:
    settings = HubSettings(journal_dir=str(tmp_path))
    hubs = JupyterHubs(kernels, HubTable(settings, link=MemoryKernel))
    hubs.open_for(kernels["one"])
    await hubs.open()
    await hubs.aclose()
    assert list(tmp_path.iterdir()) == []
