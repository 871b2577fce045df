"""Follows the kernels of other replicas: keeps a hub, and so a journal, of each.

Every replica computes from its view of the cluster which kernels it follows. A follower connects to
the kernel itself; nothing passes through the owner.

If a replica comes or goes, this is computed for all kernels of the cluster: for ten thousand of
them, it takes about a second, so it is done in the turns of the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from kbridge.cluster.membership import Change, Membership
from kbridge.cluster.remote_kernel import end_in
from kbridge.errors import HubClosed, KbridgeError
from kbridge.hub import Hub, HubTable
from kbridge.hub.broadcast.turns import turns
from kbridge.kernels.registry.models import ClusterKernel, KernelRole, Replica, decode
from kbridge.kernels.tasks import spawn, stop

__all__ = ["Followers", "connection_of", "is_followed", "is_waiting"]

_AT_ONCE: Final = 8
"""The number of kernels whose changes are followed without waiting for a turn."""

_RENEWALS: Final = 3
"""The renewals of the owner's lease after which it has written the end of its journal."""


def connection_of(kernel: ClusterKernel) -> dict[str, Any] | None:
    """Return the connection info of a kernel; None if it has none yet, or it cannot be read."""
    try:
        info = decode(kernel.row.details).get("connection")
    except ValueError:
        return None
    return info if isinstance(info, dict) and info else None


def is_followed(kernel: ClusterKernel) -> bool:
    """Return True for a kernel that other replicas follow: it is in use, and can be reached."""
    return kernel.row.role == KernelRole.USED and connection_of(kernel) is not None


def is_waiting(kernel: ClusterKernel) -> bool:
    """Return True if a kernel waits in the queue of a scheduler, so that it has no address."""
    try:
        return bool(decode(kernel.row.details).get("waiting"))
    except ValueError:
        return False


@dataclass(slots=True)
class _Beginning:
    """Counts what the owner of a kernel does after this replica has begun to follow.

    Attributes
    ----------
    renewals : int
        The renewals of its lease; -1 before the first view.
    """

    renewals: int = -1
    _lease: tuple[str, float] = ("", 0.0)

    def see(self, owner: Replica) -> None:
        """Note the lease of the owner in a new view."""
        lease, known = (owner.replica_id, owner.lease_until), self._lease
        self._lease = lease
        if self.renewals < 0 or lease[0] != known[0]:
            self.renewals = 0
        elif lease != known:
            self.renewals += 1


