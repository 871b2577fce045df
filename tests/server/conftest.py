"""A real Tornado server on a free port of 127.0.0.1, with fake kernels."""

import json
import logging
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from tornado import web
from tornado.httpclient import AsyncHTTPClient, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketHandler

from kbridge.errors import KernelNotFound, KernelspecNotFound, KernelStartError, SessionNotFound
from kbridge.kernels.users import OPERATOR, User
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.routes import make_application
from kbridge.server.api.services import ServerActivity, Services
from kbridge.server.auth.access_policy import AccessPolicy
from kbridge.server.auth.authenticator import Authenticator, Cors
from kbridge.server.auth.users import Users
from kbridge.server.http.connection_limiter import ConnectionLimits
from kbridge.server.http.guarded_server import GuardedServer

TOKEN = "a-token-of-the-tests"
MAX_BODY = 100_000


class FakeKernelspecs:
    def __init__(self, root: str) -> None:
        self.root = root

    def get_all_specs(self) -> dict[str, Any]:
        good = {"resource_dir": self.root, "spec": {"display_name": "Fake"}}
        return {"fake": good, "broken": {"spec": {}}}

    def get_kernel_spec(self, name: str) -> Any:
        if name == "unreadable":
            raise ValueError("Expecting value: line 1 column 1 (char 0)")
        if name != "fake":
            raise KeyError(name)
        return SimpleNamespace(resource_dir=self.root, to_dict=lambda: {"display_name": "Fake"})


class FakeKernels:
    default_kernel_name = "fake"

    def __init__(self, root: str) -> None:
        self.specs = FakeKernelspecs(root)
        self.started: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str]] = []
        self.running: dict[str, dict[str, Any]] = {}

    async def start_kernel(
        self,
        kernel_name: str | None = None,
        *,
        env: Any = None,
        path: str | None = None,
        user: str = "",
    ) -> str:
        if kernel_name == "missing":
            raise KernelspecNotFound("no kernelspec is named missing")
        if kernel_name == "dies":
            raise KernelStartError("it died", "the last line of its log")
        if kernel_name == "bug":
            raise RuntimeError("an unexpected error")
        self.started.append({"name": kernel_name, "env": env, "path": path})
        kernel_id = str(uuid.uuid4())
        self.running[kernel_id] = {
            "id": kernel_id,
            "name": kernel_name or self.default_kernel_name,
            "last_activity": "2030-01-01T00:00:00.000000Z",
            "execution_state": "idle",
            "connections": 2,
            **({"user": user} if user else {}),
        }
        return kernel_id

    def model(self, kernel_id: str) -> dict[str, Any]:
        if kernel_id not in self.running:
            raise KernelNotFound(f"no kernel has the id {kernel_id}")
        return self.running[kernel_id]

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self.running

    def models(self) -> list[dict[str, Any]]:
        return list(self.running.values())

    def users(self) -> dict[str, str]:
        return {key: model["user"] for key, model in self.running.items() if "user" in model}

    async def restart_kernel(self, kernel_id: str) -> None:
        self.model(kernel_id)
        self.calls.append(("restart", kernel_id))

    async def interrupt_kernel(self, kernel_id: str) -> None:
        self.model(kernel_id)
        self.calls.append(("interrupt", kernel_id))

    async def shutdown_kernel(self, kernel_id: str) -> None:
        self.model(kernel_id)
        del self.running[kernel_id]


class FakeSessions:
    def __init__(self) -> None:
        self.known: dict[str, dict[str, Any]] = {}

    async def create(self, body: dict[str, Any], user: User = OPERATOR) -> dict[str, Any]:
        session = {"id": str(uuid.uuid4()), **body}
        self.known[session["id"]] = session
        return session

    def get(self, session_id: str, user: User = OPERATOR) -> dict[str, Any]:
        if session_id not in self.known:
            raise SessionNotFound(f"no session has the id {session_id}")
        return self.known[session_id]

    def list(self, user: User = OPERATOR) -> list[dict[str, Any]]:
        return [*self.known.values()]

    async def patch(
        self, session_id: str, body: dict[str, Any], user: User = OPERATOR
    ) -> dict[str, Any]:
        self.get(session_id).update(body)
        return self.get(session_id)

    async def delete(self, session_id: str, user: User = OPERATOR) -> None:
        self.get(session_id)
        del self.known[session_id]


