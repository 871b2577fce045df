"""Users whose tokens are in a table, in place of a program that knows users.

`python -m tests.support.users OPTIONS` is kbridge with these users.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from kbridge.errors import UsersUnavailable
from kbridge.kernels.users import User
from kbridge.server.api.services import Services
from kbridge.server.auth.open_connections import OpenConnections
from kbridge.server.auth.users import Credential, Users
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.config import ServerConfig

__all__ = ["ADMIN", "ALICE", "BOB", "Checks", "Table"]

ALICE, BOB = User("alice"), User("bob")
ADMIN = User("root of the hub", admin=True)


class Table:
    """A resolver with a table; the token of a user is `token-` and the name.

    Attributes
    ----------
    users : dict of str to User
        The users by their tokens.
    asked : list of str
        The tokens that were asked for.
    down : bool
        True while nothing can be asked.
    gate : asyncio.Event
        Questions wait until it is set.
    """

    def __init__(self, *users: User) -> None:
        self.users = {f"token-{user.name}": user for user in users or (ALICE, BOB, ADMIN)}
        self.asked: list[str] = []
        self.down = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def user_of(self, credential: Credential) -> User | None:
        self.asked.append(credential.token)
        await self.gate.wait()
        if self.down:
            raise UsersUnavailable("the table is locked away")
        return self.users.get(credential.token)


class Checks:
    """The open connections of the users of a table, which are checked when the test says so.

    Attributes
    ----------
    users : Users
        The users; each check asks for them.
    """

    def __init__(self, table: Table) -> None:
        self.users = Users(table, fresh=0.0)
        self._turns = asyncio.Semaphore(0)
        self._open = OpenConnections(self.users, pause=self._pause)

    def of(self, services: Services) -> OpenConnections:
        """Let the handlers of a server add their connections."""
        services.open_connections = self._open
        return self._open

    def check(self) -> None:
        """Check the connections of one token."""
        self._turns.release()

    async def _pause(self, _seconds: float) -> None:
        await self._turns.acquire()


def _main() -> None:
    configured = KbridgeApp.configuration

    def configuration(app: KbridgeApp) -> ServerConfig:
        config = configured(app)
        return replace(config, auth=replace(config.auth, resolver=Table()))

    KbridgeApp.configuration = configuration  # type: ignore[method-assign]
    KbridgeApp.launch_instance()


if __name__ == "__main__":
    _main()
