"""A server of one kernel whose answers a test writes: REST, and a websocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from kbridge.wire import V1, v1
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

Reply = tuple[int, Any]


class ScriptedServer:
    """A server with one kernel.

    Attributes
    ----------
    on_message : callable
        Called with each message of a client.
    on_rest : callable
        Called with the method and the path of each other request; returns a status and a body.
    """

    def __init__(self) -> None:
        self.on_message: Callable[[Message], Awaitable[None] | None] = self.answer
        self.on_rest: Callable[[str, str], Reply] = lambda _method, _path: (200, [])
        self.requests: list[tuple[str, str]] = []
        self.websockets: list[WebSocketHandler] = []
        self.url = ""

    def send(
        self,
        parent: Message | None,
        kind: str,
        content: dict[str, Any],
        channel: Channel = Channel.IOPUB,
    ) -> None:
        header = b"{}" if parent is None else parent.header
        self.send_message(build(channel, kind, content, session="k", date="", parent_header=header))

    def send_message(self, message: Message) -> None:
        self.websockets[-1].write_message(bytes(V1.payload(message)[1]), binary=True)

    def idle(self, parent: Message) -> None:
        self.send(parent, "status", {"execution_state": "idle"})

    def reply(self, parent: Message, kind: str = "execute_reply") -> None:
        self.send(parent, kind, {"status": "ok"}, Channel.SHELL)

    def stream(self, parent: Message, text: str) -> None:
        self.send(parent, "stream", {"name": "stdout", "text": text})

    def answer(self, message: Message) -> None:
        """Answer a request as a kernel does."""
        self.reply(message, message.msg_type.replace("_request", "_reply"))
        self.idle(message)


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    kernel = ScriptedServer()

    class Channels(WebSocketHandler):
        def select_subprotocol(self, subprotocols: list[str]) -> str | None:
            return subprotocols[0]

        def open(self, *_args: str, **_kwargs: str) -> None:
            kernel.websockets.append(self)

        def on_message(self, message: str | bytes) -> Awaitable[None] | None:
            assert isinstance(message, bytes)
            return kernel.on_message(v1.split(message))  # the next one is read afterwards

    class Rest(RequestHandler):
        async def answer(self) -> None:
            method, path = str(self.request.method), self.request.path
            kernel.requests.append((method, path))
            status, body = kernel.on_rest(method, path)
            if asyncio.iscoroutine(body):
                body = await body
            self.set_status(status)
            if status != 204:
                self.finish(json.dumps(body))

        get = post = delete = answer

    listening, port = bind_unused_port()
    application = Application(
        [(r"/api/kernels/[^/]+/channels", Channels), (r".*", Rest)],
        log_function=lambda _: None,
        websocket_max_message_size=1 << 30,
    )
    http = HTTPServer(application)
    http.add_sockets([listening])
    kernel.url = f"http://127.0.0.1:{port}"
    try:
        yield kernel
    finally:
        http.stop()
        for websocket in kernel.websockets:
            websocket.close()
        await http.close_all_connections()
