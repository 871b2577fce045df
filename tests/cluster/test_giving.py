"""A replica that gives its kernels away: real processes and databases, links in memory."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from tornado.httputil import HTTPHeaders

from kbridge.cluster.membership import Membership
from kbridge.cluster.ownership import Ownership
from kbridge.cluster.peers import PeerReply, Peers
from kbridge.cluster.takeover import ReplicaHubs
from kbridge.errors import KbridgeError, Misdirected, RegistryError, ReplicaUnreachable
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.processes import start_id
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.cluster_registry import ClusterRegistry
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import Replica
from kbridge.kernels.registry.registry import Registry
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.wire.build import build
from kbridge.wire.message import Channel
from tests.cluster.rig import LEASE, LOG, read_handover
from tests.support.waiting import TIMEOUT


def replica(name: str, pid: int = 0) -> Replica:
    pid = pid or os.getpid()
    return Replica(name, "c", "http://x/", platform.node(), pid, start_id(pid), "1")


class PeersInMemory(Peers):
    """The other replica, which serves a kernel once it is asked for it."""

    def __init__(self) -> None:
        super().__init__("secret")
        self.error: KbridgeError | None = None
        self.asked: list[tuple[str, str, str]] = []
        self.on_request: Callable[[], None] = lambda: None

    async def request(self, replica: Replica, method: str, path: str, **_: Any) -> PeerReply:
        self.asked.append((replica.replica_id, method, path))
        self.on_request()
        if self.error is not None:
            raise self.error
        return PeerReply(200, HTTPHeaders())


class Rig:
    """A replica with a kernel, and the row of another replica."""

    def __init__(self, path: Path, hubs: Any) -> None:
        url = f"sqlite:///{path / 'registry.sqlite'}"
        registry = ClusterRegistry(url, replica("a"))
        self.writer = RegistryWriter(registry, retry=0.01, timeout=0.2)
        self.membership = Membership(registry.store, Lease(LEASE), count=1, log=LOG)
        self._table = hubs
        self.kernels = BridgeKernelManager(
            hubs=hubs,
            writer=self.writer,
            lease=self.membership.lease,
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(path / "specs")]),
            connection_dir=str(path),
            root_dir=str(path),
        )
        self.hubs = ReplicaHubs(self.membership, hubs, LOG)
        self.peers = PeersInMemory()
        self.ownership = Ownership(self.membership, self.kernels, self.hubs, self.peers, LOG)
        self._database = Registry(url)
        # Its process is not this one: that would be the program before a restart.
        self.other = ClusterStore(self._database, replica("b", os.getppid()))

    async def open(self) -> None:
        self._database.prepare()
        self.other.join(LEASE)
        await self.membership.join()
        await self.kernels.adopt()
        await self.ownership.open()

    async def aclose(self) -> None:
        await self.ownership.aclose()
        await self.hubs.aclose()
        await self.kernels.shutdown_all()  # as with shutdown_kernels_on_exit
        await self._table.aclose()
        await self.writer.aclose()
        await self.membership.leave()
        self._database.close()

    def owner(self, kernel_id: str) -> str:
        kernel = self.other.kernel(kernel_id)
        assert kernel is not None
        return kernel.replica_id


@pytest.fixture
async def rig(tmp_path: Path, hubs: Any) -> AsyncIterator[Rig]:
    made = Rig(tmp_path, hubs)
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
def processes(rig: Rig) -> Iterator[list[int]]:
    """The processes of kernels, which are ended after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        os.kill(pid, 9)


@pytest.fixture
async def kernel_id(rig: Rig, spec: Any, processes: list[int]) -> str:
    """A kernel, whose process is a child of the test."""
    kernel_id = await rig.kernels.start_kernel(spec("s"))
    processes.append(rig.kernels.index.pids()[kernel_id])
    return str(kernel_id)


def runs(pid: int) -> bool:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    "error", [None, Misdirected("an older version"), ReplicaUnreachable("no answer")]
)
async def test_a_kernel_is_given(
    rig: Rig, kernel_id: str, processes: list[int], hubs: Any, error: KbridgeError | None
) -> None:
    """The new owner is told before the websockets are closed."""
    client = hubs.kernel(kernel_id).connect_client()
    seen: list[tuple[str, Any]] = []
    rig.peers.on_request = lambda: seen.append((rig.owner(kernel_id), client.closed_with))
    rig.peers.error = error
    await rig.ownership.drain(0)
    assert rig.peers.asked == [("b", "GET", f"api/kernels/{kernel_id}")]
    assert seen == [("b", None)]
    assert client.closed_with == (1012, "the server is restarting")
    assert rig.owner(kernel_id) == "b"
    assert kernel_id not in rig.kernels
    await rig.aclose()
    assert runs(processes[0])


def fail(*_args: Any) -> Any:
    raise RegistryError("down")


async def nothing_written(*_args: Any) -> bool:
    return False