class EchoChannels(AccessMixin, WebSocketHandler):
    """Replaces the websocket handler: the same access control, no kernel."""

    def open(self, kernel_id: str) -> None:
        self.services.websockets.add(self)

    def on_message(self, message: str | bytes) -> None:
        self.write_message(message)

    def on_close(self) -> None:
        self.services.websockets.discard(self)


@dataclass
class Running:
    """A server that runs, and a client that knows its token."""

    services: Services
    kernels: FakeKernels
    sessions: FakeSessions
    port: int
    client: AsyncHTTPClient = field(default_factory=lambda: AsyncHTTPClient(force_instance=True))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.services.base_url.rstrip('/')}"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        token: str | None = TOKEN,
        headers: dict[str, str] | None = None,
        body: Any = None,
        **options: Any,
    ) -> HTTPResponse:
        sent = {"Authorization": f"token {token}"} if token is not None else {}
        sent |= headers or {}
        if body is not None and not isinstance(body, str | bytes):
            body = json.dumps(body)
        return await self.client.fetch(
            self.url + path,
            method=method,
            headers=sent,
            body=body,
            raise_error=False,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            **options,
        )


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
def token() -> str:
    return TOKEN


@pytest.fixture
async def start(tmp_path: Any) -> AsyncIterator[Start]:
    """Start a server; keyword arguments are those of `Services`, or `policy=` and `cors=`."""
    servers: list[HTTPServer] = []
    clients: list[AsyncHTTPClient] = []

    async def run(
        *,
        policy: dict[str, Any] | None = None,
        cors: dict[str, str] | None = None,
        channels: type[web.RequestHandler] = EchoChannels,
        guarded: bool = False,
        clock: Callable[[], float] | None = None,
        tls: ssl.SSLContext | None = None,
        users: Users | None = None,
        **options: Any,
    ) -> Running:
        sock, port = bind_unused_port()
        kernels, sessions = FakeKernels(str(tmp_path)), FakeSessions()
        services = Services(
            kernels=kernels,
            sessions=sessions,
            hubs=options.pop("hubs", None),
            auth=Authenticator(
                AccessPolicy(
                    **{"token": TOKEN, "cookie_secret": b"s", **(policy or {})},
                    users=users is not None,
                ),
                Cors(**(cors or {})),
                "kbridge-test",
                users,
            ),
            **options,
        )
        if clock is not None:
            services.activity = ServerActivity(clock)
        application = make_application(services, channels)
        server: HTTPServer
        if guarded:
            server = GuardedServer(
                application,
                auth=services.auth,
                limits=ConnectionLimits(64, 20.0, 60.0),
                log=logging.getLogger("kbridge.test"),
                max_body_size=MAX_BODY,
                ssl_options=tls,
            )
            server.add_sockets([sock])
        else:
            server = HTTPServer(application, ssl_options=tls)
            server.add_socket(sock)
        servers.append(server)
        running = Running(services, kernels, sessions, port)
        clients.append(running.client)
        return running

    yield run
    for client in clients:
        client.close()
    for server in servers:
        server.stop()
        await server.close_all_connections()


@pytest.fixture
async def running(start: Start) -> Running:
    return await start()


def error_of(response: HTTPResponse) -> tuple[int, str, str]:
    """Status, reason and message of an error; fails if the body is anything else."""
    body = json.loads(response.body)
    assert set(body) == {"reason", "message"}, body
    assert response.headers["Content-Type"].startswith("application/json")
    return response.code, body["reason"], body["message"]


@pytest.fixture(name="error_of")
def error_of_fixture() -> Callable[[HTTPResponse], tuple[int, str, str]]:
    return error_of
