"""Kernels of other replicas, found in a view of the cluster."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders

from kbridge.cluster.peers import PeerReply, Peers
from kbridge.cluster.remote_kernel import shown_state
from kbridge.cluster.remote_kernels import RemoteKernels
from kbridge.errors import (
    Busy,
    KernelError,
    KernelNotFound,
    KernelStartError,
    NotSupported,
    ReplicaUnreachable,
)
from kbridge.kernels.registry.models import KernelRole, Replica
from tests.support.cluster_view import FixedView, kernel_of, replica_at

MODEL = {
    "id": "a-kernel",
    "name": "python3",
    "last_activity": "2030-01-01T00:00:00.000000Z",
    "execution_state": "busy",
    "connections": 3,
}


class Answering(Peers):
    """Gives one status and message to every request."""

    def __init__(self, status: int = 204, message: str = "") -> None:
        super().__init__("secret")
        self.status, self.message = status, message
        self.asked: list[tuple[str, str, str]] = []

    async def request(self, replica: Replica, method: str, path: str, **_: Any) -> PeerReply:
        self.asked.append((replica.replica_id, method, path))
        return PeerReply(self.status, HTTPHeaders(), json.dumps({"message": self.message}).encode())


@pytest.fixture
def view() -> FixedView:
    return FixedView(replica_at("http://other/"))


def kernels(view: FixedView, peers: Peers | None = None) -> RemoteKernels:
    return RemoteKernels(view, peers or Answering())


async def test_the_model_is_what_the_owner_has_written(view: FixedView) -> None:
    view.put(kernel_of("other", state=shown_state(MODEL)))
    others = kernels(view)
    found = others.get("a-kernel")
    assert found is not None
    assert found.model() == MODEL
    assert found.execution_state() == "busy"
    assert found.reason == ""
    waits = {**MODEL, "execution_state": "starting", "reason": "job 1 waits: Priority"}
    view.put(kernel_of("other", state=shown_state(waits)))
    found = others.get("a-kernel")
    assert found is not None
    assert found.model() == waits
    assert found.reason == "job 1 waits: Priority"
    view.put(kernel_of("other", state=shown_state(MODEL)))
    view.put(kernel_of("other", "new"))
    assert others.models(set()) == [
        MODEL,
        {
            "id": "new",
            "name": "python3",
            "last_activity": "1970-01-01T00:00:00.000000Z",
            "execution_state": "unknown",
            "connections": 0,
        },
    ]
    assert [model["id"] for model in others.models({"new"})] == ["a-kernel"]


async def test_only_kernels_in_use_are_shown(view: FixedView) -> None:
    view.put(
        kernel_of("other", "starting", role=KernelRole.STARTING),
        kernel_of("other", "pooled", role=KernelRole.POOLED),
        kernel_of("self", "mine"),
        kernel_of("left", "without a replica"),
    )
    others = kernels(view)
    assert [kernel.kernel_id for kernel in others] == ["mine", "without a replica"]
    assert others.get("starting") is others.get("pooled") is others.get("unknown") is None


class EndedHere:
    """Says that this replica has ended a kernel."""

    async def settle(self, kernel_id: str) -> None:
        raise AssertionError(kernel_id)

    def has_ended(self, kernel_id: str) -> bool:
        return kernel_id == "ended"


async def test_the_list_has_kernels_of_this_replica_that_it_does_not_serve(view: FixedView) -> None:
    """They were given to it just now, or are being given away; ended ones are left out."""
    view.put(*(kernel_of("self", name) for name in ("given", "served", "ended")))
    view.put(kernel_of("other", "elsewhere"))
    others = kernels(view)
    others.wait_for(EndedHere())
    assert [model["id"] for model in others.models({"served"})] == ["given", "elsewhere"]
    assert others.get("given") is not None
    assert others.get("ended") is None


async def test_the_database_is_asked_for_what_is_not_known(view: FixedView) -> None:
    others = kernels(view)
    view.on_refresh = lambda: view.put(kernel_of("other"))
    assert await others.find("a-kernel") is not None
    assert await others.find("a-kernel") is not None
    assert view.refreshed == 1
    assert await others.find("a-kernel", fresh=True) is not None
    assert view.refreshed == 2
    assert await others.find("unknown") is None
    assert view.refreshed == 3


async def test_operations_go_to_the_owner(view: FixedView) -> None:
    view.put(kernel_of("other", "a/b"))
    peers = Answering()
    found = kernels(view, peers).get("a/b")
    assert found is not None
    await found.interrupt()
    await found.restart()
    assert not found.ended
    await found.shutdown()
    assert found.ended
    found.update_env({"A": "b"})
    found.abandon()
    await found.leave()
    path = "api/kernels/a%2Fb"
    assert peers.asked == [
        ("other", "POST", f"{path}/interrupt"),
        ("other", "POST", f"{path}/restart"),
        ("other", "DELETE", path),
    ]
    assert found.hub is found.cull_metadata is None
    assert (found.outlives_server, found.connections_stay, found.counts_toward_limit) == (
        True,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("status", "error", "of_restart"),
    [
        (404, KernelNotFound, KernelNotFound),
        (501, NotSupported, NotSupported),
        (503, Busy, Busy),
        (500, KernelError, KernelStartError),
    ],
)
async def test_errors_of_the_owner(view: FixedView, status, error, of_restart) -> None:
    view.put(kernel_of("other"))
    found = kernels(view, Answering(status, "it says why")).get("a-kernel")
    assert found is not None
    for work, kind in (
        (found.interrupt, error),
        (found.shutdown, error),
        (found.restart, of_restart),
    ):
        with pytest.raises(kind, match="it says why") as raised:
            await work()
        assert type(raised.value) is kind
    assert not found.ended


async def test_a_kernel_that_is_handed_over_cannot_be_asked(view: FixedView) -> None:
    view.put(kernel_of("left"))
    found = kernels(view).get("a-kernel")
    assert found is not None
    with pytest.raises(ReplicaUnreachable, match="handed over"):
        await found.interrupt()


async def test_the_end_of_the_journal_is_not_part_of_the_rest_model(view: FixedView) -> None:
    view.put(kernel_of("other", state=shown_state(MODEL, "a message")))
    assert kernels(view).models(set()) == [MODEL]
