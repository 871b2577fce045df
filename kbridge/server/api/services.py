"""What the handlers share: one object, found under `services` in Tornado's settings."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tornado import web

from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.cors import Cors

__all__ = [
    "Closable",
    "Kernels",
    "Model",
    "Services",
    "Sessions",
    "maybe_await",
    "services_of",
    "timestamp",
]

Model = dict[str, Any]


class Kernels(Protocol):
    """What the handlers need of `kbridge.kernels.manager.BridgeKernelManager`."""

    default_kernel_name: str
    specs: Any

    async def start_kernel(
        self,
        kernel_name: str | None = None,
        *,
        env: Mapping[str, Any] | None = None,
        path: str | None = None,
    ) -> str:
        """Start a kernel and return its id."""

    def model(self, kernel_id: str) -> Model:
        """Return the model of a kernel."""

    def models(self) -> list[Model]:
        """Return the models of all kernels that clients may see."""

    async def restart_kernel(self, kernel_id: str) -> None:
        """Restart a kernel."""

    async def interrupt_kernel(self, kernel_id: str) -> None:
        """Interrupt a kernel."""

    async def shutdown_kernel(self, kernel_id: str) -> None:
        """Shut a kernel down."""


class Sessions(Protocol):
    """What the handlers need of `kbridge.kernels.sessions.Sessions`."""

    async def create(self, body: Model) -> Model:
        """Create a session, or return the one its path has."""

    def get(self, session_id: str) -> Model:
        """Return a session."""

    def list(self) -> list[Model]:
        """Return all sessions."""

    async def patch(self, session_id: str, body: Model) -> Model:
        """Change a session."""

    async def delete(self, session_id: str) -> None:
        """Delete a session and its kernel."""


class Closable(Protocol):
    """A websocket, as the end of the server sees it."""

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Start the closing handshake."""


@dataclass
class Services:
    """Everything that a handler may reach for.

    Attributes
    ----------
    websockets : set
        Every open websocket: handlers add themselves, and take themselves out.
    list_kernels : bool
        Whether clients may list kernels and sessions.
    closing : bool
        The server is going away: nothing new may begin.
    shutdown : callable, optional
        Ends the server, as a signal does; None where clients cannot.
    started, last_request : float
        Unix seconds.
    """

    kernels: Kernels
    sessions: Sessions
    hubs: Any
    access: AccessPolicy
    cors: Cors = field(default_factory=Cors)
    base_url: str = "/"
    cookie_name: str = "kbridge"
    list_kernels: bool = True
    websockets: set[Closable] = field(default_factory=set)
    closing: bool = False
    shutdown: Callable[[], None] | None = None
    clock: Callable[[], float] = time.time
    started: float = 0.0
    last_request: float = 0.0

    def __post_init__(self) -> None:
        self.started = self.started or self.clock()
        self.last_request = self.last_request or self.started

    def touch(self) -> None:
        """Note that somebody asked for something."""
        self.last_request = self.clock()


def services_of(handler: web.RequestHandler) -> Services:
    """Return the services of the application that a handler belongs to."""
    found = handler.application.settings["services"]
    assert isinstance(found, Services)
    return found


def timestamp(seconds: float) -> str:
    """Write Unix seconds as Jupyter's REST models do: UTC, always with microseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def maybe_await(value: Awaitable[Any] | Any) -> Any:
    """Await what can be awaited: kernelspec managers of others may be asynchronous."""
    if isinstance(value, Awaitable):
        return await value
    return value
