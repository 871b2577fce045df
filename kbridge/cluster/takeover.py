"""Keeps the hub of a kernel in step with the owner of the kernel.

When this replica takes a kernel, the hub that has followed it becomes the one that serves it. If
this replica has not followed the kernel, its hub is opened now, and output of the time before is
missing.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import islice
from typing import Final

from kbridge.cluster.follow import Followers, connection_of, is_followed, is_waiting
from kbridge.cluster.membership import Change, Membership
from kbridge.cluster.ownership import PlainHubs
from kbridge.cluster.state_writer import StateWriter, read_handovers
from kbridge.errors import KernelError, RegistryError
from kbridge.flow.handover import Handover
from kbridge.hub.table import HubTable
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import ClusterKernel, decode
from kbridge.storage.workers import Workers

__all__ = ["ReplicaHubs"]

_TOGETHER: Final = 20  # kernels whose states are read together


class _HandoverReader:
    """Reads the states of kernels, and of those that are taken together in few transactions.

    A separate thread reads, so that many kernels do not wait for other calls of the database. The
    only time limits are those of the database: another one would count the time in the queue, too.
    """

    def __init__(self, store: ClusterStore) -> None:
        self._store = store
        self._workers = Workers(1, "kbridge-takeover")
        self._wanted: dict[str, tuple[bytes, ...]] = {}
        self._found: dict[str, Handover | RegistryError] = {}
        self._reading = asyncio.Lock()

    async def read(self, kernel_id: str, identities: tuple[bytes, ...]) -> Handover:
        """Return the state of a kernel; see `read_handovers`."""
        self._wanted[kernel_id] = identities
        try:
            async with self._reading:
                if kernel_id not in self._found:
                    await self._read_next(kernel_id)
                found = self._found[kernel_id]
        finally:
            self._wanted.pop(kernel_id, None)
            self._found.pop(kernel_id, None)
        if isinstance(found, RegistryError):
            raise found
        return found

    async def _read_next(self, kernel_id: str) -> None:
        """Read the states of a kernel and of others that wait."""
        await asyncio.sleep(0)  # kernels that are taken together ask in the same pass of the loop
        names = dict.fromkeys((kernel_id, *islice(self._wanted, _TOGETHER)))
        chosen = {name: self._wanted.pop(name) for name in [*names][:_TOGETHER]}
        try:
            self._found |= await self._workers.call(lambda: read_handovers(self._store, chosen))
        except RegistryError as error:
            # The others would wait for the same error, one after the other.
            self._found |= dict.fromkeys((*chosen, *self._wanted), error)
            self._wanted.clear()

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._workers.close()


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
        self._reader = _HandoverReader(membership.store)
        self.writer = StateWriter(membership.store, hubs, log)
        hubs.replicate(self.writer)

    async def open(self) -> None:
        """Go on with the kernels of the start, then write their state and follow others.

        Call it after these kernels were adopted, and before a websocket is attached.
        """
        kernels = []
        for hub in self._hubs:
            kernel = self._membership.kernels.get(hub.kernel_id)
            kernels.append(kernel or await self._membership.fetch(hub.kernel_id))
        await asyncio.gather(*(self.promote(kernel) for kernel in kernels if kernel is not None))
        self.writer.open()
        self.followers.open()

    async def aclose(self) -> None:
        """Write the last state, and follow no more. May be called twice."""
        await self.writer.aclose()
        await self.followers.aclose()
        self._reader.close()

    def lacks_output(self, kernel: ClusterKernel, turn: int) -> bool:
        """Return True unless this replica follows a kernel, and not only since others are silent.

        Kernels that nobody follows have no output that another replica could have.
        """
        count = self._membership.follower_count
        follows = kernel.kernel_id in self._hubs.followed and turn < count
        return count > 0 and not follows and is_followed(kernel)

    async def promote(self, kernel: ClusterKernel) -> None:
        """Let the hub of a kernel serve it; `HubTable.open` returns that hub then.

        Call it after the kernel was taken in the database, and before a websocket is attached. If
        the state in the database cannot be read, sessions begin at the beginning of the journal.
        """
        kernel_id, info = kernel.kernel_id, connection_of(kernel)
        if info is None and not is_waiting(kernel):
            return  # the kernel was starting; its adoption finds out
        recorded = tuple(decode(kernel.row.details).get("identities") or ())
        try:
            handover = await self._reader.read(kernel_id, recorded)
        except RegistryError as error:
            self._log.warning(
                "Kernel %s is taken over without the places of its clients, which may receive"
                " output twice: %s",
                kernel_id,
                error,
            )
            handover = Handover(identities=recorded)
        joined = self.followers.taken(kernel_id)
        try:
            await self._hubs.take_over(kernel_id, info, handover, joined)
        except (KernelError, ValueError, TypeError) as error:
            self._log.warning("Kernel %s cannot be reached: %s", kernel_id, error)

    def hold(self, kernel_id: str) -> None:
        """Hold the requests of clients to a kernel back."""
        self._plain.hold(kernel_id)

    def resume(self, kernel_id: str) -> None:
        """Send the requests that were held back."""
        self._plain.resume(kernel_id)

    async def hand_over(self, kernel_id: str) -> None:
        """Write the state of a kernel, before it gets another owner."""
        if not await self.writer.write_kernel(kernel_id):
            raise RegistryError("The state of its clients cannot be written for the next owner")

    async def demote(self, kernel_id: str) -> None:
        """Close the hub of a kernel that another replica serves; follow the kernel if need be."""
        await self._plain.demote(kernel_id)
        kernel = self._membership.kernels.get(kernel_id)
        if kernel is not None:
            self.followers.on_view(Change((kernel,)))
