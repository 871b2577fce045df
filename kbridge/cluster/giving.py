"""Gives the kernels of a replica that is about to end to other replicas.

Invariants:

- a kernel is released before it is given: two replicas never act for it;
- the state for the next owner has all requests that the kernel has received: those that clients
  send from then on are held back, and are dropped with the websockets, or sent if the kernel stays;
- a kernel that could not be given does not end with this replica. It is served until then, unless
  the database cannot say which replica owns it, and is left for the next start or another replica.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final, Protocol

from kbridge.cluster.membership import Membership
from kbridge.cluster.peers import Peers
from kbridge.cluster.protocol import api_path
from kbridge.errors import KbridgeError, Misdirected, RegistryError, ReplicaUnreachable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import ClusterKernel

__all__ = ["ClusterHubs", "Giver"]

_AT_ONCE: Final = 8  # kernels that are given at the same time
_TELL_SECONDS: Final = 2.0
_SILENT_SECONDS: Final = 10.0  # a replica that did not answer is not told anything for so long


class ClusterHubs(Protocol):
    """Keeps the hub of a kernel in step with the owner of the kernel."""

    def lacks_output(self, kernel: ClusterKernel, turn: int) -> bool:
        """Return True if others may have output of a kernel that this replica has not.

        Parameters
        ----------
        kernel : ClusterKernel
        turn : int
            The number of replicas that come before this one in the order of the kernel.
        """

    async def promote(self, kernel: ClusterKernel) -> None:
        """Let the hub that follows the kernel, if there is one, serve it; before it is adopted."""

    def hold(self, kernel_id: str) -> None:
        """Hold the requests of clients back, until `resume` or `demote`."""

    def resume(self, kernel_id: str) -> None:
        """Send the requests that were held back; no effect if there are none."""

    async def hand_over(self, kernel_id: str) -> None:
        """Write what the next owner needs, before it gets the kernel; call `hold` before.

        Raises
        ------
        RegistryError
            If it cannot be written.
        """

    async def demote(self, kernel_id: str) -> None:
        """Close the websockets of a kernel that another replica serves, with SERVICE_RESTART."""


class Giver:
    """Gives kernels to other replicas.

    Parameters
    ----------
    membership : Membership
        The view of the cluster.
    kernels : BridgeKernelManager
        Serves the kernels.
    hubs : ClusterHubs
        The hubs of the kernels.
    peers : Peers
        Tells other replicas that they were given a kernel.
    log : logging.Logger
        The logger for kernels that are given, or cannot be.
    """

    def __init__(
        self,
        membership: Membership,
        kernels: BridgeKernelManager,
        hubs: ClusterHubs,
        peers: Peers,
        log: logging.Logger,
    ) -> None:
        self._membership = membership
        self._me = membership.me.replica_id
        self._kernels = kernels
        self._hubs = hubs
        self._peers = peers
        self._log = log
        self._failed: dict[str, str] = {}  # the reason, by kernel
        self._silent: dict[str, float] = {}  # by replica that did not answer, until when

    async def give_all(self, seconds: float) -> None:
        """Give all kernels to other replicas, spread over some seconds, a few at the same time.

        Kernels that could not be given are tried once more at the end.
        """
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await self._give_each([kernel.kernel_id for kernel in self._kernels.index], seconds)
        if self._failed:
            await asyncio.sleep(begin + seconds - loop.time())
            await self._give_each(list(self._failed), 0.0)
        for kernel_id, reason in self._failed.items():
            self._log.error(
                "Kernel %s could not be given to another replica, and is left for the next start:"
                " %s",
                kernel_id,
                reason,
            )

    async def leave(self) -> None:
        """Leave the kernels that could not be given, so that they do not end with this replica."""
        for kernel_id in self._failed:
            if kernel_id in self._kernels.index:
                await self._kernels.transfer.release(kernel_id, owned=True)

    async def _give_each(self, kernel_ids: list[str], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        begin, steps = loop.time(), len(kernel_ids)
        rest = enumerate(kernel_ids)

        async def give_some() -> None:
            for number, kernel_id in rest:
                await asyncio.sleep(begin + number * seconds / steps - loop.time())
                await self._try(kernel_id)

        await asyncio.gather(*(give_some() for _ in range(min(_AT_ONCE, steps))))

    async def _try(self, kernel_id: str) -> None:
        try:
            if kernel_id not in self._failed or await self._serve_again(kernel_id):
                await self.give(kernel_id)
        except KbridgeError as error:
            self._failed[kernel_id] = error.reason
        except Exception as error:  # noqa: BLE001 - the other kernels must be given nevertheless
            self._failed[kernel_id] = str(error)
            self._log.exception("Kernel %s could not be given", kernel_id)
        else:
            self._failed.pop(kernel_id, None)

    async def give(self, kernel_id: str) -> None:
        """Give a kernel to the first of its successors that may get it, if there is one.

        Raises
        ------
        KbridgeError
            If it could not be given. It is served again, unless the database does not say which
            replica owns it.
        """
        membership = self._membership
        # The process and the row as they are now; nothing is written after that.
        if not await self._kernels.writer.settled():
            raise RegistryError("Its row in the registry cannot be written")
        kernel = membership.kernels.get(kernel_id) or await membership.fetch(kernel_id)
        served = self._kernels.index.get(kernel_id)
        if kernel is None or served is None or kernel.replica_id != self._me:
            return
        successors = membership.successors(kernel)
        if not successors:
            if membership.problem:  # the leases of the others may only look as if they were over
                raise RegistryError(membership.problem)
            return
        self._hubs.hold(kernel_id)
        try:
            await self._hubs.hand_over(kernel_id)
        except BaseException:
            self._hubs.resume(kernel_id)
            raise
        await self._kernels.transfer.release(kernel_id)
        try:
            await self._give_to(kernel_id, successors)
        except RegistryError:  # which does not say whether the kernel was given
            if await self._serve_again(kernel_id):
                raise
        else:
            # If all others are about to end, too, the kernel ends or stays with this replica.
            await self._serve_again(kernel_id)

    async def _serve_again(self, kernel_id: str) -> bool:
        """Serve a kernel that was released, if this replica still owns it, and send its requests.

        Returns
        -------
        bool
            True if this replica serves the kernel.

        Raises
        ------
        RegistryError
            If the database does not say which replica owns it.
        """
        if kernel_id in self._kernels.index:
            self._hubs.resume(kernel_id)
            return True
        current = await self._membership.fetch(kernel_id)
        if current is None or current.replica_id != self._me:
            await self._hubs.demote(kernel_id)
            return False
        served = await self._kernels.transfer.serve(current)
        self._hubs.resume(kernel_id)
        return served

    async def _give_to(self, kernel_id: str, successors: list[str]) -> None:
        """Give a kernel to the first replica that may get it, if there is one."""
        membership = self._membership
        for replica_id in successors:
            give = partial(membership.store.give, kernel_id, replica_id)
            if await membership.call(give):
                self._log.info("Kernel %s was given to %s", kernel_id, replica_id)
                await self._tell(kernel_id, replica_id)
                return

    async def _tell(self, kernel_id: str, replica_id: str) -> None:
        """Let the new owner serve a kernel before its websockets are closed here.

        A replica reads the row of a kernel for which another one asks it. If this fails, the new
        owner serves the kernel after its next renewal, or when the first client asks for it.
        """
        replica, now = self._membership.replicas.get(replica_id), asyncio.get_running_loop().time()
        if replica is None or now < self._silent.get(replica_id, now):
            return
        try:
            await self._peers.request(replica, "GET", api_path(kernel_id), timeout=_TELL_SECONDS)
        except (Misdirected, ReplicaUnreachable) as error:
            if isinstance(error, ReplicaUnreachable):
                self._silent[replica_id] = now + _SILENT_SECONDS
            self._log.info("%s does not serve the kernel %s yet: %s", replica_id, kernel_id, error)
