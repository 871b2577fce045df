"""The membership of this server in its cluster: its lease, and its view of the other replicas.

A task renews the lease at a third of its duration, and reads the changes in the same transaction.
Errors of the database are logged once; the last view stays.

Invariants:

- the lease of the server begins when its renewal is sent, not when the database answers;
- observers hear that a kernel is lost before anybody who waits for the lease may act;
- a replica counts as gone before the end of its lease only if its process on this machine has
  ended, and only until its lease is renewed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from itertools import chain
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

from kbridge.cluster.rendezvous import order
from kbridge.errors import RegistryError
from kbridge.kernels.lifecycle.lease import Lease
from kbridge.kernels.lifecycle.processes import ProcessState, same_boot, state_of
from kbridge.kernels.registry.cluster_rows import ENDED_SECONDS
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import ClusterKernel, Replica, View
from kbridge.kernels.tasks import spawn, stop
from kbridge.storage.workers import Workers

__all__ = ["Change", "Membership", "Observer", "StateSource"]

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.5
_RETRY_SECONDS: Final = 1.0
# A renewal is overdue if a smaller share of the lease is left: it is renewed at two thirds.
_OVERDUE: Final = 0.55
_AT_ONCE: Final = 50  # kernels that are described in one pass of the event loop
_HANGING: Final = 3  # threads, besides that of the renewals


@dataclass(frozen=True, slots=True)
class Change:
    """The differences between two views of a cluster.

    Attributes
    ----------
    kernels : tuple of ClusterKernel
        The kernels that are new or have changed.
    ended : frozenset of str
        The ids of kernels that have ended.
    replicas : bool
        True if the set of replicas that are alive, or of those that drain, has changed.
    returned : bool
        True if the database was away, or is an older one: it may have lost the latest writes.
    """

    kernels: tuple[ClusterKernel, ...] = ()
    ended: frozenset[str] = frozenset()
    replicas: bool = False
    returned: bool = False


class Observer(Protocol):
    """A part of the server that acts on the view."""

    def on_view(self, change: Change) -> None:
        """Act on a change; called after each renewal, and when a replica is found to be gone.

        It must not wait: it starts a task for the rest.
        """


class StateSource(Protocol):
    """Describes the kernels of this replica to the others."""

    def states(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the state (see `ClusterKernel`) of each kernel of this replica.

        Kernels may come and go between two of them, because the event loop does other work then.
        """