# The replaced functions, and True if this replica then serves the kernel until it ends.
FAULTS = {
    "give": ({"membership.store.give": fail}, True),
    "give and read": (
        {"membership.store.give": fail, "membership.store.kernel": fail},
        False,
    ),
    "write a row": ({"writer.settled": nothing_written}, True),
    "write the state of clients": ({"membership.store.put_changes": fail}, True),
    "any": (
        dict.fromkeys(
            [f"membership.store.{n}" for n in ("give", "view", "renew", "drain", "put_changes")],
            fail,
        ),
        True,
    ),
    "a fault of ours": ({"hubs.hand_over": lambda _: 1 / 0}, True),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_kernel_that_cannot_be_given_is_served_and_left_running(
    rig: Rig,
    kernel_id: str,
    processes: list[int],
    fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names, served = FAULTS[fault]
    with ExitStack() as stack:
        for name, instead in names.items():
            owner, _, attribute = name.rpartition(".")
            target: Any = rig
            for part in owner.split("."):
                target = getattr(target, part)
            stack.enter_context(patch.object(target, attribute, instead))
        await rig.ownership.drain(0)
        assert (kernel_id in rig.kernels) is served
        assert f"Kernel {kernel_id} could not be given" in caplog.text
        assert rig.owner(kernel_id) == "a"
    await rig.aclose()
    assert runs(processes[0])
    assert rig.owner(kernel_id) == "a"


@pytest.mark.parametrize("given", [True, False])
async def test_an_error_of_the_database_does_not_say_whether_a_kernel_was_given(
    rig: Rig, kernel_id: str, given: bool, caplog: pytest.LogCaptureFixture
) -> None:
    give = rig.membership.store.give
    calls: list[str] = []

    def fail_once(kernel: str, new: str) -> bool:
        calls.append(new)
        done = len(calls) > 1 or given
        result = done and give(kernel, new)
        if len(calls) == 1:
            fail()
        return result

    with patch.object(rig.membership.store, "give", fail_once):
        await rig.ownership.drain(0)
    assert len(calls) == (1 if given else 2)
    assert rig.owner(kernel_id) == "b"
    assert kernel_id not in rig.kernels
    assert "could not be given" not in caplog.text


async def test_without_another_replica_the_kernel_ends(
    rig: Rig, kernel_id: str, processes: list[int]
) -> None:
    rig.other.leave()
    await rig.ownership.drain(0)
    assert kernel_id in rig.kernels
    processes.clear()
    await rig.aclose()
    assert rig.other.kernel(kernel_id) is None


def ask(rig: Rig, kernel_id: str) -> str:
    """Let the first websocket send a request; return its id."""
    hub = rig.kernels.hubs[kernel_id]
    request = build(Channel.SHELL, "execute_request", {"code": "1"}, session="s", date="")
    hub.submit(hub.cursors[0], request)
    return request.msg_id


def asked(rig: Rig, kernel_id: str) -> list[str]:
    return [each.msg_id for each in rig.kernels.hubs[kernel_id].executions.find()]


async def test_requests_during_the_handover_do_not_reach_the_kernel(
    rig: Rig, kernel_id: str, hubs: Any
) -> None:
    client = hubs.kernel(kernel_id).connect_client()
    rig.hubs.writer.open()
    before = ask(rig, kernel_id)
    seen: list[list[str]] = []

    def on_request() -> None:
        ask(rig, kernel_id)
        seen.append(asked(rig, kernel_id))

    rig.peers.on_request = on_request
    await rig.ownership.drain(0)
    assert seen == [[before]]
    written = read_handover(rig.other, kernel_id)
    assert [each.execution.msg_id for each in written.requests()] == [before]
    assert client.closed_with == (1012, "the server is restarting")


@pytest.mark.parametrize("fault", ["give", "put_changes", "drains"])
async def test_requests_are_sent_when_the_kernel_was_not_given(
    rig: Rig, kernel_id: str, hubs: Any, fault: str
) -> None:
    hubs.kernel(kernel_id).connect_client()
    store, sent = rig.membership.store, []

    def refuse(*_args: Any) -> Any:
        loop.call_soon_threadsafe(lambda: sent.append(ask(rig, kernel_id)))
        if fault != "drains":
            fail()
        return False

    loop = asyncio.get_running_loop()
    with patch.object(store, "give" if fault == "drains" else fault, refuse):
        await rig.ownership.drain(0)
    assert kernel_id in rig.kernels
    assert sent
    assert asked(rig, kernel_id) == sent


async def test_a_lost_kernel_gets_no_more_requests(rig: Rig, kernel_id: str, hubs: Any) -> None:
    client = hubs.kernel(kernel_id).connect_client()
    assert rig.membership.store.give(kernel_id, "b")
    hub = rig.kernels.hubs[kernel_id]
    await rig.membership.renew()  # which learns that
    ask(rig, kernel_id)
    assert not hub.executions.find()
    await rig.ownership.settle(kernel_id)
    assert client.closed_with == (1012, "the server is restarting")


async def test_kernels_are_given_together_and_a_silent_replica_is_not_told_more(
    rig: Rig, spec: Any, processes: list[int]
) -> None:
    """Eight at the same time; the last two are not told to the replica that did not answer."""
    spec("s")
    for _ in range(10):
        kernel_id = await rig.kernels.start_kernel("s")
        processes.append(rig.kernels.index.pids()[kernel_id])
    kernel_ids = rig.kernels.list_kernel_ids()
    waiting: list[asyncio.Future[None]] = []
    all_wait = asyncio.Event()

    async def request(*_args: Any, **_more: Any) -> Any:
        waiting.append(asyncio.get_running_loop().create_future())
        if len(waiting) == 8:
            all_wait.set()
        await waiting[-1]

    with patch.object(rig.peers, "request", request):
        drained = asyncio.ensure_future(rig.ownership.drain(0))
        async with asyncio.timeout(TIMEOUT):
            await all_wait.wait()
        assert len(rig.kernels.list_kernel_ids()) == 2
        for each in waiting:
            each.set_exception(ReplicaUnreachable("no answer"))
        await drained
    assert len(waiting) == 8
    assert {rig.owner(kernel_id) for kernel_id in kernel_ids} == {"b"}
