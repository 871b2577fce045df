"""The objects that all handlers share, found under `services` in Tornado's settings."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kbridge.hub.table import HubTable
from kbridge.kernels.manager import BridgeKernelManager
from kbridge.kernels.sessions import Sessions
from kbridge.page.sampler import Sampler
from kbridge.server.auth.authenticator import Authenticator
from kbridge.server.auth.jupyterhub import JupyterHub
from kbridge.server.auth.open_connections import OpenConnections
from kbridge.server.metrics import ServerMetrics
from kbridge.server.readiness import Readiness
from kbridge.server.user_activity import ActivityReporter

if TYPE_CHECKING:
    from kbridge.cluster.remote_kernels import RemoteKernels
    from kbridge.cluster.sessions import ClusterSessions

__all__ = ["Closable", "Model", "Restart", "ServerActivity", "Services", "maybe_await"]

Model = dict[str, Any]


class Restart(Protocol):
    """Requests a restart of the server."""

    async def __call__(self, *, force: bool = False) -> str:
        """Request it, unless it would lose something; return the version that will be started."""
        ...


class Closable(Protocol):
    """A websocket handler, as the shutdown of the server needs it."""

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Start the closing handshake."""


class ServerActivity:
    """The times at which the server was started and last used.

    Parameters
    ----------
    clock : callable
        Returns Unix seconds.

    Attributes
    ----------
    started, last_request : float
        Unix seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.started = self.last_request = clock()

    def touch(self) -> None:
        """Record a request that counts as activity."""
        self.last_request = self._clock()


@dataclass
class Services:
    """The objects that all handlers share.

    Parameters
    ----------
    kernels : BridgeKernelManager
    sessions : Sessions or ClusterSessions
    hubs : HubTable
    auth : Authenticator
    base_url : str
        The path in front of every route, with a slash at both ends.
    list_kernels : bool
        True if clients may list kernels and sessions.

    Attributes
    ----------
    activity : ServerActivity
    websockets : set
        All open websockets; handlers add and remove themselves.
    closing : bool
        True once the server shuts down; then nothing new may start.
    shutdown : callable or None
        Shuts the server down as a signal does; None if clients cannot do that.
    restart : callable or None
        Requests a restart, see `kbridge.server.server.Server.request_restart`; None as above.
    metrics : ServerMetrics or None
        The metrics of the server.
    metrics_token : str
        The token that opens only the metrics; empty for none.
    readiness : Readiness or None
        Checks whether the server is ready.
    page : bool
        True if browsers receive the live page and the console.
    cluster : RemoteKernels or None
        The kernels of the other replicas; None without a cluster.
    sampler : Sampler or None
        Samples the server for the live page; None without it.
    jupyterhub : JupyterHub or None
        The program that knows the users, if it is JupyterHub.
    user_activity : ActivityReporter or None
        Reports to it when users were active.
    open_connections : OpenConnections or None
        Ends the open connections of users who lose access; None without users.
    """

    kernels: BridgeKernelManager
    sessions: Sessions | ClusterSessions
    hubs: HubTable
    auth: Authenticator
    base_url: str = "/"
    list_kernels: bool = True
    activity: ServerActivity = field(default_factory=ServerActivity, init=False)
    websockets: set[Closable] = field(default_factory=set, init=False)
    closing: bool = field(default=False, init=False)
    shutdown: Callable[[], None] | None = field(default=None, init=False)
    restart: Restart | None = field(default=None, init=False)
    metrics: ServerMetrics | None = field(default=None, init=False)
    metrics_token: str = field(default="", init=False, repr=False)
    readiness: Readiness | None = field(default=None, init=False)
    page: bool = field(default=True, init=False)
    cluster: RemoteKernels | None = field(default=None, init=False)
    sampler: Sampler | None = field(default=None, init=False)
    jupyterhub: JupyterHub | None = field(default=None, init=False)
    user_activity: ActivityReporter | None = field(default=None, init=False)
    open_connections: OpenConnections | None = field(default=None, init=False)


async def maybe_await(value: Awaitable[Any] | Any) -> Any:
    """Await `value` if it is awaitable: kernelspec managers of other packages may be async."""
    if isinstance(value, Awaitable):
        return await value
    return value
