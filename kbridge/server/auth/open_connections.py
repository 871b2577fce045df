"""Ends the open connections of users whose tokens are not valid any longer.

Invariants:

- `Users` is asked again about a token with open connections once its answer is old. All connections
  and requests with one token share its questions;
- the questions about different tokens are spread over a quarter of the time for which answers hold;
- a connection ends only after an answer that refuses its token, or that names a user who may not
  have the connection. While nothing can be asked, it stays open;
- the token of the operator is not known here, so its connections cost nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tornado.log import app_log

from kbridge.errors import Forbidden
from kbridge.kernels.users import User
from kbridge.server.auth.users import Credential, Users

__all__ = ["Connection", "OpenConnections"]

_SPREAD: Final = 0.25  # of the time until the next question


class Connection(Protocol):
    """A connection of a user: a websocket, or a stream of events."""

    def still_allowed(self, user: User) -> bool:
        """Return True if a user, whose scopes may have changed, may have this connection."""

    def end_access(self, error: Forbidden) -> None:
        """Close the connection for an error; may be called after its end."""


class OpenConnections:
    """The open connections of users, by their tokens.

    Parameters
    ----------
    users : Users
        Finds users by their tokens.
    pause : callable
        Waits for a number of seconds.
    spread : callable
        Returns a random number between 0 and 1.
    """

    def __init__(
        self,
        users: Users,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._users = users
        self._pause = pause
        self._spread = spread
        self._open: dict[Credential, set[Connection]] = {}
        self._tasks: dict[Credential, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def add(self, credential: Credential, connection: Connection) -> None:
        """Begin to check a connection."""
        if self._closed:
            return  # the server closes all connections
        self._open.setdefault(credential, set()).add(connection)
        if credential not in self._tasks:
            # In an empty context, the task keeps no request alive.
            task = asyncio.get_running_loop().create_task(
                self._check_again(credential), context=contextvars.Context()
            )
            self._tasks[credential] = task

    def discard(self, credential: Credential, connection: Connection) -> None:
        """Check a connection no longer; may be called twice."""
        connections = self._open.get(credential)
        if connections is None:
            return
        connections.discard(connection)
        if not connections:
            del self._open[credential]
            self._stop(self._tasks.pop(credential))

    async def aclose(self) -> None:
        """Check nothing more; may be called twice."""
        self._closed = True
        self._open.clear()
        for task in self._tasks.values():
            self._stop(task)
        self._tasks.clear()
        while self._ending:
            await asyncio.wait(self._ending)

    def _stop(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _check_again(self, credential: Credential) -> None:
        """Check the connections of a token until `discard` removes the last one."""
        while True:
            delay = self._users.next_question(credential)
            await self._pause(delay * (1 + _SPREAD * self._spread()))
            lookup = self._users.lookup(credential)
            if lookup is not None:
                await lookup
            for connection in list(self._open.get(credential, ())):
                self._check(credential, connection)
                await asyncio.sleep(0)  # a token may have thousands of connections

    def _check(self, credential: Credential, connection: Connection) -> None:
        user = self._users.known(credential)
        try:
            if self._users.refused(credential):
                reason = "this token is no longer valid for this server"
            elif user is not None and not connection.still_allowed(user):
                reason = "this token no longer gives access to this"
            else:
                return
            self.discard(credential, connection)
            connection.end_access(Forbidden(f"{reason}; log in again, or use another token"))
        except Exception:  # noqa: BLE001 - the other connections must be checked
            app_log.exception("A connection without access could not be closed")