class Followers:
    """The hubs of the kernels that this replica follows.

    Parameters
    ----------
    membership : Membership
        The view of the cluster.
    hubs : HubTable
        Opens and closes the hubs.
    log : logging.Logger
        The logger for kernels that cannot be reached.

    Attributes
    ----------
    joined : dict of str to str
        By kernel, the end of the owner's journal when this replica began to follow.
    """

    def __init__(self, membership: Membership, hubs: HubTable, log: logging.Logger) -> None:
        self._membership = membership
        self._hubs = hubs
        self._log = log
        self._me = membership.me.replica_id
        self._infos: dict[str, dict[str, Any]] = {}
        self._began: dict[str, _Beginning] = {}  # by kernel whose end is not known yet
        self.joined: dict[str, str] = {}
        self._due: dict[str, None] = {}  # the kernels to decide about, in their order
        self._in_turns = False
        self._closing: set[asyncio.Task[None]] = set()
        self._reports: set[asyncio.Task[None]] = set()
        self._closed = False

    def open(self) -> None:
        """Follow the view of the cluster from now on."""
        self._membership.observe(self)
        self.on_view(Change(tuple(self._membership.kernels.values()), replicas=True))

    def on_view(self, change: Change) -> None:
        """Open and close hubs so that they match the view, now or in the next turns."""
        if self._closed:
            return
        for kernel_id in change.ended & self._hubs.followed.keys():
            self._forget(kernel_id)
        if change.replicas:
            self._due = dict.fromkeys(self._membership.kernels)
        else:
            self._due |= dict.fromkeys(kernel.kernel_id for kernel in change.kernels)
        if not self._in_turns:
            more = bool(self._due)
            for _ in range(_AT_ONCE):
                more = more and self._decide_next()
            if more:
                self._in_turns = True
                turns().add(self._turn)
        self._note_ends()

    def _turn(self) -> bool:
        self._in_turns = not self._closed and bool(self._due) and self._decide_next()
        return self._in_turns

    def _decide_next(self) -> bool:
        """Decide about the next kernel; return True if there is another one."""
        kernel_id = next(iter(self._due))
        del self._due[kernel_id]
        kernel = self._membership.kernels.get(kernel_id)
        if kernel is not None:
            try:
                self._decide(kernel)
            except Exception:  # noqa: BLE001 - the other kernels must be followed
                self._log.exception("Kernel %s cannot be followed", kernel_id)
        return bool(self._due)

    def _decide(self, kernel: ClusterKernel) -> None:
        """Follow a kernel or not."""
        kernel_id, view = kernel.kernel_id, self._membership
        if kernel.replica_id == self._me:
            return  # if it is followed, it is about to be served
        wanted = kernel.row.role == KernelRole.USED and self._me in view.followers(kernel)
        info = connection_of(kernel) if wanted else None
        if info is not None:
            self._follow(kernel_id, info, kernel.replica_id)
        elif wanted and is_waiting(kernel):
            pass  # a hub that follows it waits for its next process, too
        elif kernel_id in self._hubs.followed and view.is_alive(kernel.replica_id):
            self._forget(kernel_id)

    def _follow(self, kernel_id: str, info: dict[str, Any], owner: str) -> None:
        if self._hubs.get(kernel_id) is not None:
            return  # this replica has lost it, and is about to close the hub
        hub = self._hubs.followed.get(kernel_id)
        known = self._infos.get(kernel_id)
        self._infos[kernel_id] = info
        try:
            if hub is None:
                hub = self._hubs.follow(kernel_id, info)
                self._began[kernel_id] = _Beginning()
                task = spawn(self._report(hub, owner), self._log)
                self._reports.add(task)
                task.add_done_callback(self._reports.discard)
            elif info != known:
                hub.reconnect(info)
        except HubClosed:
            return
        except (KbridgeError, ValueError, TypeError) as error:
            if known != info:  # logged once
                self._log.warning("Kernel %s cannot be followed: %s", kernel_id, error)

    async def _report(self, hub: Hub, owner: str) -> None:
        """Log that a kernel is followed, once its output arrives here."""
        with suppress(HubClosed):
            proven = await hub.wait_ready()
            if self._hubs.followed.get(hub.kernel_id) is hub:
                words = "" if proven else ", which has not answered yet"
                self._log.info("Following kernel %s of %s%s", hub.kernel_id, owner, words)

    def _forget(self, kernel_id: str) -> None:
        self.taken(kernel_id)
        task = spawn(self._hubs.unfollow(kernel_id), self._log)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def taken(self, kernel_id: str) -> str | None:
        """Forget a kernel that is about to be served.

        Returns
        -------
        str or None
            The end of the owner's journal when this replica began to follow; None if that is not
            known.
        """
        self._infos.pop(kernel_id, None)
        self._began.pop(kernel_id, None)
        return self.joined.pop(kernel_id, None)

    def _note_ends(self) -> None:
        """Note the ends of the owners' journals that were written after this replica began.

        The owner writes the end with each renewal of its lease. The first renewal after the
        beginning may have been prepared before it, and a view may have the lease of a renewal
        without the end that came with it. So the view with the third renewal has a new end. If
        this replica does not have that message in its journal, it is older than the journal.
        """
        for kernel_id, beginning in list(self._began.items()):
            hub = self._hubs.followed.get(kernel_id)
            kernel = self._membership.kernels.get(kernel_id)
            owner = self._membership.owner(kernel_id)
            if hub is None or kernel is None or owner is None or not hub.listens:
                beginning.renewals = -1
                continue
            beginning.see(owner)
            if beginning.renewals >= _RENEWALS:
                del self._began[kernel_id]
                if (end := end_in(kernel.state)) is not None:
                    self.joined[kernel_id] = end

    async def aclose(self) -> None:
        """Follow no more; `HubTable.aclose` closes the hubs. May be called twice."""
        self._closed = True
        await stop(*self._reports)
        if self._closing:
            await asyncio.wait(self._closing)
