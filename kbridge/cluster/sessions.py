"""The sessions of a cluster, which are in its database.

Each replica answers for all of them. The database decides which replica has created the session of
a path. A session ends with its kernel: rows whose kernel has ended are removed when they are found.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from kbridge.cluster.remote_kernels import RemoteKernels
from kbridge.errors import (
    Busy,
    InvalidRequest,
    KernelNotFound,
    RegistryError,
    SessionNotFound,
)
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import SessionRow
from kbridge.kernels.sessions import new_session_fields, session_fields, session_model
from kbridge.kernels.tasks import finished
from kbridge.kernels.users import OPERATOR, User
from kbridge.storage.workers import Workers

__all__ = ["ClusterSessions"]

T = TypeVar("T")

# Separate threads: a query that hangs must not delay renewals, and must not wait for them.
_THREADS: Final = 3


class ClusterSessions:
    """The sessions of a cluster, with the methods of `kbridge.kernels.sessions.Sessions`.

    Parameters
    ----------
    kernels : BridgeKernelManager
        Starts and shuts down kernels of this replica.
    others : RemoteKernels
        The kernels of the other replicas.
    store : ClusterStore
        The database.
    """

    def __init__(
        self, kernels: BridgeKernelManager, others: RemoteKernels, store: ClusterStore
    ) -> None:
        self._kernels = kernels
        self._others = others
        self._store = store
        self._workers = Workers(_THREADS, "kbridge-sessions")
        self._last: list[SessionRow] = []  # for the time without the database
        # One lock per user and path: two requests for a path at the same time start one kernel.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(self, body: object, user: User = OPERATOR) -> dict[str, Any]:
        """Create a session, or return the one of its path; see `Sessions.create`.

        Raises
        ------
        Busy
            If the database cannot be used.
        """
        fields = new_session_fields(body)
        path: str = fields["path"]
        lock = self._locks.setdefault((user.name, path), asyncio.Lock())
        with self._kernels.starting():
            async with lock:
                found = await self._of_path(path, user)
                if found is not None:
                    return found
                return await self._create(fields, user)

    async def _create(self, fields: dict[str, Any], user: User) -> dict[str, Any]:
        path, name, kernel_id = fields["path"], fields.get("name"), fields.get("kernel_id")
        kernel = None if kernel_id is None else await self._kernel(kernel_id)
        started = kernel is None or not user.may_reach_kernel(kernel)
        if started:
            if not user.may_choose_ids:
                kernel_id = None
            elif kernel_id is not None:
                taken = await self._ask(self._store.kernel, kernel_id)
                if taken is not None:
                    raise InvalidRequest(f"Kernel {kernel_id} is being started already")
            kernel_id = await self._kernels.start_kernel(
                fields.get("kernel_name"),
                path=path,
                kernel_id=kernel_id,
                session_name=name or path,
                user=user.name,
            )
        row = SessionRow(
            session_id=str(uuid.uuid4()),
            kernel_id=str(kernel_id),
            path=path,
            name=name,
            type=fields["type"],
            user=user.name,
        )
        async with self._shut_down_after_error(row.kernel_id if started else None):
            while True:
                found = await self._ask(self._store.create_session, row)
                model = await self._of_user(found, user)
                if model is not None:
                    break
                if found is row:
                    raise SessionNotFound(f"The kernel of the session for {path} has ended")
        if found is not row and started:  # another replica was first
            await self._shutdown(row.kernel_id)
        return model

    async def get(self, session_id: str, user: User = OPERATOR) -> dict[str, Any]:
        """Return the model of a session; see `Sessions.get`."""
        row, model = await self._find(session_id, user)
        return session_model(row, model)

    async def list(self, user: User = OPERATOR) -> list[dict[str, Any]]:
        """Return the models of a user's sessions whose kernels still exist.

        Without the database, these are the sessions that were read from it the last time.
        """
        with suppress(Busy):
            self._last = await self._ask(self._store.sessions)
            await self._look_for([row.kernel_id for row in self._last])
        models = [(row, self._known(row.kernel_id)) for row in self._last]
        return [
            session_model(row, kernel)
            for row, kernel in models
            if kernel is not None and user.may_reach_session(row.user, kernel)
        ]

    async def patch(self, session_id: str, body: object, user: User = OPERATOR) -> dict[str, Any]:
        """Rename or retype a session, or give it another kernel; see `Sessions.patch`."""
        fields = session_fields(body)
        row, _ = await self._find(session_id, user)
        with self._kernels.starting():
            kernel_id, started = fields.get("kernel_id"), None
            if kernel_id is not None:
                kernel = await self._kernel(kernel_id)
                if kernel is None or not user.may_reach_kernel(kernel):
                    raise InvalidRequest(f"There is no kernel {kernel_id}")
            elif fields.get("kernel_name") is not None:
                kernel_id = started = await self._kernels.start_kernel(
                    fields["kernel_name"],
                    path=row.path,
                    session_name=row.name or row.path,
                    user=row.user,
                )
            new = replace(row, **{n: fields[n] for n in ("path", "name", "type") if n in fields})
            new = replace(new, kernel_id=kernel_id or row.kernel_id)
            async with self._shut_down_after_error(started):
                if not await self._ask(self._store.change_session, new):
                    raise SessionNotFound(f"Session {session_id} was deleted meanwhile")
            self._kernels.rename_session(new.kernel_id, new.name or new.path)
            if new.kernel_id != row.kernel_id:
                await self._shutdown_unused(row.kernel_id)
            model = await self._model(new)
            if model is None:
                raise SessionNotFound(f"There is no session {session_id}")
            return model

    async def delete(self, session_id: str, user: User = OPERATOR) -> None:
        """End a session and shut its kernel down; see `Sessions.delete`."""
        row, _ = await self._find(session_id, user)
        # In this order: clients find a kernel that could not be shut down by its session.
        await self._shutdown(row.kernel_id)
        await self._ask(self._store.drop_session, session_id)

    def close(self) -> None:
        """End its threads; may be called twice."""
        self._workers.close()

    def adopt(self, rows: Iterable[SessionRow]) -> None:
        """Do nothing: the database has the sessions of all replicas."""

    def drop_orphans(self) -> None:
        """Do nothing: sessions whose kernels have ended are removed when they are found."""

    # -- kernels of this replica and of others ------------------------------------------------

    def _known(self, kernel_id: str) -> dict[str, Any] | None:
        """Return the model of a kernel, as far as this replica knows."""
        if kernel_id in self._kernels:
            return self._kernels.model(kernel_id)
        other = self._others.get(kernel_id)
        return None if other is None else other.model()

    async def _kernel(self, kernel_id: str) -> dict[str, Any] | None:
        """Return the model of a kernel; the database is asked if it is not known."""
        await self._look_for([kernel_id])
        return self._known(kernel_id)

    async def _look_for(self, kernel_ids: Iterable[str]) -> None:
        """Ask the database if this replica does not know which replica serves a kernel."""
        for kernel_id in kernel_ids:
            other = None if kernel_id in self._kernels else self._others.get(kernel_id)
            if kernel_id not in self._kernels and (other is None or other.replica is None):
                await self._others.view.refresh()
                return

    @asynccontextmanager
    async def _shut_down_after_error(self, kernel_id: str | None) -> AsyncIterator[None]:
        """Shut a kernel down that was started for a session which could not be written."""
        try:
            yield
        except Exception:
            if kernel_id is not None:
                # Also without the database: this replica has started the kernel.
                with suppress(KernelNotFound, Busy):
                    await self._kernels.shutdown_kernel(kernel_id)
            raise

    async def _shutdown(self, kernel_id: str) -> None:
        with suppress(KernelNotFound):  # it has ended
            if kernel_id in self._kernels:
                await self._kernels.shutdown_kernel(kernel_id)
                return
            try:
                other = await self._others.find(kernel_id)
                if other is not None:
                    passed = self._others.ask(other, lambda now: now.shutdown(), self._kernels)
                    if await passed is not None:
                        return
            except RegistryError as error:
                raise _unusable(error) from None
            # It has come here in the meantime, or ended.
            await self._kernels.shutdown_kernel(kernel_id)

    async def _shutdown_unused(self, kernel_id: str) -> None:
        rows = await self._ask(self._store.sessions)
        if all(row.kernel_id != kernel_id for row in rows):
            await self._shutdown(kernel_id)

    # -- rows ---------------------------------------------------------------------------------

    async def _find(self, session_id: str, user: User) -> tuple[SessionRow, dict[str, Any]]:
        """Return a session of a user, and the model of its kernel."""
        row = await self._ask(self._store.session, session_id)
        # Nothing is done to the session of another user, whatever the state of its kernel is.
        if row is None or not user.may_reach(row.user):
            raise SessionNotFound(f"There is no session {session_id}")
        model = await self._kernel(row.kernel_id)
        if model is None:
            await self._drop_orphan(row)
        if model is None or not user.may_reach_kernel(model):
            raise SessionNotFound(f"There is no session {session_id}")
        return row, model

    async def _of_path(self, path: str, user: User) -> dict[str, Any] | None:
        row = await self._ask(self._store.session_for_path, path, user.name)
        return None if row is None else await self._of_user(row, user)

    async def _of_user(self, row: SessionRow, user: User) -> dict[str, Any] | None:
        """Return the model of a user's session; remove it if the user may not reach its kernel."""
        model = await self._model(row)
        if model is None or user.may_reach_kernel(model["kernel"]):
            return model
        # The user was an administrator when the session got this kernel.
        await self._ask(self._store.drop_session, row.session_id)
        return None

    async def _model(self, row: SessionRow) -> dict[str, Any] | None:
        """Return the model of a session; remove it, and return None, if its kernel has ended."""
        kernel = await self._kernel(row.kernel_id)
        if kernel is not None:
            return session_model(row, kernel)
        await self._drop_orphan(row)
        return None

    async def _drop_orphan(self, row: SessionRow) -> None:
        """Remove a session, unless its kernel has not ended."""
        if await self._ask(self._store.kernel, row.kernel_id) is None:
            await self._ask(self._store.drop_session, row.session_id)
        else:
            raise Busy("The kernel of the session is starting. Try again")

    async def _ask(self, method: Callable[..., T], *arguments: Any) -> T:
        try:
            return await finished(self._workers.call(partial(method, *arguments)))
        except RegistryError as error:
            raise _unusable(error) from None


def _unusable(error: RegistryError) -> Busy:
    return Busy(f"The database of the cluster cannot be used: {error}")
