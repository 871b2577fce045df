"""Two replicas with an SQLite file, and kernels in memory."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kbridge.cluster.membership import Membership
from kbridge.cluster.state_writer import read_handovers
from kbridge.flow.handover import Handover
from kbridge.hub.table import HubTable
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import ClusterKernel, KernelRow, Replica, encode
from kbridge.kernels.registry.registry import Registry
from kbridge.link.memory import MemoryKernel
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import serialize
from tests.hub.rig import INFO, KEY

LEASE = 600.0
LOG = logging.getLogger("test")
SIGNER = Signer(KEY)


def kernel_row(name: str = "k", **fields: Any) -> KernelRow:
    info = fields.pop("connection", INFO)
    # A kernel that waits in a queue has no connection.
    address = {"waiting": True} if info is None else {"connection": info}
    details = encode({**address, "identities": [b"old"]})
    usual = {"kernel_name": "python3", "role": "used", "pid": 7, "start_id": "b", "log_path": "/l"}
    return KernelRow(**{"kernel_id": name, "details": details, **usual, **fields})


def message(
    channel: Channel, msg_type: str, content: dict[str, Any], parent: bytes = b"{}"
) -> Message:
    return build(channel, msg_type, content, session="k", date="", parent_header=parent)


def line(text: str, parent: bytes = b"{}") -> Message:
    return message(Channel.IOPUB, "stream", {"name": "stdout", "text": text}, parent)


def read_handover(
    store: ClusterStore, kernel_id: str, identities: tuple[bytes, ...] = ()
) -> Handover:
    """Return the state of a kernel that its owner has written."""
    return read_handovers(store, {kernel_id: identities})[kernel_id]


class ReplicaRig:
    """One replica."""

    def __init__(self, path: Path, name: str) -> None:
        self.registry = Registry(f"sqlite:///{path}")
        self.registry.prepare()
        self.store = ClusterStore(
            self.registry, Replica(name, "c", f"http://{name}", "here", 7, "start", "1.0")
        )
        self.store.join(LEASE)
        self.membership = Membership(self.store, Lease(LEASE), count=1, log=LOG)
        self.links: list[MemoryKernel] = []
        self.hubs = HubTable(link=self._link)

    def _link(self, endpoints: Any, events: Any, identity: bytes) -> MemoryKernel:
        self.links.append(MemoryKernel(endpoints, events, identity))
        return self.links[-1]

    def take(self, kernel_id: str, old: str) -> ClusterKernel | None:
        """Take a kernel of a replica whose process has ended."""
        rows = {replica.replica_id: replica for replica in self.store.view().replicas}
        return self.store.take(kernel_id, old, gone=rows.get(old))

    def kernels(self) -> dict[str, ClusterKernel]:
        return {each.kernel_id: each for each in self.store.kernels()}

    async def see(self) -> None:
        """Read the view of the cluster."""
        await self.membership.renew()

    def put(self, *rows: KernelRow) -> None:
        self.store.write({("kernel", row.kernel_id): row for row in rows})

    def say(self, *messages: Message) -> None:
        """Let the latest kernel send messages to this replica, all on one channel."""
        link = self.links[-1]
        link.connect()
        link.say(messages[0].channel, *(serialize(m, SIGNER) for m in messages))


@asynccontextmanager
async def replicas(path: Path) -> AsyncIterator[tuple[ReplicaRig, ReplicaRig]]:
    """Two replicas that share a database."""
    both = ReplicaRig(path / "registry.sqlite", "a"), ReplicaRig(path / "registry.sqlite", "b")
    for each in both:
        await each.membership.join()
    for each in both:
        await each.see()
    try:
        yield both
    finally:
        for each in both:
            await each.hubs.aclose()
            await each.membership.leave()
            each.registry.close()


def other_ports(**ports: int) -> dict[str, Any]:
    return {**INFO, **ports}
