"""Sessions: which document uses which kernel, as in Jupyter Server's session API.

They are kept in memory, and in the registry if there is one. A session ends with its kernel: a
session whose kernel has ended is removed before the next access.

Each user has their own session for a path. A session or a kernel that a user may not reach is as if
it did not exist.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from kbridge.errors import InvalidRequest, KernelNotFound, SessionNotFound
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.registry.models import SessionRow
from kbridge.kernels.registry.writer import RegistryWriter
from kbridge.kernels.users import OPERATOR, User

__all__ = ["Sessions", "new_session_fields", "session_fields", "session_model"]

# A kernel gets the name of its document in a variable, which Linux limits to 128 KiB.
_LONGEST: Final = 16_384


@dataclass(slots=True)
class _Session:
    id: str
    path: str
    name: str | None
    type: str
    kernel_id: str
    user: str = ""


class Sessions:
    """The sessions of one server.

    Parameters
    ----------
    kernels : BridgeKernelManager
        Starts and shuts down their kernels.
    writer : RegistryWriter, optional
        Records the sessions.
    """

    def __init__(self, kernels: BridgeKernelManager, writer: RegistryWriter | None = None) -> None:
        self._kernels = kernels
        self._writer = writer or RegistryWriter()
        self._sessions: dict[str, _Session] = {}
        # One lock per user and path: two requests for a path at the same time make one session.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(self, body: object, user: User = OPERATOR) -> dict[str, Any]:
        """Create the session of a request, or return the session that its path has already.

        Parameters
        ----------
        body : object
            The parsed JSON: path, type, optionally name and kernel (name or id); or the older
            ``{"notebook": {"path"}}``.
        user : User
            The user who asks.

        Raises
        ------
        InvalidRequest
            If a field is missing or invalid.
        KernelspecNotFound, KernelLimitReached, KernelStartError
            As the start of a kernel raises them.
        """
        fields = new_session_fields(body)
        path: str = fields["path"]
        lock = self._locks.setdefault((user.name, path), asyncio.Lock())
        with self._kernels.starting():
            async with lock:
                self.drop_orphans()
                for each in self._sessions.values():
                    if (each.user, each.path) == (user.name, path) and self._may(user, each):
                        return self._model(each)
                name = fields.get("name")
                kernel_id = fields.get("kernel_id")
                if kernel_id is None or not self._reaches(user, kernel_id):
                    kernel_id = await self._kernels.start_kernel(
                        fields.get("kernel_name"),
                        path=path,
                        kernel_id=kernel_id if user.may_choose_ids else None,
                        session_name=name or path,
                        user=user.name,
                    )
                session = _Session(
                    id=str(uuid.uuid4()),
                    path=path,
                    name=name,
                    type=fields["type"],
                    kernel_id=kernel_id,
                    user=user.name,
                )
                self._sessions[session.id] = session
                self._record(session)
                await self._writer.settled()
                return self._model(session)

    def adopt(self, rows: Iterable[SessionRow]) -> None:
        """Add the sessions of an earlier server whose kernels were adopted.

        Sessions of a kernel that could not be reached stay in the registry, as the kernel does.
        """
        for r in rows:
            if r.kernel_id not in self._kernels and self._writer.has_kernel(r.kernel_id):
                continue
            self._sessions[r.session_id] = _Session(
                id=r.session_id,
                path=r.path,
                name=r.name,
                type=r.type,
                kernel_id=r.kernel_id,
                user=r.user,
            )
        self.drop_orphans()

    def get(self, session_id: str, user: User = OPERATOR) -> dict[str, Any]:
        """Return the model of a session.

        Raises
        ------
        SessionNotFound
            If the user has no such session, or its kernel has ended.
        """
        return self._model(self._find(session_id, user))

    def list(self, user: User = OPERATOR) -> list[dict[str, Any]]:
        """Return the models of a user's sessions whose kernels still exist."""
        self.drop_orphans()
        return [self._model(each) for each in self._sessions.values() if self._may(user, each)]

    async def patch(self, session_id: str, body: object, user: User = OPERATOR) -> dict[str, Any]:
        """Rename or retype a session, or give it another kernel.

        Its old kernel is shut down, unless another session uses it.

        Raises
        ------
        InvalidRequest
            If a field is invalid, or no kernel has the given id.
        SessionNotFound
            If the user has no such session.
        KernelspecNotFound, KernelLimitReached, KernelStartError
            As the start of a kernel raises them.
        """
        fields = session_fields(body)
        session = self._find(session_id, user)
        with self._kernels.starting():
            kernel_id = fields.get("kernel_id")
            if kernel_id is not None:
                if not self._reaches(user, kernel_id):
                    raise InvalidRequest(f"There is no kernel {kernel_id}")
            elif fields.get("kernel_name") is not None:
                name = session.name or session.path
                kernel_id = await self._kernels.start_kernel(
                    fields["kernel_name"], path=session.path, session_name=name, user=session.user
                )
                if self._sessions.get(session_id) is not session:
                    await self._shutdown_unused(kernel_id)
                    raise SessionNotFound(
                        f"Session {session_id} was deleted while its kernel was started"
                    )
            for field in ("path", "name", "type"):
                if field in fields:
                    setattr(session, field, fields[field])
            old = session.kernel_id
            session.kernel_id = kernel_id or old
            self._kernels.rename_session(session.kernel_id, session.name or session.path)
            self._record(session)
            await self._writer.settled()
            if session.kernel_id != old:
                await self._shutdown_unused(old)
            return self._model(session)

    async def delete(self, session_id: str, user: User = OPERATOR) -> None:
        """End a session and shut its kernel down, even if other sessions use the kernel.

        Raises
        ------
        SessionNotFound
            If the user has no such session.
        """
        session = self._find(session_id, user)
        self._drop(session_id)
        try:
            await self._kernels.shutdown_kernel(session.kernel_id)
        except KernelNotFound:
            return  # the kernel has ended

    def drop_orphans(self) -> None:
        """Remove the sessions whose kernels have ended."""
        ended = [s.id for s in self._sessions.values() if s.kernel_id not in self._kernels]
        for session_id in ended:
            self._drop(session_id)

    def __len__(self) -> int:
        return len(self._sessions)

    async def _shutdown_unused(self, kernel_id: str) -> None:
        if any(session.kernel_id == kernel_id for session in self._sessions.values()):
            return
        try:
            await self._kernels.shutdown_kernel(kernel_id)
        except KernelNotFound:
            return  # the kernel has ended

    def _reaches(self, user: User, kernel_id: str) -> bool:
        return kernel_id in self._kernels and user.may_reach_kernel(self._kernels.model(kernel_id))

    def _may(self, user: User, session: _Session) -> bool:
        kernel = self._kernels.model(session.kernel_id)
        return user.may_reach_session(session.user, kernel)

    def _find(self, session_id: str, user: User) -> _Session:
        self.drop_orphans()
        session = self._sessions.get(session_id)
        if session is None or not self._may(user, session):
            raise SessionNotFound(f"There is no session {session_id}")
        return session

    def _drop(self, session_id: str) -> None:
        del self._sessions[session_id]
        self._writer.drop_session(session_id)

    def _record(self, session: _Session) -> None:
        self._writer.put_session(_row(session))

    def _model(self, session: _Session) -> dict[str, Any]:
        return session_model(_row(session), self._kernels.model(session.kernel_id))


