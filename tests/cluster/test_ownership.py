"""The kernels of one replica: processes that sleep, hubs in memory, an SQLite file."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from kbridge.cluster.membership import Change, Membership
from kbridge.cluster.ownership import Ownership, PlainHubs
from kbridge.cluster.remote_kernels import RemoteKernels
from kbridge.errors import Busy, KernelError, RegistryError
from kbridge.kernels.attached.elsewhere import ElsewhereKernel
from kbridge.kernels.kernel import BridgeKernel
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.processes import start_id
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.cluster_registry import ClusterRegistry
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import (
    ClusterKernel,
    KernelRole,
    KernelRow,
    Owner,
    Replica,
    decode,
    encode,
)
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
from tests.cluster.test_giving import PeersInMemory
from tests.kernels.memory_hubs import MemoryHubs
from tests.kernels.scripted_queue import ScriptedProvisioner
from tests.support.waiting import TIMEOUT, until

# ruff: noqa: ASYNC240 - files of a test are near

LEASE = 600.0
LOG = logging.getLogger("kbridge.test.ownership")
HERE = platform.node()


def replica(name: str, hostname: str = HERE) -> Replica:
    # The other replicas have a process that runs, too.
    pid = os.getpid() if name == "a" else os.getppid()
    return Replica(name, "c", f"http://{name}.example", hostname, pid, start_id(pid), "1.0")


class Rig:
    """The replica `a`, and the rows of another one, `b`."""

    def __init__(self, path: Path, make: Callable[..., BridgeKernelManager], **traits: Any) -> None:
        self.url = f"sqlite:///{path}"
        me = replica("a")
        self.registry = ClusterRegistry(self.url, me)
        self.membership = Membership(self.registry.store, Lease(LEASE), count=1, log=LOG)
        owner = Owner("c", HERE, me.pid, me.start_id)
        self.writer = RegistryWriter(self.registry, owner, retry=0.01)
        self.manager = make(writer=self.writer, lease=self.membership.lease, **traits)
        self.hubs = self.manager.hubs
        plain, peers = PlainHubs(self.hubs), PeersInMemory()
        self.ownership = Ownership(self.membership, self.manager, plain, peers, LOG)
        self.others: list[ClusterStore] = []

    def other(self, name: str = "b", hostname: str = HERE) -> ClusterStore:
        """Return the database as another replica uses it, which has joined."""
        registry = Registry(self.url)
        registry.prepare()
        store = ClusterStore(registry, replica(name, hostname))
        store.join(LEASE)
        self.others.append(store)
        return store

    async def open(self) -> None:
        await self.membership.join()
        await self.manager.adopt("a")
        await self.ownership.open()

    async def settled(self) -> None:
        """Wait until the registry has all rows, and read the view."""
        await self.writer.settled()
        await self.membership.renew()

    def rows(self) -> dict[str, str]:
        return {k.kernel_id: k.replica_id for k in self.registry.store.kernels()}

    def steal(self, store: ClusterStore, kernel_id: str) -> None:
        """Let another replica take a kernel of `a`, as after the end of its lease."""
        rows = {row.replica_id: row for row in store.view().replicas}
        assert store.take(kernel_id, "a", gone=rows["a"]) is not None

    async def aclose(self) -> None:
        await self.ownership.aclose()
        await self.manager.shutdown_all(now=True)
        await self.writer.aclose()
        await self.membership.leave()
        for store in self.others:
            store.registry.close()


@pytest.fixture
async def rig(
    tmp_path: Path,
    make_manager: Callable[..., BridgeKernelManager],
) -> AsyncIterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(**traits: Any) -> Rig:
        made.append(Rig(tmp_path / "registry.sqlite", make_manager, **traits))
        return made[-1]

    yield make
    for each in made:
        await each.aclose()


async def give_to_a_replica_that_ends(rig: Rig, kernel_id: str) -> ClusterStore:
    """Give a kernel to `b`, as a rolling upgrade does; `b.leave()` makes `a` take it again."""
    b = rig.other()
    await rig.settled()
    await rig.manager.transfer.release(kernel_id)
    await rig.hubs.close(kernel_id)
    assert rig.registry.store.give(kernel_id, "b")
    await rig.membership.renew()
    return b


async def test_kernels_that_no_client_knows_are_released_too(
    rig: Callable[..., Rig], fake: Any, fleet: Any, hubs: MemoryHubs
) -> None:
    """A former owner leaves alone what the new owner ends: kernels in a pool, and starting ones."""
    a = rig(pool={fake(): 1})
    await a.open()
    await a.manager.open()
    await until(lambda: "pooled" in {k.role for k in a.manager.index.known}, "a kernel waits")
    [pooled] = a.manager.index.known
    hubs.answering = False
    starting = asyncio.create_task(a.manager.start_kernel(fake("slow")))
    await until(lambda: len(fleet) == 2, "it has a process")
    await until(lambda: len(a.rows()) == 2, "it was recorded")
    await a.settled()
    b = a.other()
    for kernel_id in a.rows():
        a.steal(b, kernel_id)
    await a.membership.renew()
    with pytest.raises(Busy, match="another server"):
        await starting
    await until(lambda: pooled not in a.manager.index.known, "the kernel of the pool was released")
    assert [process.code for process in fleet[:2]] == [None, None]
    assert [process.signals for process in fleet[:2]] == [[], []]
    assert "b" in a.rows().values()
    for file in Path(a.manager.connection_dir).glob("*.json"):
        if a.rows().get(file.stem.removeprefix("kernel-")) != "a":
            file.unlink()


async def test_many_kernels_of_a_replica_that_ended_do_not_hold_the_event_loop_up(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rig()
    await a.open()
    b = a.other()
    names = {f"k{number}" for number in range(30)}
    details = encode({"connection": {"ip": "10.0.0.1", "transport": "tcp"}})
    rows = [KernelRow(name, "python3", "used", 7, "b", "/l", details) for name in names]
    b.write({("kernel", row.kernel_id): row for row in rows})
    await a.membership.renew()
    passes = [0]
    successors = a.membership.successors

    def slow(kernel: ClusterKernel, **silent: bool) -> list[str]:
        if not passes[-1]:
            asyncio.get_running_loop().call_soon(passes.append, 0)
        passes[-1] += 1
        time.sleep(0.001)  # as long as a turn
        return successors(kernel, **silent)

    taken: set[str] = set()

    def take(kernel_ids: list[str], old: str, **_gone: Any) -> list[ClusterKernel]:
        assert old == "b"
        taken.update(kernel_ids)
        return []

    monkeypatch.setattr(a.membership, "successors", slow)
    monkeypatch.setattr(a.membership.store, "take_all", take)
    b.leave()
    await a.membership.renew()
    await until(lambda: taken == names, "all kernels are taken")
    assert set(passes) <= {0, 1}


async def test_a_replica_without_the_output_of_a_kernel_waits_for_those_that_have_it(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may only be slow; it takes the kernel at last, or when there is no other replica."""
    a = rig()
    await a.open()
    b, c = a.other("b"), a.other("c")
    details = encode({"connection": {"ip": "127.0.0.1", "transport": "tcp"}})
    names = ["followed by c", "followed by a"]
    rows = [KernelRow(name, "python3", "used", 7, "b", "/l", details) for name in names]
    b.write({("kernel", row.kernel_id): row for row in rows})
    asked: list[list[str]] = []

    def take(kernel_ids: list[str], old: str, **_gone: Any) -> list[ClusterKernel]:
        assert old == "b"
        asked.append(kernel_ids)
        return []

    monkeypatch.setattr(a.membership, "successors", lambda _kernel, **_silent: ["a", "c"])
    monkeypatch.setattr(a.membership.store, "take_all", take)
    monkeypatch.setattr(
        PlainHubs, "lacks_output", lambda _hubs, kernel, _turn: kernel.kernel_id == names[0]
    )
    await a.membership.renew()
    b.leave()
    await a.membership.renew()
    await until(lambda: bool(asked), "a kernel is taken")
    assert asked == [names[1:]]
    c.leave()
    monkeypatch.setattr(a.membership, "successors", lambda _kernel, **_silent: ["a"])
    await a.membership.renew()
    await until(lambda: names[:1] in asked or names in asked, "no other replica can take it")


