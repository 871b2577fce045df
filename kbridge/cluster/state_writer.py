"""Writes the state that a takeover needs to the database, once per second at most.

The changes of all kernels are written together, some hundred rows per transaction: after a start or
a takeover, there are thousands, and other replicas wait for each transaction. Nothing is written if
nothing has changed, and nothing is written per message. New sessions are written at once, those of
some milliseconds together: a client whose session is not in the database begins with the next
output.

While the database is down, the changes are kept: of each session and each execution, only the
latest one. Those that are forgotten meanwhile are not kept. Afterwards, the rows of the kernel that
nobody remembers are deleted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, TypeVar

from kbridge.errors import RegistryError
from kbridge.flow.handover import END, Changes, Handover, Remembered
from kbridge.hub import Hub, HubTable
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import ExecutionRow, KeptRows, Place
from kbridge.kernels.tasks import spawn, stop
from kbridge.storage.workers import Workers

__all__ = ["StateWriter", "read_handovers"]

T = TypeVar("T")

_EVERY: Final = 1.0  # seconds
_SOON: Final = 0.01  # seconds in which new sessions are collected
_ROWS: Final = 500  # of a transaction
_SWEPT: Final = 8  # kernels of a transaction whose forgotten rows are deleted
_SLICE: Final = 0.001  # seconds for which the event loop does no other work
_LONGEST: Final = 200  # characters of the ids in the tables; clients choose them
_END: Final = "end"  # ids of sessions are JSON strings, which begin with a quote
_IDENTITIES: Final = "identities"


@dataclass(slots=True)
class _Rows:
    """The rows of a kernel that are not written yet, by session and execution.

    Attributes
    ----------
    sweep : bool
        True if rows of sessions and executions that nobody remembers must be deleted.
    """

    places: dict[str, Place] = field(default_factory=dict)
    executions: dict[str, ExecutionRow] = field(default_factory=dict)
    sweep: bool = False

    def __bool__(self) -> bool:
        return self.sweep or bool(self.places or self.executions)


@dataclass(slots=True)
class _Batch:
    """The rows of one transaction, and the kernels whose other rows may be deleted."""

    places: list[Place] = field(default_factory=list)
    executions: list[ExecutionRow] = field(default_factory=list)
    swept: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.places) + len(self.executions)

    def __bool__(self) -> bool:
        return bool(self.places or self.executions or self.swept)


class StateWriter:
    """Writes the changes of the kernels that this replica serves.

    Parameters
    ----------
    store : ClusterStore
        The database.
    hubs : HubTable
        The hubs of these kernels.
    log : logging.Logger
        The logger for errors of the database.
    every : float
        Seconds between two batches.
    """

    def __init__(
        self, store: ClusterStore, hubs: HubTable, log: logging.Logger, *, every: float = _EVERY
    ) -> None:
        self._store = store
        self._hubs = hubs
        self._log = log
        self._every = every
        self._waiting: dict[str, _Rows] = {}  # by kernel
        self._identities: dict[Hub, list[bytes]] = {}  # as collected
        self._new: set[str] = set()  # kernels with new sessions
        self._has_new = asyncio.Event()
        self._workers = Workers(1, "kbridge-state")
        self._writing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._failing = False

    def open(self) -> None:
        """Write from now on."""
        self._hubs.replicate(self)
        if not self._tasks:
            self._tasks = [spawn(each, self._log) for each in (self._run(), self._run_sessions())]

    async def aclose(self) -> None:
        """Write the last changes; may be called twice."""
        tasks, self._tasks = self._tasks, []
        if tasks:
            await stop(*tasks)
            await self.write()
            self._workers.close()

    def on_session(self, kernel_id: str) -> None:
        """Write the new session of a kernel soon."""
        self._new.add(kernel_id)
        self._has_new.set()

    async def write(self) -> bool:
        """Write the changes at once; return False if they cannot be written now."""
        self._new.clear()
        await self._collect()
        return await self._put()

    async def write_kernel(self, kernel_id: str) -> bool:
        """Write the changes of one kernel at once; return False if they cannot be written now."""
        hub = self._hubs.get(kernel_id)
        if hub is not None and not (hub.following or hub.closed):
            self._collect_from(hub)
        return await self._put([kernel_id])

    async def write_sessions(self) -> None:
        """Write the places of new sessions at once."""
        new, self._new = self._new, set()
        for kernel_id in new:
            hub = self._hubs.get(kernel_id)
            if hub is not None:
                self._add_places(kernel_id, hub.take_new_places())
        if not await self._put(new, places_only=True):
            self._new |= new

    async def _put(self, new: Collection[str] = (), *, places_only: bool = False) -> bool:
        """Write the rows of all kernels, or the places of new sessions in some kernels.

        Returns False if they cannot be written now.

        A transaction with all of them would hold up the other replicas, so there is one for some
        hundred rows, and then a pause that is as long.
        """
        loop, todo = asyncio.get_running_loop(), None
        while True:
            async with self._writing:
                begin = loop.time()
                if todo is None:  # the call before may have failed, and put rows back
                    todo = deque(new if places_only else self._waiting)
                batch = self._next_batch(todo, places_only=places_only)
                if not batch:
                    return True
                unknown = await self._write(batch)
            if unknown is None:
                return False
            if todo and todo[0] in unknown:
                todo.popleft()
            if not todo:
                return True
            await asyncio.sleep(loop.time() - begin)

    def _next_batch(self, todo: deque[str], *, places_only: bool) -> _Batch:
        """Take rows for one transaction; `todo` keeps the kernels that have more of them.

        The executions of a kernel go first: if a takeover finds old places, output comes twice, but
        with old executions, requests would be missing.
        """
        batch = _Batch()
        while todo:
            rows = self._waiting.get(todo[0])
            if rows is not None:
                if not places_only:
                    _move(rows.executions, batch.executions, _ROWS - len(batch))
                _move(rows.places, batch.places, _ROWS - len(batch))
                if len(batch) == _ROWS:
                    break
                if rows.sweep and not places_only:
                    if len(batch.swept) == _SWEPT:
                        break
                    batch.swept.add(todo[0])
                    rows.sweep = False
                if not rows:
                    del self._waiting[todo[0]]
            todo.popleft()
        return batch

    async def _write(self, batch: _Batch) -> frozenset[str] | None:
        """Write rows; return the kernels that have no row yet, or None after an error."""
        hubs = [hub for name in batch.swept if (hub := self._hubs.get(name)) is not None]
        known = {hub.kernel_id: hub.remembered() for hub in hubs}
        try:
            unknown = await self._workers.call(
                lambda: self._store.put_changes(
                    batch.places, batch.executions, {k: _kept(each) for k, each in known.items()}
                )
            )
        except RegistryError as error:
            self._put_back(batch)
            for name in [name for name in self._waiting if self._hubs.get(name) is None]:
                del self._waiting[name]
            if not self._failing:
                self._log.error(
                    "The state of kernels cannot be written for the other replicas: %s", error
                )
            self._failing = True
            return None
        except BaseException:
            self._put_back(batch)
            raise
        self._failing = False
        self._put_back(batch, unknown)  # their own rows have yet to be written
        return unknown

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every)
            try:
                await self.write()
            except Exception:  # noqa: BLE001 - the state of the other kernels must be written
                self._log.exception("The state of kernels cannot be written")

    async def _run_sessions(self) -> None:
        while True:
            await self._has_new.wait()
            self._has_new.clear()
            await asyncio.sleep(_SOON)
            if self._failing:  # then with the next batch
                continue
            try:
                await self.write_sessions()
            except Exception:  # noqa: BLE001 - later sessions must be written
                self._log.exception("New sessions cannot be written")

    def _put_back(self, batch: _Batch, only: Collection[str] | None = None) -> None:
        """Write rows again the next time, unless there are newer ones or their kernel has ended.

        Rows that are only to be deleted are not kept, because there may be any number of them.

        Parameters
        ----------
        batch : _Batch
        only : collection of str, optional
            The kernels whose rows must be written again.
        """
        for place in batch.places:
            if (rows := self._rows_again(place.kernel_id, only)) is not None:
                if place.msg_id:
                    rows.places.setdefault(place.session_id, place)
                else:
                    rows.sweep = True
        for each in batch.executions:
            if (rows := self._rows_again(each.kernel_id, only)) is not None:
                if each.entry:
                    rows.executions.setdefault(each.msg_id, each)
                else:
                    rows.sweep = True
        for kernel_id in batch.swept:
            if (rows := self._rows_again(kernel_id, only)) is not None:
                rows.sweep = True

    def _rows_again(self, kernel_id: str, only: Collection[str] | None) -> _Rows | None:
        wanted = only is None or kernel_id in only
        return self._rows(kernel_id) if wanted and self._hubs.get(kernel_id) is not None else None

    def _rows(self, kernel_id: str) -> _Rows:
        return self._waiting.setdefault(kernel_id, _Rows())

    async def _collect(self) -> None:
        """Collect the changes of all hubs; the event loop does other work in between."""
        hubs = list(self._hubs)
        self._identities = {h: known for h, known in self._identities.items() if not h.closed}
        until = time.monotonic() + _SLICE
        for hub in hubs:
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + _SLICE
            # A hub that follows is about to serve, and the rows are not read yet.
            if not (hub.following or hub.closed):
                try:
                    self._collect_from(hub)
                except Exception:  # noqa: BLE001 - the others must be collected
                    self._log.exception("The state of kernel %s cannot be collected", hub.kernel_id)

    def _collect_from(self, hub: Hub) -> None:
        kernel_id, identities = hub.kernel_id, hub.identities
        known = self._identities.get(hub)
        if known is None:  # the rows may be those of another owner
            self._rows(kernel_id).sweep = True
        if identities != known:
            self._identities[hub] = identities
            text = json.dumps([each.hex() for each in identities])
            self._rows(kernel_id).places[_IDENTITIES] = Place(kernel_id, _IDENTITIES, text)
        self._add(kernel_id, hub.take_changes())

    def _add_places(self, kernel_id: str, places: Mapping[str, str | None]) -> None:
        for session_id, msg_id in places.items():
            key = _END if session_id == END else json.dumps(session_id)
            if len(key) <= _LONGEST:
                text = "" if msg_id is None else json.dumps(msg_id)
                rows = self._rows(kernel_id)
                if self._failing and not text:
                    rows.places.pop(key, None)
                    rows.sweep = True
                else:
                    rows.places[key] = Place(kernel_id, key, text)

    def _add(self, kernel_id: str, changes: Changes) -> None:
        self._add_places(kernel_id, changes.places)
        for msg_id, entry in changes.executions.items():
            key = json.dumps(msg_id)
            if len(key) <= _LONGEST:
                text = "" if entry is None else json.dumps(entry)
                rows = self._rows(kernel_id)
                if self._failing and not text:
                    rows.executions.pop(key, None)
                    rows.sweep = True
                else:
                    rows.executions[key] = ExecutionRow(kernel_id, key, text)


def _move(rows: dict[str, T], to: list[T], count: int) -> None:
    """Move some rows, the oldest first."""
    to += [rows.pop(key) for key in list(islice(rows, count))]


def _kept(known: Remembered) -> KeptRows:
    """Return the ids of the rows of a kernel that stay."""
    sessions = {json.dumps(each) for each in known.sessions} | {_END, _IDENTITIES}
    return KeptRows(sessions, {json.dumps(each) for each in known.executions})


def read_handovers(
    store: ClusterStore, kernels: Mapping[str, tuple[bytes, ...]]
) -> dict[str, Handover]:
    """Return the states of some kernels that their owner has written; blocks.

    Parameters
    ----------
    store : ClusterStore
        The database.
    kernels : mapping of str to tuple of bytes
        By kernel, the ZeroMQ identities in its row, newest last.

    Raises
    ------
    RegistryError
        If the database cannot be read.
    """
    places: dict[str, dict[str, str]] = {kernel_id: {} for kernel_id in kernels}
    executions: dict[str, dict[str, Any]] = {kernel_id: {} for kernel_id in kernels}
    known = dict(kernels)
    for row in store.places(*kernels):
        with suppress(ValueError):
            value = json.loads(row.msg_id)
            if row.session_id == _IDENTITIES:
                known[row.kernel_id] = tuple(bytes.fromhex(each) for each in value)
            else:
                session_id = END if row.session_id == _END else json.loads(row.session_id)
                places[row.kernel_id][str(session_id)] = str(value)
    for each in store.executions(*kernels):
        with suppress(ValueError):
            executions[each.kernel_id][str(json.loads(each.msg_id))] = json.loads(each.entry)
    return {name: Handover(places[name], executions[name], known[name]) for name in kernels}
