"""Takes over the kernels of replicas that have ended, and releases those that were lost.

Invariants:

- this replica serves a kernel as its owner only after the database has named it the owner;
- a kernel that it owns and cannot serve yet is tried again, at last by messages;
- it acts no more for a kernel from the moment in which it learns that another replica owns it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from kbridge.cluster.giving import ClusterHubs, Giver
from kbridge.cluster.membership import Change, Membership
from kbridge.cluster.peers import Peers
from kbridge.cluster.remote_kernel import shown_state
from kbridge.errors import KbridgeError, KernelError, KernelNotFound, RegistryError
from kbridge.hub.broadcast.turns import turns
from kbridge.hub.table import HubTable
from kbridge.kernels.attached.elsewhere import ElsewhereKernel
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import ClusterKernel, KernelRole
from kbridge.kernels.tasks import spawn, stop
from kbridge.wire.closing import SERVER_RESTARTS, SERVICE_RESTART

__all__ = ["Ownership", "PlainHubs"]

# The next in the order takes a kernel so much later, if the ones before it did not.
_TURN_SECONDS: Final = 0.7
_SETTLE_SECONDS: Final = 10.0
# After so many failures, a kernel is served by messages.
_ATTEMPTS: Final = 4
_LONGEST_DELAY: Final = 60.0


class PlainHubs:
    """Hubs of replicas that follow no kernels: the hub of a lost kernel is closed."""

    def __init__(self, hubs: HubTable) -> None:
        self._hubs = hubs

    def lacks_output(self, kernel: ClusterKernel, turn: int) -> bool:  # noqa: ARG002
        """Return False: no replica has output of the kernels of another one."""
        return False

    async def promote(self, kernel: ClusterKernel) -> None:
        """Do nothing: the adoption opens a hub."""

    def hold(self, kernel_id: str) -> None:
        """Hold the requests of clients to a kernel back."""
        if (hub := self._hubs.get(kernel_id)) is not None:
            hub.hold()

    def resume(self, kernel_id: str) -> None:
        """Send the requests that were held back."""
        if (hub := self._hubs.get(kernel_id)) is not None:
            hub.release()

    async def hand_over(self, kernel_id: str) -> None:
        """Do nothing."""

    async def demote(self, kernel_id: str) -> None:
        """Close the hub and remove its journal."""
        await self._hubs.close(kernel_id, SERVICE_RESTART, SERVER_RESTARTS)


@dataclass(slots=True)
class _Failure:
    """A kernel of this replica that it does not serve yet."""

    count: int = 0
    retry_at: float = 0.0


class Ownership:
    """The kernels that this replica owns.

    Parameters
    ----------
    membership : Membership
        The view of the cluster.
    kernels : BridgeKernelManager
        Serves the kernels.
    hubs : ClusterHubs
        The hubs of kernels that change their owner.
    peers : Peers
        Sends requests to the other replicas.
    log : logging.Logger
        The logger for kernels that are taken over.
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
        self._log = log
        self._giver = Giver(membership, kernels, hubs, peers, log)
        self._looking: set[str] = set()  # replicas whose kernels are being sorted
        # By owner: kernels that this replica cannot take, and the replicas that were alive then.
        self._out_of_reach: dict[str, tuple[list[ClusterKernel], frozenset[Any]]] = {}
        self._waiting: dict[tuple[str, float], asyncio.Task[None]] = {}
        self._draining = asyncio.Event()
        self._moving: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._closing = False

    async def open(self) -> None:
        """Act on the view from now on; call it once the kernels of the start are adopted."""
        self._membership.add_source(self)
        self._membership.observe(self)
        self._kernels.writer.observe(self)
        # The last view is older than the adoption.
        await self._membership.renew()
        if self._membership.problem:
            return
        # Those that were given to this replica before, or could not be adopted.
        served = self._kernels.index.served()
        for kernel in self._membership.kernels.values():
            if kernel.replica_id == self._me and kernel.kernel_id not in served:
                self._serve_given(kernel.kernel_id)

    async def aclose(self) -> None:
        """Take no more kernels, and wait for those that are being moved.

        Kernels that could not be given run on for the next start. May be called twice.
        """
        self._closing = True
        await stop(*self._waiting.values())
        if self._moving:
            await asyncio.wait(set(self._moving.values()))
        await self._giver.leave()

    async def settle(self, kernel_id: str) -> None:
        """Wait while a kernel is being taken into use, or out of it; at most 10 s."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_SECONDS):
                while (task := self._moving.get(kernel_id)) is not None:
                    await asyncio.wait({task})

    def has_ended(self, kernel_id: str) -> bool:
        """Return True if this replica has just ended a kernel, which the view may still have."""
        return self._kernels.writer.has_ended(kernel_id)

    def states(self) -> Iterator[tuple[str, str]]:
        """Yield the ids and the states (see `shown_state`) of the kernels in use."""
        follow = self._membership.follower_count > 0
        for kernel_id in self._kernels.list_kernel_ids():
            with suppress(KernelNotFound):
                hub = self._kernels.hubs.get(kernel_id) if follow else None
                end = None if hub is None else hub.journal_end()
                yield kernel_id, shown_state(self._kernels.model(kernel_id), end)

    # -- changes of the view --------------------------------------------------------------------

    def on_view(self, change: Change) -> None:
        """Release kernels that were lost, serve those that were given, and look for others."""
        if change.returned:
            self._kernels.writer.rewrite()
        served = self._kernels.index.served() | self._failures.keys()
        for kernel in change.kernels:
            kernel_id = kernel.kernel_id
            if kernel.replica_id != self._me:
                if kernel_id in served:
                    self._lose(kernel_id)
            elif kernel_id not in served:
                self._serve_given(kernel_id)
        for kernel_id in change.ended & served:
            # Not if this replica has written the end: then its row has gone from the writer, too.
            if kernel_id in self._failures or self._kernels.writer.has_kernel(kernel_id):
                self._lose(kernel_id)
        if not self._closing:
            self._look()
            self._try_again()
            if change.replicas:
                self._send_home()

    def on_refused(self, kernel_ids: frozenset[str]) -> None:
        """Release kernels whose rows were not written: another replica owns them."""
        for kernel_id in kernel_ids & self._kernels.index.served():
            self._lose(kernel_id)

    def _lose(self, kernel_id: str) -> None:
        """Serve a kernel no more that another replica has taken, or has ended since."""
        self._failures.pop(kernel_id, None)
        self._hubs.hold(kernel_id)
        self._kernels.transfer.lose(kernel_id)
        self._move(kernel_id, self._release(kernel_id))

    def _serve_given(self, kernel_id: str) -> None:
        """Serve a kernel unless this replica has just ended it, or is about to end.

        A row that the writer has, without a kernel, is that of a kernel which was not adopted.
        """
        if not (self._closing or self._is_ending(kernel_id)):
            self._move(kernel_id, self._serve(kernel_id))

    def _is_ending(self, kernel_id: str) -> bool:
        """Return True if this replica has ended a kernel, and the database may still have it."""
        writer = self._kernels.writer
        return writer.knows_kernel(kernel_id) and not writer.has_kernel(kernel_id)

    def _try_again(self) -> None:
        """Serve the kernels that could not be served before."""
        now = asyncio.get_running_loop().time()
        for kernel_id, failure in self._failures.items():
            if failure.retry_at <= now and kernel_id not in self._moving:
                self._move(kernel_id, self._serve(kernel_id))

    def _send_home(self) -> None:
        """Give kernels that this replica cannot signal to replicas on their machines."""
        there = {r.hostname for r in self._membership.alive() if not r.draining}
        there.discard(self._membership.me.hostname)
        for kernel in self._kernels.index:
            if isinstance(kernel, ElsewhereKernel) and kernel.hostname in there:
                self._move(kernel.kernel_id, self._give_home(kernel.kernel_id))

    async def _give_home(self, kernel_id: str) -> None:
        try:
            await self._giver.give(kernel_id)
        except KbridgeError as error:
            self._log.warning("Kernel %s could not be given away: %s", kernel_id, error)
        except Exception:  # noqa: BLE001 - the kernel must be served again
            self._log.exception("Kernel %s could not be given away", kernel_id)
        else:
            return
        if kernel_id not in self._kernels.index:
            self._failures.setdefault(kernel_id, _Failure())

    def _look(self) -> None:
        """Prepare to take the kernels of replicas that are not alive."""
        of: dict[str, list[ClusterKernel]] = {}
        for kernel in self._membership.kernels.values():
            of.setdefault(kernel.replica_id, []).append(kernel)
        of.pop(self._me, None)
        view = self._membership
        alive = frozenset((r.replica_id, r.draining) for r in (*view.alive(), view.me))
        for owner in self._out_of_reach.keys() - of.keys():
            del self._out_of_reach[owner]
        for owner, kernels in of.items():
            known = self._out_of_reach.get(owner) == (kernels, alive)
            if owner not in self._looking and not known and not view.is_alive(owner):
                self._looking.add(owner)
                turns().add(self._sort(owner, kernels, alive).__next__)

    def _sort(
        self, owner: str, kernels: list[ClusterKernel], alive: frozenset[Any]
    ) -> Iterator[bool]:
        """Find out when it is this replica's turn to take each kernel; a `Step` of the loop."""
        groups: dict[float, list[str]] = {}
        try:
            for kernel in kernels:
                successors = self._membership.successors(kernel, silent=True)
                if self._me in successors:
                    groups.setdefault(self._delay(kernel, successors), []).append(kernel.kernel_id)
                yield True
        finally:
            self._looking.discard(owner)
        self._out_of_reach.pop(owner, None)
        if not groups:
            self._out_of_reach[owner] = kernels, alive
        for delay, kernel_ids in groups.items():
            if (owner, delay) not in self._waiting and not self._closing:
                task = spawn(self._take(owner, delay, kernel_ids), self._log)
                self._waiting[owner, delay] = task
        yield False

    def _delay(self, kernel: ClusterKernel, successors: list[str]) -> float:
        """Return the seconds until this replica may take a kernel that no other one has taken.

        Without its output, this replica waits for those that may have it, and are slow or silent.
        """
        turn = successors.index(self._me)
        wait = len(successors) > 1 and self._hubs.lacks_output(kernel, turn)
        return turn * _TURN_SECONDS + (self._membership.patience if wait else 0.0)

    async def _take(self, owner: str, delay: float, kernel_ids: list[str]) -> None:
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._draining.wait()
            membership = self._membership
            kernel_ids = [
                kernel_id
                for kernel_id in kernel_ids
                if (known := membership.kernels.get(kernel_id)) is not None
                and known.replica_id == owner
            ]
            if not kernel_ids or membership.is_alive(owner) or not membership.lease.held:
                return
            gone = membership.gone(owner)
            if membership.me.draining or not (gone or membership.is_steady(owner)):
                return
            taken = await membership.call(
                lambda: membership.store.take_all(kernel_ids, owner, gone=gone)
            )
        except RegistryError as error:
            self._log.warning("Kernels of %s could not be taken over: %s", owner, error.reason)
            return
        finally:
            del self._waiting[owner, delay]
        for kernel in taken:
            membership.kernels[kernel.kernel_id] = kernel
            self._move(kernel.kernel_id, self._serve(kernel.kernel_id))
        if taken:
            self._log.warning("Took over %d kernel(s) of the replica %s", len(taken), owner)

    def _move(self, kernel_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Do one step of a kernel after the other."""
        before = self._moving.get(kernel_id)

        async def step() -> None:
            if before is not None:
                await asyncio.wait({before})
            try:
                await work
            finally:
                if self._moving.get(kernel_id) is task:
                    del self._moving[kernel_id]

        task = self._moving[kernel_id] = spawn(step(), self._log)

    async def _serve(self, kernel_id: str) -> None:
        failure = self._failures.get(kernel_id)
        try:
            # Also a new view may be older than the end or the loss of the kernel.
            kernel = await self._membership.fetch(kernel_id)
            mine = kernel is not None and kernel.replica_id == self._me
            served = kernel_id in self._kernels.index or self._is_ending(kernel_id)
            if kernel is None or not mine or served:
                self._failures.pop(kernel_id, None)
                return
            # A hub that was promoted before an adoption that failed serves the kernel already.
            if kernel.row.role == KernelRole.USED and self._kernels.hubs.get(kernel_id) is None:
                await self._hubs.promote(kernel)
            final = failure is not None and failure.count >= _ATTEMPTS
            await self._kernels.transfer.serve(kernel, by_messages=final)
            self._hubs.resume(kernel_id)
        except Exception as error:  # noqa: BLE001 - the kernel must be tried again
            self._note_failure(kernel_id, failure or _Failure(), error)
        else:
            self._failures.pop(kernel_id, None)

    def _note_failure(self, kernel_id: str, failure: _Failure, error: Exception) -> None:
        delay = min(2.0**failure.count, _LONGEST_DELAY)
        known = isinstance(error, KbridgeError)
        failure.count += isinstance(error, KernelError) or not known  # not if the database fails
        failure.retry_at = asyncio.get_running_loop().time() + delay
        self._failures[kernel_id] = failure
        if failure.count <= _ATTEMPTS + 1:
            self._log.warning(
                "Kernel %s is not served yet: %s. Trying again in %g s",
                *(kernel_id, error, delay),
                exc_info=None if known else error,
            )

    async def _release(self, kernel_id: str) -> None:
        try:
            await self._kernels.transfer.release(kernel_id)
            # The view may be older than the loss.
            with suppress(RegistryError):
                await self._membership.fetch(kernel_id)
        finally:
            await self._hubs.demote(kernel_id)
        self._log.warning("Kernel %s is served by another replica now", kernel_id)

    # -- the end ----------------------------------------------------------------------------------

    def kept(self) -> list[str]:
        """Return the ids of the kernels that no other replica could take now."""
        view = self._membership
        return [
            kernel.kernel_id
            for kernel in self._kernels.index
            if (known := view.kernels.get(kernel.kernel_id)) is None or not view.successors(known)
        ]

    async def drain(self, seconds: float) -> None:
        """Give all kernels to other replicas, spread over some seconds, as far as there are any.

        The websockets of each kernel are closed once it is given. The kernels that remain are those
        that no other replica can take, and those that could not be given, which `aclose` leaves.
        """
        self._kernels.start_no_more()
        await self._membership.drain()
        self._draining.set()
        # From now on this replica gets no kernels, but one may have been given to it just before.
        # The view also tells which other replicas drain.
        await self._membership.refresh()
        while tasks := {*self._waiting.values(), *self._moving.values()}:
            await asyncio.wait(tasks)
        self._closing = True
        await self._giver.give_all(seconds)