async def test_a_replica_that_drains_waits_for_no_kernel_that_it_could_take_later(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rig()
    await a.open()
    b = a.other("b")
    a.other("c")
    details = encode({"connection": {"ip": "127.0.0.1", "transport": "tcp"}})
    b.write({("kernel", "k"): KernelRow("k", "python3", "used", 7, "b", "/l", details)})
    sorted_kernels: list[str] = []

    def lacks(_hubs: PlainHubs, kernel: ClusterKernel, _turn: int) -> bool:
        sorted_kernels.append(kernel.kernel_id)
        return True

    monkeypatch.setattr(PlainHubs, "lacks_output", lacks)
    await a.membership.renew()
    b.leave()
    await a.membership.renew()
    await until(lambda: sorted_kernels == ["k"], "it waits for long")
    async with asyncio.timeout(TIMEOUT):
        await a.ownership.drain(0)
    assert a.rows() == {"k": "b"}


async def test_kernels_that_nobody_can_take_are_sorted_once(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They listen on the loopback address of a machine that is gone."""
    a = rig()
    await a.open()
    b = a.other("b", "far away")
    details = encode({"connection": {"ip": "127.0.0.1", "transport": "tcp"}})
    b.write({("kernel", "k"): KernelRow("k", "python3", "used", 7, "b", "/l", details)})
    b.leave()
    asked: list[str] = []
    successors = a.membership.successors

    def count(kernel: ClusterKernel, **silent: bool) -> list[str]:
        asked.append(kernel.kernel_id)
        return successors(kernel, **silent)

    monkeypatch.setattr(a.membership, "successors", count)
    await a.membership.renew()
    await until(lambda: asked == ["k"], "it was sorted")
    for _ in range(3):
        await a.membership.renew()
        await asyncio.sleep(0)
    assert asked == ["k"]
    a.other("c", "far away")
    await a.membership.renew()
    await until(lambda: asked == ["k", "k"], "another replica may be able to take it")


async def test_a_kernel_whose_row_is_refused_is_released_at_once(
    rig: Callable[..., Rig], fake: Any, fleet: Any, hubs: MemoryHubs
) -> None:
    a = rig()
    await a.open()
    kernel_id = await a.manager.start_kernel(fake())
    client = hubs.kernel(kernel_id).connect_client()
    file = Path(a.manager.get_kernel(kernel_id).connection_file)
    await a.settled()
    a.steal(a.other(), kernel_id)
    a.manager.rename_session(kernel_id, "renamed")
    await until(lambda: client.closed_with is not None, "the websocket is closed")
    assert client.closed_with == (1012, "the server is restarting")
    assert kernel_id not in a.manager.index
    assert not a.writer.has_kernel(kernel_id)
    assert a.membership.kernels[kernel_id].replica_id == "b"
    assert fleet[0].code is None
    file.unlink()


async def test_websockets_of_a_lost_kernel_are_closed_after_any_error(
    rig: Callable[..., Rig], fake: Any, hubs: MemoryHubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = rig()
    await a.open()
    kernel_id = await a.manager.start_kernel(fake())
    client = hubs.kernel(kernel_id).connect_client()
    file = Path(a.manager.get_kernel(kernel_id).connection_file)
    await a.settled()
    a.steal(a.other(), kernel_id)
    release = a.manager.transfer.release

    async def fail(name: str) -> None:
        await release(name)
        raise AttributeError("a defect")

    monkeypatch.setattr(a.manager.transfer, "release", fail)
    await a.membership.renew()
    await until(lambda: client.closed_with is not None, "the websocket is closed")
    file.unlink()


async def test_a_kernel_that_died_before_the_takeover_is_restarted(
    rig: Callable[..., Rig], spec: Any, hubs: MemoryHubs, caplog: pytest.LogCaptureFixture
) -> None:
    a = rig()
    await a.open()
    kernel_id = await a.manager.start_kernel(spec("s"))
    process = psutil.Process(a.manager.get_kernel(kernel_id).process.pid)
    b = await give_to_a_replica_that_ends(a, kernel_id)
    process.kill()
    process.wait()
    b.leave()
    await a.membership.renew()
    await until(lambda: kernel_id in a.manager.index, "it was taken over")
    memory = hubs.kernel(kernel_id)
    memory.connect_client()
    await memory.replaced()
    assert a.manager.get_kernel(kernel_id).process.pid != process.pid
    assert "ended before this replica took it over" in caplog.text
    await memory.told("restarting")
    assert await a.manager.get_kernel(kernel_id).is_alive()
    assert a.rows() == {kernel_id: "a"}


async def test_a_kernel_that_waits_in_a_queue_is_taken_over_with_its_job(
    rig: Callable[..., Rig], queued: Any, hubs: MemoryHubs
) -> None:
    a = rig(queue_grace=0.0)
    await a.open()
    kernel_id = await a.manager.start_kernel(queued())
    b = await give_to_a_replica_that_ends(a, kernel_id)
    assert kernel_id not in a.manager
    b.leave()
    await a.membership.renew()
    await until(lambda: kernel_id in a.manager.index, "it was taken over")
    assert a.manager.model(kernel_id)["execution_state"] == "starting"
    assert a.manager.model(kernel_id)["reason"] == "job 1 waits: Submitted"
    [(_, shown)] = a.ownership.states()
    assert "job 1 waits: Submitted" in shown, "for the other replicas"
    ScriptedProvisioner.created[-1].run()
    await until(lambda: hubs[kernel_id].ready, "it runs")
    assert len(ScriptedProvisioner.jobs) == 1
    await a.settled()
    [row] = a.registry.store.kernels()
    assert decode(row.row.details)["connection"]["shell_port"] == 5000


async def test_a_view_that_is_older_than_the_end_of_a_kernel_revives_nothing(
    rig: Callable[..., Rig], fake: Any, fleet: Any
) -> None:
    """The end is written before the view arrives, so that the writer knows nothing of it."""
    a = rig()
    await a.open()
    kernel_id = await a.manager.start_kernel(fake())
    await a.writer.settled()
    view = a.registry.store.view()
    await a.manager.shutdown_kernel(kernel_id)
    await a.writer.settled()
    assert not a.writer.knows_kernel(kernel_id)
    assert view.kernels[0].kernel_id == kernel_id
    a.membership.kernels[kernel_id] = view.kernels[0]
    a.ownership.on_view(Change(kernels=view.kernels))
    assert list(a.ownership.states()) == []
    await a.ownership.settle(kernel_id)
    await a.settled()
    assert kernel_id not in a.manager.index
    assert kernel_id not in a.membership.kernels
    assert a.rows() == {}
    assert len(fleet) == 1


async def test_a_database_that_has_lost_the_latest_writes_gets_them_again(
    rig: Callable[..., Rig], fake: Any, fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL may lose transactions of a second when it crashes, or its standby takes over."""
    a = rig()
    await a.open()
    name = fake()
    kept, ended = [await a.manager.start_kernel(name) for _ in range(2)]
    await a.settled()
    before = {k.kernel_id: k.row for k in a.registry.store.kernels()}
    await a.manager.shutdown_kernel(ended)
    lost = [replace(before[kept], role=KernelRole.STARTING), before[ended]]

    def fail(*_: Any) -> None:
        raise RegistryError("away")

    with monkeypatch.context() as patch:
        patch.setattr(a.membership.store, "renew", fail)
        await a.membership.renew()
    a.registry.store.write({("kernel", row.kernel_id): row for row in lost})
    assert a.rows() == {kept: "a", ended: "a"}
    await a.settled()
    await a.settled()
    assert {k.kernel_id: k.row for k in a.registry.store.kernels()} == {kept: before[kept]}
    assert len(fleet) == 2, "no kernel was started again"


async def test_an_ended_kernel_is_not_listed_until_the_view_is_newer(
    rig: Callable[..., Rig], fake: Any
) -> None:
    a = rig()
    await a.open()
    others = RemoteKernels(a.membership, PeersInMemory())
    others.wait_for(a.ownership)
    kernel_id = await a.manager.start_kernel(fake())
    await a.settled()
    assert [kernel.kernel_id for kernel in others] == [kernel_id]
    await a.manager.shutdown_kernel(kernel_id)
    assert a.membership.kernels.keys() == {kernel_id}
    assert list(others) == []
    await a.writer.settled()
    assert list(others) == []


@pytest.mark.parametrize("step", ["promote", "serve"])
async def test_a_kernel_is_tried_again_after_an_error_that_nobody_expects(
    rig: Callable[..., Rig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    monkeypatch.setattr("kbridge.cluster.ownership._LONGEST_DELAY", 0.0)
    a = rig()
    await a.open()
    owner = PlainHubs if step == "promote" else type(a.manager.transfer)
    work, failed = getattr(owner, step), list[Any]()

    async def fail(self: Any, kernel: ClusterKernel, **options: Any) -> Any:
        if not failed:
            failed.append(kernel.kernel_id)
            raise AttributeError("a defect")
        return await work(self, kernel, **options)

    monkeypatch.setattr(owner, step, fail)
    far = a.other("b", "far away")
    far.write({("kernel", "k"): remote_row()})
    far.leave()
    async with asyncio.timeout(TIMEOUT):
        while "k" not in a.manager.index:
            await a.membership.renew()
    assert failed == ["k"]
    assert "Kernel k is not served yet: a defect" in caplog.text
    assert "Traceback" in caplog.text
    await a.manager.shutdown_kernel("k")


@pytest.mark.parametrize("failures", [2, 4])
async def test_an_adoption_that_fails_is_tried_again_and_at_last_served_by_messages(
    rig: Callable[..., Rig],
    spec: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failures: int,
) -> None:
    monkeypatch.setattr("kbridge.cluster.ownership._LONGEST_DELAY", 0.0)
    a = rig()
    await a.open()
    kernel_id = await a.manager.start_kernel(spec("s"))
    manager = a.manager.get_kernel(kernel_id)
    file, process = Path(manager.connection_file), psutil.Process(manager.process.pid)
    b = await give_to_a_replica_that_ends(a, kernel_id)
    adopt, attempts = BridgeKernel.adopt, list[Any]()

    async def fail(manager: BridgeKernel, *arguments: Any) -> bool:
        attempts.append(manager.kernel_id)
        if len(attempts) <= failures:
            raise KernelError("too few file descriptors")
        return await adopt(manager, *arguments)

    monkeypatch.setattr(BridgeKernel, "adopt", fail)
    b.leave()
    async with asyncio.timeout(TIMEOUT):
        while kernel_id not in a.manager.index:
            await a.membership.renew()
    assert caplog.text.count("is not served yet: too few") == failures
    if failures == 2:
        assert attempts == [kernel_id] * 3
        assert a.manager.get_kernel(kernel_id).process.pid == process.pid
    else:
        assert attempts == [kernel_id] * 4
        assert isinstance(a.manager.index.get(kernel_id), ElsewhereKernel)
        await a.manager.shutdown_kernel(kernel_id)
        process.kill()
        file.unlink()


async def test_a_kernel_is_given_to_a_replica_on_its_machine(
    rig: Callable[..., Rig], hubs: MemoryHubs
) -> None:
    a = rig()
    far = a.other("b", "far away")
    far.write({("kernel", "k"): remote_row()})
    far.leave()
    await a.open()
    await until(lambda: "k" in a.manager.index, "it was taken over, and is served by messages")
    client = hubs.kernel("k").connect_client()
    a.other("c", "far away")
    await a.membership.renew()
    await until(lambda: "k" not in a.manager.index, "it was given away")
    await until(lambda: a.membership.kernels["k"].replica_id == "c", "the view has it")
    await until(lambda: client.closed_with is not None, "the websocket is closed")
    assert client.closed_with == (1012, "the server is restarting")
    assert a.rows() == {"k": "c"}


def remote_row() -> KernelRow:
    names = ("shell", "iopub", "stdin", "hb", "control")
    info = {f"{name}_port": port for port, name in enumerate(names, 5000)}
    info |= {"ip": "10.0.0.1", "transport": "tcp", "key": b"k", "signature_scheme": "hmac-sha256"}
    return KernelRow("k", "python3", "used", 7, "b", "/l", encode({"connection": info}))