def _row(session: _Session) -> SessionRow:
    return SessionRow(
        session_id=session.id,
        kernel_id=session.kernel_id,
        path=session.path,
        name=session.name,
        type=session.type,
        user=session.user,
    )


def session_model(row: SessionRow, kernel: dict[str, Any]) -> dict[str, Any]:
    """Return the REST model of a session with the model of its kernel."""
    model = {
        "id": row.session_id,
        "path": row.path,
        "name": row.name,
        "type": row.type,
        "kernel": kernel,
    }
    if row.type == "notebook":  # for clients from before 2016
        model["notebook"] = {"path": row.path, "name": row.name}
    return model


def new_session_fields(body: object) -> dict[str, Any]:
    """Check the body of a request for a new session, as `session_fields` does.

    Raises
    ------
    InvalidRequest
        If it has no path or no type, either.
    """
    fields = session_fields(body)
    for required in ("path", "type"):
        if fields.get(required) is None:
            raise InvalidRequest(f"A session needs a {required}")
    return fields


def session_fields(body: object) -> dict[str, Any]:
    """Check the body of a request; return path, name, type, kernel_id and kernel_name in it.

    Raises
    ------
    InvalidRequest
        If a field has another type, is not text, or is too long.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest("The body of the request is not a JSON object")
    fields = {name: body[name] for name in ("path", "name", "type") if name in body}
    notebook = _object(body, "notebook")
    if notebook:
        fields["type"] = "notebook"
        for name in ("path", "name"):
            if notebook.get(name) is not None:
                fields["path"] = notebook[name]
                break
    kernel = _object(body, "kernel")
    fields |= {f"kernel_{name}": kernel[name] for name in ("id", "name") if kernel.get(name)}
    for name, value in fields.items():
        if not isinstance(value, str) and not (name == "name" and value is None):
            raise InvalidRequest(f"{name.replace('_', '.')} is not a string")
        if value and not _is_text(value):
            raise InvalidRequest(f"{name.replace('_', '.')} is not text")
        if value and len(value) > _LONGEST:
            raise InvalidRequest(f"{name.replace('_', '.')} has more than {_LONGEST} characters")
    return fields


def _is_text(value: str) -> bool:
    """Return True if databases and environment variables can hold the text."""
    try:
        return b"\0" not in value.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can represent
        return False


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} is not an object")
    return value
