"""Writes the state that a takeover needs to the database, in one batch per second at most.

The batch has the changes of all kernels together. Nothing is written if nothing has changed, and
nothing is written per message. New sessions are written at once, those of some milliseconds
together: a client whose session is not in the database begins with the next output.

While the database is down, the changes are kept: of each session and each execution, only the
latest one. Those that are forgotten meanwhile are not kept. Afterwards, the rows of the kernel that
nobody remembers are deleted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from kbridge.errors import RegistryError
from kbridge.flow.handover import END, Changes, Handover
from kbridge.hub import Hub, HubTable
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import ExecutionRow, KeptRows, Place
from kbridge.kernels.tasks import spawn
from kbridge.storage.workers import Workers

__all__ = ["StateWriter", "read_handover", "read_handovers"]

_EVERY: Final = 1.0  # seconds
_SOON: Final = 0.01  # seconds in which new sessions are collected
_LONGEST: Final = 200  # characters of the ids in the tables; clients choose them
_END: Final = "end"  # ids of sessions are JSON strings, which begin with a quote
_IDENTITIES: Final = "identities"


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
        # The changes that are not written yet, by kernel and session or execution.
        self._places: dict[tuple[str, str], Place] = {}
        self._executions: dict[tuple[str, str], ExecutionRow] = {}
        self._identities: dict[str, list[bytes]] = {}  # as collected
        # The kernels that may have rows of sessions and executions that were forgotten.
        self._sweep: set[str] = set()
        self._new: set[str] = set()  # kernels with new sessions
        self._has_new = asyncio.Event()
        self._workers = Workers(1, "kbridge-state")
        self._writing = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def open(self) -> None:
        """Write from now on."""
        self._hubs.replicate(self)
        if self._task is None:
            self._task = spawn(self._run(), self._log)

    async def aclose(self) -> None:
        """Write the last changes; may be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            await self.write()
            self._workers.close()

    def on_session(self, kernel_id: str) -> None:
        """Write the new session of a kernel soon."""
        self._new.add(kernel_id)
        self._has_new.set()

    async def write(self) -> bool:
        """Write the changes at once; return False if they cannot be written now."""
        async with self._writing:
            self._new.clear()
            self._collect()
            return await self._put()

    async def write_sessions(self) -> None:
        """Write the places of new sessions at once."""
        async with self._writing:
            new, self._new = self._new, set()
            for hub in [hub for hub in self._hubs if hub.kernel_id in new]:
                self._add_places(hub.kernel_id, hub.take_new_places())
            await self._put()

    async def _put(self) -> bool:
        """Write the rows that wait."""
        places, self._places = self._places, {}
        executions, self._executions = self._executions, {}
        if not places and not executions:
            return True
        swept, self._sweep = self._sweep, set()
        kept = {hub.kernel_id: _kept(hub) for hub in self._hubs if hub.kernel_id in swept}
        try:
            unknown = await self._workers.call(
                lambda: self._store.put_changes(
                    list(places.values()), list(executions.values()), kept
                )
            )
        except RegistryError as error:
            self._keep(places, executions, swept)
            if not self._failing:
                self._log.error(
                    "The state of kernels cannot be written for the other replicas: %s", error
                )
            self._failing = True
            return False
        except BaseException:
            self._keep(places, executions, swept)
            raise
        self._failing = False
        if unknown:  # their own rows have yet to be written
            self._keep(
                {key: row for key, row in places.items() if key[0] in unknown},
                {key: row for key, row in executions.items() if key[0] in unknown},
                swept & unknown,
            )
        return True

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._every
        while True:
            try:
                async with asyncio.timeout_at(due):
                    await self._has_new.wait()
                    self._has_new.clear()
                    await asyncio.sleep(_SOON)
            except TimeoutError:
                await self.write()
                due = loop.time() + self._every
                continue
            if not self._failing:  # otherwise with the next batch
                await self.write_sessions()

    def _keep(
        self,
        places: dict[tuple[str, str], Place],
        executions: dict[tuple[str, str], ExecutionRow],
        swept: set[str],
    ) -> None:
        """Write rows again the next time, unless there are newer ones or their kernel has ended.

        Rows that are only to be deleted are not kept, because there may be any number of them.
        """
        here = {hub.kernel_id for hub in self._hubs}
        forgotten = {k[0] for k, row in places.items() if not row.msg_id}
        forgotten |= {k[0] for k, row in executions.items() if not row.entry}
        self._sweep |= (swept | forgotten) & here
        self._places = {
            k: row for k, row in places.items() if row.msg_id and k[0] in here
        } | self._places
        self._executions = {
            k: row for k, row in executions.items() if row.entry and k[0] in here
        } | self._executions

    def _collect(self) -> None:
        identities: dict[str, list[bytes]] = {}
        for hub in self._hubs:
            if hub.following:  # it is about to be served; the rows are not read yet
                continue
            kernel_id = hub.kernel_id
            if kernel_id not in self._identities:  # the rows may be those of another owner
                self._sweep.add(kernel_id)
            identities[kernel_id] = known = hub.identities
            if known != self._identities.get(kernel_id):
                text = json.dumps([each.hex() for each in known])
                self._places[kernel_id, _IDENTITIES] = Place(kernel_id, _IDENTITIES, text)
            self._add(kernel_id, hub.take_changes())
        self._identities = identities

    def _add_places(self, kernel_id: str, places: Mapping[str, str | None]) -> None:
        for session_id, msg_id in places.items():
            key = _END if session_id == END else json.dumps(session_id)
            if len(key) <= _LONGEST:
                text = "" if msg_id is None else json.dumps(msg_id)
                self._places[kernel_id, key] = Place(kernel_id, key, text)

    def _add(self, kernel_id: str, changes: Changes) -> None:
        self._add_places(kernel_id, changes.places)
        for msg_id, entry in changes.executions.items():
            key = json.dumps(msg_id)
            if len(key) <= _LONGEST:
                text = "" if entry is None else json.dumps(entry)
                self._executions[kernel_id, key] = ExecutionRow(kernel_id, key, text)


def _kept(hub: Hub) -> KeptRows:
    """Return the ids of the rows of a kernel that stay."""
    known = hub.remembered()
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


def read_handover(
    store: ClusterStore, kernel_id: str, identities: tuple[bytes, ...] = ()
) -> Handover:
    """Return the state of one kernel, as `read_handovers` does."""
    return read_handovers(store, {kernel_id: identities})[kernel_id]