class Membership:
    """A server as a replica of its cluster.

    Parameters
    ----------
    store : ClusterStore
        The database.
    lease : Lease
        The lease, which this object renews.
    count : int
        The number of followers of each kernel.
    log : logging.Logger
        The logger for errors of the database, and replicas that come and go.

    Attributes
    ----------
    store : ClusterStore
    lease : Lease
    me : Replica
        This server.
    follower_count : int
        The number of followers of each kernel.
    patience : float
        Seconds for which this replica waits for others that have the output of a kernel.
    secret : str
        The secret of the cluster, once the server has joined.
    replicas : dict of str to Replica
        The replicas in the last view, also this one, and those that are gone.
    kernels : dict of str to ClusterKernel
        All kernels of the cluster in the last view.
    problem : str
        Why the database could not be used last time; empty if it could.
    """

    def __init__(
        self, store: ClusterStore, lease: Lease, *, count: int, log: logging.Logger
    ) -> None:
        assert lease.seconds is not None, "a replica has a lease with an end"
        self.store = store
        self.lease = lease
        self.me = store.replica
        self.secret = ""
        self.replicas: dict[str, Replica] = {}
        self.kernels: dict[str, ClusterKernel] = {}
        self.problem = ""
        self._joined = math.inf
        self._lived: set[str] = set()  # replicas that had a lease after this one had joined
        self._returned = -math.inf  # when the lease could be renewed again after it could not
        self._seconds = lease.seconds
        self.follower_count = count
        self.patience = replace(self.me, lease_seconds=lease.seconds).patience
        self._log = log
        self._workers = Workers(_HANGING, "kbridge-cluster")
        self._renewals = Workers(1, "kbridge-lease")
        self._views = 0  # that were applied
        self._reading = asyncio.Lock()
        self._observers: list[Observer] = []
        self._sources: list[StateSource] = []
        self._told: dict[str, str] = {}
        self._revision: int | None = None
        self._seen_at = float("-inf")  # the time of the last view
        self._gone: dict[str, Replica] = {}  # as it was seen after its end
        self._alive: frozenset[tuple[str, bool]] = frozenset()
        self._unreachable: set[str] = set()  # the URLs that were warned of
        self._away = False  # True if the database was away since the last view
        self._renewing = asyncio.Lock()
        self._checking: dict[str, asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # -- the beginning and the end ------------------------------------------------------------

    async def join(self) -> None:
        """Become a replica, and renew the lease from now on.

        Raises
        ------
        RegistryError
            If the database cannot be used.
        """
        sent = self.lease.now()
        await self.call(self.store.registry.prepare)
        self.secret = await self.call(lambda: self.store.join(self._seconds))
        self.lease.renewed(sent)
        self._joined = sent
        await self.renew()
        self._log.info(
            "Joined the cluster %s as %s (%s), with %d other replica(s)",
            *(self.me.cluster, self.me.replica_id, self.me.url, len(self.alive()) - 1),
        )
        self._tasks = [spawn(self._run(), self._log), spawn(self._look(), self._log)]

    async def drain(self) -> None:
        """Tell the others that this replica is about to end."""
        self.me = self.store.replica = replace(self.me, draining=True)
        await self._attempt(self.store.drain)

    async def leave(self, *, quietly: bool = False) -> None:
        """End the membership; the others may take the remaining kernels. May be called twice.

        Parameters
        ----------
        quietly : bool
            True to leave the lease to the next program of this process.
        """
        tasks, self._tasks = self._tasks, []
        if tasks:
            await stop(*tasks, *self._checking.values())
            self.lease.end()
            if not quietly:
                await self._attempt(self.store.leave)
            await self.call(self.store.registry.close)
        self._workers.close()
        self._renewals.close()

    @property
    def joined(self) -> bool:
        """True between `join` and `leave`."""
        return bool(self._tasks)

    def observe(self, observer: Observer) -> None:
        """Report all changes from now on."""
        self._observers.append(observer)

    def add_source(self, source: StateSource) -> None:
        """Write the states that a source describes, with each renewal."""
        self._sources.append(source)

    # -- the view -----------------------------------------------------------------------------

    def is_alive(self, replica_id: str) -> bool:
        """Return True if a replica has a lease, as far as this server knows."""
        replica = self.replicas.get(replica_id)
        if replica is None or replica_id in self._gone:
            return False
        return replica_id == self.me.replica_id or self._left(replica) > 0

    def _may_return(self, replica: Replica) -> bool:
        """Return True for a replica that is alive, or was so a short time ago."""
        if replica.replica_id == self.me.replica_id:
            return True
        return replica.replica_id not in self._gone and self._left(replica) > -replica.patience

    def is_steady(self, replica_id: str) -> bool:
        """Return True if this server could renew its lease for as long as a replica's lease lasts.

        After a time without the database, the leases of all replicas are over, and those that live
        are about to renew them. A server that has joined since does not know of that time, unless
        it has seen the lease of the replica before its end.
        """
        replica = self.replicas.get(replica_id)
        if replica is None:  # it has left
            return self.lease.now() - self._returned >= self._seconds
        joined = -math.inf if replica_id in self._lived else self._joined
        return self.lease.now() - max(self._returned, joined) >= self._duration(replica)

    def gone(self, replica_id: str) -> Replica | None:
        """Return a replica whose process has certainly ended, as it was seen after its end.

        Its lease does not matter, unless it was renewed since. None for other replicas.
        """
        return self._gone.get(replica_id)

    def alive(self) -> list[Replica]:
        """Return the replicas that have a lease, this one included."""
        return [r for r in self.replicas.values() if self.is_alive(r.replica_id)]

    def owner(self, kernel_id: str) -> Replica | None:
        """Return the replica that owns a kernel; None if the kernel or the replica is unknown."""
        kernel = self.kernels.get(kernel_id)
        return self.replicas.get(kernel.replica_id) if kernel is not None else None

    def successors(self, kernel: ClusterKernel, *, silent: bool = False) -> list[str]:
        """Return the ids of the replicas that may take a kernel over, the preferred one first.

        Replicas on the machine of the process come first, because only they can signal it. Those
        that the kernel does not listen for, or that are about to end, are left out.

        Parameters
        ----------
        kernel : ClusterKernel
        silent : bool
            True to include replicas that may return, although their lease is over.
        """
        local = kernel.is_local
        known = [r for r in self.replicas.values() if self._may_return(r)] if silent else None
        able = {
            replica.replica_id: replica.hostname != kernel.hostname
            for replica in (self.alive() if known is None else known)
            if replica.replica_id != kernel.replica_id
            and not (self.me if replica.replica_id == self.me.replica_id else replica).draining
            and (not local or replica.hostname == kernel.hostname)
        }
        return sorted(order(kernel.kernel_id, able), key=able.__getitem__)

    def followers(self, kernel: ClusterKernel) -> list[str]:
        """Return the ids of the replicas that follow a kernel: its first successors."""
        return self.successors(kernel)[: self.follower_count]

    async def fetch(self, kernel_id: str) -> ClusterKernel | None:
        """Return a kernel as the database has it now, and put it into the view; None if it ended.

        Raises
        ------
        RegistryError
            If the database cannot be used.
        """
        before, views = self.kernels.get(kernel_id), self._views
        kernel = await self.call(lambda: self.store.kernel(kernel_id))
        known = self.kernels.get(kernel_id)
        if kernel is None and known is before and known is not None:
            del self.kernels[kernel_id]
            self._notify(Change(ended=frozenset({kernel_id})))
        # If a view that was applied meanwhile does not have the kernel, it has ended since.
        newest = known.changed if known else -1 if views == self._views else self._revision or 0
        if kernel is not None and kernel.changed > newest:
            self.kernels[kernel_id] = kernel
            self._notify(Change(kernels=(kernel,)))
        return self.kernels.get(kernel_id)

    async def refresh(self) -> None:
        """Read the view now, and write nothing; an error is logged.

        Renewals do not wait for it, and it does not wait for them.
        """
        await self._read()

    async def _read(self) -> bool:
        """Read the view; return False if the database cannot be used."""
        async with self._reading:
            sent, since, views = self.lease.now(), self._since(), self._views
            try:
                view = await self.call(lambda: self.store.view(since))
            except RegistryError as error:
                self._failed(error)
                return False
            self._apply_unless_older(view, sent, views)
            return True

    async def call(self, work: Callable[[], T]) -> T:
        """Call a method of the store in a thread."""
        return await self._workers.call(work)

    def suspect(self, replica_id: str) -> None:
        """Look at the lease and the process of a replica, because a connection to it has failed."""
        known = replica_id in self.replicas and replica_id != self.me.replica_id
        if known and replica_id not in self._gone and replica_id not in self._checking:
            self._checking[replica_id] = spawn(self._check(replica_id), self._log)

    # -- renewals -----------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(
                min(self.lease.interval, _RETRY_SECONDS) if self.problem else self.lease.interval
            )
            try:
                await self.renew()
            except Exception:  # noqa: BLE001 - the lease must be renewed the next time
                self._log.exception("The lease could not be renewed; trying again")

    async def renew(self) -> None:
        """Renew the lease, write the states and read the view now; an error is logged."""
        async with self._renewing:
            sent, views = self.lease.now(), self._views
            states: dict[str, str] = {}
            for number, (name, text) in enumerate(chain(*(s.states() for s in self._sources)), 1):
                states[name] = text
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            new = {name: text for name, text in states.items() if self._told.get(name) != text}
            since = self._since()
            try:
                view = await self._renewals.call(
                    lambda: self.store.renew(self._seconds, new, since)
                )
            except RegistryError as error:
                self._told = {}  # it may lose the states of the last renewal
                self._failed(error)
                return
            if self.problem or (self._revision is not None and not self.lease.held):
                self._returned = self.lease.now()
            if self.problem:
                self.problem = ""
                self._away = True
                self._log.warning("The database of the cluster can be used again")
            self._told = states
            self._apply_unless_older(view, sent, views)
            self.lease.renewed(sent)

    def _since(self) -> int | None:
        """Return the revision of the last view; None if it is too old to ask for changes."""
        fresh = self.lease.now() - self._seen_at < ENDED_SECONDS / 2
        return self._revision if fresh else None

    def _failed(self, error: RegistryError) -> None:
        if not self.problem:
            self._log.error(
                "%s\nKernels are served all the same. Once its lease is over, this replica restarts"
                " and culls no kernels; trying again every %g s",
                error.reason,
                min(self.lease.interval, _RETRY_SECONDS),
            )
        self.problem = error.reason

    async def _attempt(self, work: Callable[[], None]) -> None:
        try:
            await self.call(work)
        except RegistryError as error:
            self._log.error("%s", error.reason)

    def _apply_unless_older(self, view: View, at: float, views: int) -> None:
        """Apply a view, unless a newer one was applied since there were `views`."""
        older = self._revision is not None and view.revision < self._revision
        if not older or views == self._views:
            self._apply(view, at, older=older)

    def _apply(self, view: View, at: float, *, older: bool) -> None:
        self._views += 1
        known = self.kernels
        # A kernel may have been taken, given or fetched after the database had made this view. If
        # the revision has gone back, the database was replaced by an older one.
        newer: set[str] = set()
        if not older:
            newer = {k.kernel_id for k in known.values() if k.changed > view.revision}
        ended = view.ended
        if view.whole:
            ended |= known.keys() - {kernel.kernel_id for kernel in view.kernels}
        # The database may read the rows of ended kernels later than those of the others.
        skipped = newer | view.ended
        kernels = [kernel for kernel in view.kernels if kernel.kernel_id not in skipped]
        changed = tuple(kernel for kernel in kernels if known.get(kernel.kernel_id) != kernel)
        known |= {kernel.kernel_id: kernel for kernel in kernels}
        ended = (ended & known.keys()) - newer
        for kernel_id in ended:
            del self.kernels[kernel_id]
        self.replicas = {replica.replica_id: replica for replica in view.replicas}
        self._lived &= self.replicas.keys()
        self._lived |= {replica.replica_id for replica in view.replicas if replica.lease_left > 0}
        self._gone = {
            replica_id: gone
            for replica_id, gone in self._gone.items()
            if (replica := self.replicas.get(replica_id)) is not None
            and replica.lease_until == gone.lease_until
        }
        self._revision, self._seen_at = view.revision, at
        self._warn_of_loopback()
        returned, self._away = self._away or older, False
        self._notify(Change(changed, ended, returned=returned))

    def _warn_of_loopback(self) -> None:
        """Warn of replicas of several machines with an address that only one machine reaches."""
        if len({replica.hostname for replica in self.replicas.values()}) < 2:
            return
        for replica in self.replicas.values():
            if replica.url not in self._unreachable and _is_loopback(replica.url):
                self._unreachable.add(replica.url)
                self._log.warning(
                    "Replicas on other machines cannot reach the replica %s on %s at %s: set"
                    " KbridgeApp.advertise_url there",
                    *(replica.replica_id, replica.hostname, replica.url),
                )

    def _notify(self, change: Change) -> None:
        alive = frozenset((r.replica_id, r.draining) for r in self.alive())
        if alive != self._alive:
            self._alive = alive
            change = replace(change, replicas=True)
        for observer in self._observers:
            try:
                observer.on_view(change)
            except Exception:  # noqa: BLE001 - the others, and the renewals, must go on
                self._log.exception("A change of the cluster could not be followed")

    # -- replicas that are gone ---------------------------------------------------------------

    def _left(self, replica: Replica) -> float:
        return replica.lease_left - (self.lease.now() - self._seen_at)

    def _duration(self, replica: Replica) -> float:
        return replica.lease_seconds or self._seconds

    async def _look(self) -> None:
        """Look for replicas that have ended, more often than leases end."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for replica in self._others():
                left = self._left(replica)
                ending = -2 * _LOOK_SECONDS < left < self._duration(replica) * _OVERDUE
                if ending or self._has_ended(replica):
                    self.suspect(replica.replica_id)

    def _others(self) -> Iterable[Replica]:
        return [
            replica
            for replica in self.replicas.values()
            if replica.replica_id != self.me.replica_id and replica.replica_id not in self._gone
        ]

    def _has_ended(self, replica: Replica) -> bool:
        if replica.hostname != platform.node():
            return False
        if (replica.pid, replica.start_id) == (self.me.pid, self.me.start_id):
            return True  # the program before a restart within the process
        # Another boot: this machine before its restart, or another machine with the same name.
        ended = state_of(replica.pid, replica.start_id) is ProcessState.GONE
        return ended and same_boot(replica.start_id)

    async def _check(self, replica_id: str) -> None:
        """Read the row of a replica; the replica is gone if its process has ended before that."""
        try:
            ended = self._has_ended(self.replicas[replica_id])
            read = await self._read()
            replica = self.replicas.get(replica_id)
            if replica is not None and ended and read:
                self._gone[replica_id] = replica
                level = logging.INFO if replica.draining else logging.WARNING
                self._log.log(level, "The replica %s has ended (%s)", replica_id, replica.url)
                self._notify(Change())
        finally:
            del self._checking[replica_id]


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
