"""The types of the public API, as a program that embeds kbridge sees them.

mypy and pyright check this file (`make check`); it is not run.
"""

from collections.abc import Awaitable
from typing import Any, assert_type

from jupyter_client.manager import AsyncKernelManager
from tornado.web import Application
from tornado.websocket import WebSocketHandler

import kbridge
from kbridge import Hub, HubSettings, HubTable, KbridgeError, errors
from kbridge.client import Execution, Output, Result, connect, sync
from kbridge.connection import BaseKernelWebsocketConnection, ZMQChannelsWebsocketConnection
from kbridge.hub import Attachment, Clock, Cursor
from kbridge.link import ClientLink, MemoryClient, MemoryKernel, StreamClient
from kbridge.tornado import ChannelsHandler
from kbridge.wire import LEGACY, V1, Channel, Dialect, FrameReader, Message, Signer

assert_type(kbridge.__version__, str)
assert_type(kbridge.HubTable, type[HubTable])


def tables() -> None:
    table = HubTable(HubSettings(journal_limit=1 << 20), link=MemoryKernel)
    assert_type(table.open("an-id", {"transport": "tcp"}), Hub)
    assert_type(table.get("an-id"), Hub | None)
    assert_type(table["an-id"], Hub)
    assert_type([hub.kernel_id for hub in table], list[str])
    assert_type(table.connections("an-id"), int)
    assert_type(HubSettings().iopub_msg_rate_limit, float)
    assert_type(HubSettings().allowed_message_types, tuple[str, ...])


async def hubs(hub: Hub, link: ClientLink, message: Message) -> None:
    cursor = hub.attach(link, V1, "a-session", since="")
    assert_type(cursor, Cursor)
    former: Attachment = cursor
    assert_type(hub.submit(cursor, message), Awaitable[None] | None)
    assert_type(await hub.request("kernel_info_request", {}), Message)
    assert_type(await hub.wait_ready(timeout=1.0), bool)
    assert_type(hub.ready, bool)
    hub.on_pong(cursor, b"1")
    hub.detach(former)
    hub.reconnect({"shell_port": 1})
    await hub.restarting(asked=True)
    await hub.aclose()


class StoppedClock(Clock):
    def monotonic(self) -> float:
        return 0.0


def links(memory: MemoryClient, stream: StreamClient) -> list[ClientLink]:
    return [memory, stream]  # pyright: ignore[reportReturnType]  # on_writable is in __slots__


def messages(message: Message) -> None:
    dialects: list[Dialect] = [V1, LEGACY]
    for dialect in dialects:
        assert_type(dialect.payload(message), tuple[int, bytes])
        assert_type(dialect.decode(b""), Message)
    assert_type(V1.subprotocol, str | None)
    assert_type(message.channel, Channel)
    assert_type(message.msg_type, str)
    assert_type(Signer(b"key"), Signer)
    assert_type(FrameReader, type[FrameReader])


class Handler(ChannelsHandler):
    """Overrides all that may be overridden, synchronously."""

    def authorize(self) -> bool:
        return True

    def get_kernel(self, kernel_id: str) -> AsyncKernelManager | None:
        return None

    def create_connection(self, kernel: Any) -> ZMQChannelsWebsocketConnection:
        connection = super().create_connection(kernel)
        assert_type(connection, ZMQChannelsWebsocketConnection)
        return connection


class AsyncHandler(ChannelsHandler):
    """The same, as coroutines."""

    async def authorize(self) -> bool:
        return True

    async def get_kernel(self, kernel_id: str) -> AsyncKernelManager:
        return AsyncKernelManager()


def applications(handler: ChannelsHandler) -> Application:
    assert_type(handler.connection, ZMQChannelsWebsocketConnection | None)
    base: WebSocketHandler = handler
    return Application([("/channels", type(base)), ("/more", Handler)], hubs=HubTable())


def connections(connection: ZMQChannelsWebsocketConnection) -> None:
    base: BaseKernelWebsocketConnection = connection
    assert_type(base.kernel_id, str)
    assert_type(connection.hub, Hub)
    assert_type(connection.select_subprotocol([]), str | None)
    assert_type(connection.handle_incoming_message(b""), Awaitable[None] | None)
    assert_type(ZMQChannelsWebsocketConnection.hub_settings(), HubSettings)


def failures(error: errors.KernelNotFound) -> None:
    root: KbridgeError = error
    assert_type(root.reason, str)
    assert_type(root.http_status, int)
    assert_type(root.close_code, int)


async def clients(execution: Execution, blocking: sync.Execution) -> None:
    async with connect("http://127.0.0.1:8888", "token") as server:
        kernel = await server.start_kernel("python3")
        assert_type(await kernel.execute("1", input=lambda prompt, password: prompt), Execution)
        assert_type(await kernel.kernel_info(), dict[str, Any])
    async for output in execution:
        assert_type(output, Output)
    assert_type(await execution, Result)
    assert_type(list(blocking), list[Output])
    assert_type(blocking.result(), Result)
