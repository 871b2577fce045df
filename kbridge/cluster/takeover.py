"""Keeps the hub of a kernel in step with the owner of the kernel.

When this replica takes a kernel, the hub that has followed it becomes the one that serves it. If
this replica has not followed the kernel, its hub is opened now, and output of the time before is
missing.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from kbridge.cluster.follow import Followers, connection_of
from kbridge.cluster.membership import Change, Membership
from kbridge.cluster.ownership import PlainHubs
from kbridge.cluster.state_writer import StateWriter, read_handover
from kbridge.errors import KernelError, RegistryError
from kbridge.flow.handover import Handover
from kbridge.hub.table import HubTable
from kbridge.kernels.registry.models import ClusterKernel, decode

__all__ = ["ReplicaHubs"]

_TIMEOUT: Final = 2.0  # seconds for the database, which has answered just before


class ReplicaHubs:
    """The hubs of a replica (a `ClusterHubs`): those that serve, and those that follow.

    Parameters
    ----------
    membership : Membership
        The view of the cluster.
    hubs : HubTable
        The hubs.
    log : logging.Logger
        The logger.

    Attributes
    ----------
    followers : Followers
        The kernels that this replica follows.
    writer : StateWriter
        Writes the state of the kernels that it serves.
    """

    def __init__(self, membership: Membership, hubs: HubTable, log: logging.Logger) -> None:
        self._membership = membership
        self._hubs = hubs
        self._log = log
        self._plain = PlainHubs(hubs)
        self.followers = Followers(membership, hubs, log)
        self.writer = StateWriter(membership.store, hubs, log)
        hubs.replicate(self.writer)

    async def open(self) -> None:
        """Go on with the kernels of the start, then write their state and follow others.

        Call it after these kernels were adopted, and before a websocket is attached.
        """
        for hub in self._hubs:
            kernel = self._membership.kernels.get(hub.kernel_id)
            if kernel is None:
                kernel = await self._membership.fetch(hub.kernel_id)
            if kernel is not None:
                await self.promote(kernel)
        self.writer.open()
        self.followers.open()

    async def aclose(self) -> None:
        """Write the last state, and follow no more. May be called twice."""
        await self.writer.aclose()
        await self.followers.aclose()

    async def promote(self, kernel: ClusterKernel) -> None:
        """Let the hub of a kernel serve it; `HubTable.open` returns that hub then.

        Call it after the kernel was taken in the database, and before a websocket is attached. If
        the state in the database cannot be read, sessions begin at the beginning of the journal.
        """
        kernel_id, info = kernel.kernel_id, connection_of(kernel)
        if info is None:
            return  # the kernel was starting; its adoption finds out
        recorded = tuple(decode(kernel.row.details).get("identities") or ())
        try:
            async with asyncio.timeout(_TIMEOUT):
                handover = await self._membership.call(
                    partial(read_handover, self._membership.store, kernel_id, recorded)
                )
        except (RegistryError, TimeoutError) as error:
            self._log.warning(
                "Kernel %s is taken over without the places of its clients, which may receive"
                " output twice: %s",
                kernel_id,
                error if isinstance(error, RegistryError) else "the database does not answer",
            )
            handover = Handover(identities=recorded)
        joined = self.followers.taken(kernel_id)
        try:
            await self._hubs.take_over(kernel_id, info, handover, joined)
        except (KernelError, ValueError, TypeError) as error:
            self._log.warning("Kernel %s cannot be reached: %s", kernel_id, error)

    async def hand_over(self, kernel_id: str) -> None:  # noqa: ARG002
        """Write the state of the kernels, before one of them gets another owner."""
        if not await self.writer.write():
            raise RegistryError("The state of its clients cannot be written for the next owner")

    async def demote(self, kernel_id: str) -> None:
        """Close the hub of a kernel that another replica serves; follow the kernel if need be."""
        await self._plain.demote(kernel_id)
        kernel = self._membership.kernels.get(kernel_id)
        if kernel is not None:
            self.followers.on_view(Change((kernel,)))
