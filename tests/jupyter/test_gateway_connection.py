"""Jupyter Server's websockets to its gateway, when the page leaves early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketHandler
from websockets.asyncio.client import connect

from kbridge.jupyter.gateway_connection import GatewayConnection
from tests.jupyter.apps import Jupyter
from tests.support.waiting import TIMEOUT, until

KERNEL = "5b8e4d0a-0000-4000-8000-000000000001"
TOKEN = "token-of-the-page"


class Kernels(web.RequestHandler):
    """Starts the one kernel."""

    def post(self) -> None:
        self.finish({"id": KERNEL, "name": "python3"})


class Channels(WebSocketHandler):
    """Waits for the test before it accepts a websocket."""

    async def prepare(self) -> None:
        gateway: Gateway = self.application.settings["gateway"]
        gateway.asked.set()
        await gateway.accepts.wait()

    def open(self, kernel_id: str) -> None:
        gateway: Gateway = self.application.settings["gateway"]
        gateway.opened.append(self)
        self.write_message("{}")
        self.write_message("{}")

    def on_close(self) -> None:
        gateway: Gateway = self.application.settings["gateway"]
        gateway.closed.append(self)


class Gateway:
    """A gateway that accepts websockets when `accepts` is set; `asked` says that one is wanted."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.accepts = asyncio.Event()
        self.opened: list[Channels] = []
        self.closed: list[Channels] = []
        sock, self.port = bind_unused_port()
        routes: list[Any] = [
            (r"/api/kernels", Kernels),
            (r"/api/kernels/([^/]+)/channels", Channels),
        ]
        self.server = HTTPServer(web.Application(routes, gateway=self))  # type: ignore[arg-type]
        self.server.add_socket(sock)

    def stop(self) -> None:
        """Stop listening."""
        self.server.stop()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    yield made
    made.accepts.set()
    made.stop()
    await made.server.close_all_connections()


@pytest.fixture
async def front(jupyter: Jupyter, gateway: Gateway) -> ServerApp:
    """Jupyter Server with a kernel in the gateway."""
    app = jupyter.start(
        f"--GatewayClient.url=http://127.0.0.1:{gateway.port}",
        f"--IdentityProvider.token={TOKEN}",
    )
    await app.kernel_manager.start_kernel()
    return app


@pytest.fixture
def address(jupyter: Jupyter, front: ServerApp) -> str:
    """The address of the kernel's websocket at Jupyter Server."""
    url = jupyter.serve(front).replace("http", "ws")
    return f"{url}api/kernels/{KERNEL}/channels?session_id=page&token={TOKEN}"


async def test_a_websocket_that_opens_after_the_page_has_left_is_closed(
    gateway: Gateway, address: str
) -> None:
    async with asyncio.timeout(TIMEOUT), connect(address, proxy=None):
        await gateway.asked.wait()
    gateway.accepts.set()
    await until(lambda: gateway.closed, "the gateway's websocket is closed")
    assert gateway.closed == gateway.opened


async def test_a_page_that_stays_receives_the_messages_of_the_gateway(
    gateway: Gateway, address: str
) -> None:
    gateway.accepts.set()
    async with asyncio.timeout(TIMEOUT), connect(address, proxy=None) as page:
        assert await page.recv() == "{}"
    await until(lambda: gateway.closed, "the gateway's websocket is closed")


async def test_an_attempt_to_reconnect_ends_when_the_page_has_left(
    gateway: Gateway, front: ServerApp
) -> None:
    gateway.accepts.set()
    left = GatewayConnection(parent=front.kernel_manager.get_kernel(KERNEL))
    left.disconnect()
    await left.connect()  # as Jupyter Server does some time after it has lost the gateway
    assert not gateway.asked.is_set()
    assert left.ws_future is None
