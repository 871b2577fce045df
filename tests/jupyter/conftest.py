"""Jupyter Server's managers and handler with a kernel and a websocket in memory.

The tests run with three classes: kbridge's class for the standalone server, kbridge's class for
Jupyter Server, and Jupyter Server's own class, which confirms that the expectations are right.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupyter_core.paths
import pytest
from jupyter_client.ioloop import AsyncIOLoopKernelRestarter
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as PeerConnection,
)
from jupyter_server.services.kernels.kernelmanager import (
    AsyncMappingKernelManager,
    ServerKernelManager,
)
from jupyter_server.services.kernels.websocket import KernelWebsocketHandler
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.iostream import IOStream
from tornado.web import Application
from traitlets.config import Config

import kbridge.jupyter
from kbridge.connection import channels
from kbridge.hub.hub import Hub
from kbridge.hub.kernel import process_link
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.jupyter import kernel_watch
from kbridge.jupyter.hubs import JupyterHubs
from kbridge.link.memory import MemoryKernel
from kbridge.link.websocket import Websocket
from kbridge.wire.build import build
from kbridge.wire.frames import PING, each
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize
from tests.jupyter.apps import Jupyter
from tests.jupyter.rig import WatchRig
from tests.support.dialects import CODECS
from tests.support.waiting import TIMEOUT

BASES: dict[str, type] = {
    "standalone": channels.ZMQChannelsWebsocketConnection,
    "jupyter": kbridge.jupyter.ZMQChannelsWebsocketConnection,
    "peer": PeerConnection,
}
KERNEL_ID = "5b8e4d0a-0000-4000-8000-000000000001"
DATE = "2030-01-01T00:00:00.000000Z"


class Answering:
    """A kernel that answers kernel_info_requests at once and keeps all other messages.

    Attributes
    ----------
    asked : list of Message
        The received messages, without kernel_info_requests.
    """

    def __init__(self, key: bytes) -> None:
        self.signer = Signer(key)
        self.asked: list[Message] = []
        self.answers = True

    def hear(self, channel: Channel, frames: Sequence[Any], say: Callable[..., None]) -> None:
        msg = parse(channel, [bytes(f) for f in frames], self.signer)
        if msg.msg_type != "kernel_info_request":
            self.asked.append(msg)
        elif self.answers:
            info = {"status": "ok", "protocol_version": "5.3", "implementation": "a-twin"}
            reply = self.message(channel, "kernel_info_reply", info, msg.header)
            idle = {"execution_state": "idle"}
            status = self.message(Channel.IOPUB, "status", idle, msg.header)
            loop = asyncio.get_running_loop()
            loop.call_soon(say, reply)
            loop.call_soon(say, status)

    def message(
        self,
        channel: Channel,
        msg_type: str,
        content: dict[str, Any],
        parent: bytes = b"{}",
        buffers: Sequence[bytes] = (),
    ) -> Message:
        return build(
            channel,
            msg_type,
            content,
            session="the-kernel",
            date=DATE,
            parent_header=parent,
            buffers=tuple(buffers),
        )


class Stream:
    """A stream as `connect_shell` of a kernel manager returns it, without a socket."""

    def __init__(self, kernel: Kernel, channel: Channel) -> None:
        self._kernel = kernel
        self._about = channel
        self._waiting: deque[list[bytes]] = deque()
        self._told: Callable[[list[bytes]], Any] | None = None
        self.socket = SimpleNamespace(closed=False)

    def on_recv(self, told: Callable[..., Any] | None, copy: bool = True) -> None:
        self._told = told
        asyncio.get_running_loop().call_soon(self._tell)

    def on_recv_stream(self, told: Callable[..., Any], copy: bool = True) -> None:
        self.on_recv(lambda frames: told(self, frames))

    def stop_on_recv(self) -> None:
        self._told = None

    def send_multipart(self, frames: Sequence[Any], flags: int = 0, **_how: Any) -> None:
        assert not self.closed()
        self._kernel.hear(self, self._about, frames)

    def deliver(self, frames: list[bytes]) -> None:
        self._waiting.append(frames)
        self._tell()

    def _tell(self) -> None:
        while self._waiting and self._told is not None and not self.closed():
            self._told(self._waiting.popleft())

    def flush(self, *_what: Any) -> None:
        self._tell()

    def closed(self) -> bool:
        return bool(self.socket.closed)

    def close(self, linger: int | None = None) -> None:
        self.socket.closed = True


class Kernel(ServerKernelManager):
    """A kernel manager of Jupyter Server whose process and sockets are in memory."""

    def start_twin(self) -> None:
        for n, channel in enumerate(("shell", "iopub", "stdin", "hb", "control")):
            setattr(self, f"{channel}_port", 10_001 + n)
        self.twin = Answering(self.session.key)
        self.streams: list[tuple[Channel, Stream]] = []
        self.owners: dict[str, Stream] = {}
        self.execution_state = "idle"
        self.last_activity = datetime.now(UTC)
        self.ready.set_result(None)
        self._restarter = AsyncIOLoopKernelRestarter(kernel_manager=self, parent=self)

    async def is_alive(self) -> bool:
        return True

    def _connect(self, channel: Channel) -> Stream:
        self.streams.append((channel, Stream(self, channel)))
        return self.streams[-1][1]

    def connect_shell(self, identity: bytes | None = None) -> Any:
        return self._connect(Channel.SHELL)

    def connect_iopub(self, identity: bytes | None = None) -> Any:
        return self._connect(Channel.IOPUB)

    def connect_stdin(self, identity: bytes | None = None) -> Any:
        return self._connect(Channel.STDIN)

    def connect_control(self, identity: bytes | None = None) -> Any:
        return self._connect(Channel.CONTROL)

    def hear(self, stream: Stream, channel: Channel, frames: Sequence[Any]) -> None:
        msg = parse(channel, [bytes(f) for f in frames], self.twin.signer)
        self.owners[msg.msg_id] = stream
        self.twin.hear(channel, frames, self.say)

    def say(self, msg: Message) -> None:
        """Send a message to all connected streams."""
        frames = [bytes(f) for f in serialize(msg, self.twin.signer)]
        to = [s for c, s in self.streams if c is msg.channel and not s.closed()]
        if msg.channel is not Channel.IOPUB:
            owner = self.owners.get(msg.parent_id)
            to = to[-1:] if owner is None or msg.channel is Channel.STDIN else [owner]
        for stream in to:
            if not stream.closed():
                stream.deliver(list(frames))

    def fire(self, event: str) -> None:
        """Report `restart` or `dead`, as the restarter does."""
        assert self._restarter is not None
        self._restarter._fire_callbacks(event)


class Kernels(AsyncMappingKernelManager):
    """Jupyter Server's manager of kernels, with one kernel that was never started."""

    def adopt_twin(self) -> Kernel:
        kernel = Kernel(parent=self)
        kernel.kernel_id = KERNEL_ID
        kernel.start_twin()
        self._kernels[KERNEL_ID] = kernel
        self._kernel_connections[KERNEL_ID] = 0
        self._kernel_ports[KERNEL_ID] = kernel.ports
        return kernel

    def connect_shell(self, kernel_id: str, *_how: Any) -> Any:
        return self.get_kernel(kernel_id).connect_shell()


class Link(MemoryKernel):
    """The link of a hub to the kernel in memory."""

    kernel: Kernel
    made: list[Link]

    def __init__(self, endpoints: Any, events: Any, identity: bytes) -> None:
        super().__init__(endpoints, events, identity)
        self.made.append(self)

    def send(self, channel: Channel, frames: Sequence[Any]) -> bool:
        if not super().send(channel, frames):
            return False
        self.kernel.twin.hear(channel, frames, self.tell)
        return True

    def tell(self, msg: Message) -> None:
        if not self.closed:
            self.say(msg.channel, list(serialize(msg, self.kernel.twin.signer)))


class Handler(KernelWebsocketHandler):
    """Jupyter Server's handler; the test holds the other end of its socket."""

    def begin(self, dialect: str) -> None:
        self.dialect = dialect
        self.closes: list[tuple[int | None, str | None]] = []
        ours, self.browser = socket.socketpair()
        self.browser.setblocking(False)
        self.wire = IOStream(ours)
        self.seen: list[dict[str, Any]] = []

    def accept(self) -> None:
        """Do the steps of Tornado between `prepare` and `open`."""
        protocol: Any = self.get_websocket_protocol()
        if isinstance(protocol, Websocket):
            protocol.take_over(self.wire)
        else:
            protocol.stream = self.wire
        offered = CODECS[self.dialect].subprotocol
        protocol.selected_subprotocol = self.select_subprotocol([offered] if offered else [])
        assert protocol.selected_subprotocol == offered
        self.ws_connection = protocol

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.closes.append((code, reason))

    def read(self, msg_type: str | None = None) -> list[dict[str, Any]]:
        """Return all messages so far, or those of one type. Answer pings."""
        try:
            data = self.browser.recv(1 << 22)
        except BlockingIOError:
            data = b""
        for opcode, payload in each(data):
            if opcode == PING:
                self.on_pong(payload)
                continue
            frame = payload if opcode == 2 else payload.decode()
            self.seen.append(CODECS[self.dialect].decode(frame))
        return [m for m in self.seen if msg_type in (None, m["header"]["msg_type"])]

    def texts(self) -> list[str]:
        """Return the texts of the stream messages so far."""
        return [m["content"]["text"] for m in self.read("stream")]

    def send(self, msg: Message) -> Any:
        """Send a message as the browser does."""
        whole = {
            "channel": str(msg.channel),
            "header": json.loads(msg.header),
            "parent_header": json.loads(msg.parent_header),
            "metadata": json.loads(msg.metadata),
            "content": json.loads(msg.content),
            "buffers": [bytes(b) for b in msg.buffers],
        }
        return self.on_message(CODECS[self.dialect].encode(whole))

    def writing(self) -> bool:
        """Return True if something waits for the browser to read."""
        protocol: Any = self.ws_connection
        if isinstance(protocol, Websocket):
            return protocol.unsent_bytes > 0
        return self.wire.writing()

    def end(self) -> None:
        self.wire.close()
        if self.ws_connection is not None:
            self.ws_connection.on_connection_close()
        self.browser.close()


class World:
    """One kernel, its managers, and any number of websockets.

    Attributes
    ----------
    base : type
        The class under test, from which tests derive subclasses.
    """

    def __init__(self, impl: str, dialect: str, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.impl = impl
        self.base: Any = BASES[impl]
        self.dialect = dialect
        self.config = Config()
        if impl == "jupyter":
            self.configure(journal_dir="")  # only tests of journals use the disk
        self.kernels = Kernels()
        self.kernel = self.kernels.adopt_twin()
        self.links: list[Link] = []
        self.settings: dict[str, Any] = {"ws_ping_interval": 0, "config": self.config}
        self.handlers: list[Handler] = []

    @property
    def peer(self) -> bool:
        return self.impl == "peer"

    def configure(self, **values: Any) -> None:
        self.config.ZMQChannelsWebsocketConnection.update(values)

    async def open(
        self,
        cls: Any = None,
        *,
        session: str = "me",
        before: Callable[[Any], None] | None = None,
        dialect: str = "",
    ) -> tuple[Any, Handler]:
        """Open a websocket with a class; `before` is called with the connection after creation."""
        conn, handler = await self.prepare(cls, session=session, before=before, dialect=dialect)
        async with asyncio.timeout(TIMEOUT):
            await handler.open(KERNEL_ID)  # type: ignore[no-untyped-call]
            if not self.peer:
                await self.hub.wait_ready()
        await self.settle()
        handler.read()
        handler.seen.clear()
        return conn, handler

    async def prepare(
        self,
        cls: Any = None,
        *,
        session: str = "me",
        before: Callable[[Any], None] | None = None,
        dialect: str = "",
    ) -> tuple[Any, Handler]:
        """Handle the upgrade request up to its answer."""
        cls = cls or self.base
        self._arrange_hubs(cls)
        request = HTTPServerRequest(
            start_line=RequestStartLine("GET", "/?session_id=" + session, "HTTP/1.1"),
            headers=HTTPHeaders({"Host": "127.0.0.1", "Sec-WebSocket-Version": "13"}),
            connection=SimpleNamespace(set_close_callback=lambda _: None),
        )
        handler = Handler(Application(**self.settings), request)
        handler.application.settings = self.settings
        handler.begin(dialect or self.dialect)
        self.handlers.append(handler)
        conn = cls(parent=self.kernel, websocket_handler=handler, config=self.config)
        conn.session.session = session
        handler.connection, handler.kernel_id = conn, KERNEL_ID
        if before is not None:
            before(conn)
        async with asyncio.timeout(TIMEOUT):
            await conn.prepare()
        handler.accept()
        return conn, handler

    def _arrange_hubs(self, cls: Any) -> None:
        """Link the hubs to the kernel in memory; they are created as in production."""
        if self.peer or self.links or channels.HUBS in self.settings:
            return

        class Here(Link):
            kernel = self.kernel
            made = self.links

        if self.impl == "jupyter":
            table = partial(HubTable, link=Here)
            self._patch.setattr(kbridge.jupyter.connection, "HubTable", table)
        else:
            settings = cls.hub_settings(self.config, self.kernels)
            self.settings[channels.HUBS] = HubTable(settings, link=Here)

    @property
    def hub(self) -> Hub:
        hubs = self.settings[channels.HUBS]
        table: HubTable = hubs.table if isinstance(hubs, JupyterHubs) else hubs
        return table[KERNEL_ID]

    async def fire(self, event: str) -> None:
        """End the kernel's process; it is started again (`restart`) or not (`dead`)."""
        if self.links:  # sockets disconnect when the process ends
            asyncio.get_running_loop().call_soon(self.links[-1].disconnect)
        if self.impl != "standalone":
            self.kernel.fire(event)
        elif event == "restart":  # in the standalone server, the kernel manager tells the hub
            await self.hub.restarting()
        else:
            self.hub.dead()

    async def settle(self) -> None:
        """Run all due callbacks: kernels in memory answer within a few turns of the loop."""
        for _ in range(20):
            await asyncio.sleep(0)

    def say(self, *messages: Message) -> None:
        """Send messages from the kernel."""
        for msg in messages:
            if self.peer:
                self.kernel.say(msg)
            else:
                self.links[-1].tell(msg)

    def message(self, channel: str, msg_type: str, content: Any = None, **more: Any) -> Message:
        return self.kernel.twin.message(Channel(channel), msg_type, content or {}, **more)

    def stream(self, text: str, parent: bytes = b"{}") -> Message:
        return self.message("iopub", "stream", {"name": "stdout", "text": text}, parent=parent)

    @property
    def asked(self) -> list[Message]:
        """The messages that clients have sent to the kernel."""
        return self.kernel.twin.asked

    async def aclose(self) -> None:
        for handler in self.handlers:
            if handler.connection is not None:
                handler.on_close()  # type: ignore[no-untyped-call]
        if not self.peer and channels.HUBS in self.settings:
            await self.settings[channels.HUBS].aclose()
        await self.settle()
        for handler in self.handlers:
            handler.end()


@pytest.fixture(params=sorted(BASES))
def impl(request: pytest.FixtureRequest) -> str:
    """Each class in turn; tests of kbridge's classes only narrow it down."""
    return str(request.param)


@pytest.fixture
async def world(impl: str, dialect: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """The environment of each class, in each dialect."""
    made = World(impl, dialect, monkeypatch)
    yield made
    await made.aclose()


@pytest.fixture(scope="module", autouse=True)
def tornados_loggers() -> Iterator[None]:
    """Restore Tornado's loggers, which a Jupyter Server changes."""
    names = ("tornado", "tornado.access", "tornado.application", "tornado.general")
    kept = [(logger, logger.__dict__.copy()) for logger in map(logging.getLogger, names)]
    yield
    for logger, state in kept:
        logger.setLevel(state["level"])  # also clears the logger's cache of enabled levels
        for name in ("name", "parent", "propagate"):
            setattr(logger, name, state[name])


@pytest.fixture
async def make_watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., WatchRig]]:
    monkeypatch.setattr(kernel_watch, "_CHECK_SECONDS", 0.001)
    monkeypatch.setattr(process_link, "_FLUSH_TIMEOUT", 0.001)
    rigs: list[WatchRig] = []

    def make(**settings: Any) -> WatchRig:
        rigs.append(WatchRig(HubSettings(**{"limit_rate": False, **settings})))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.watch.close()
        await rig.hub.aclose()


@pytest.fixture
async def rig(make_watched: Callable[..., WatchRig]) -> WatchRig:
    made = make_watched()
    made.prove()
    await made.settle()
    return made


@pytest.fixture
async def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Jupyter]:
    for name in ("config", "data", "runtime"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"JUPYTER_{name.upper()}_DIR", str(tmp_path / name))
    monkeypatch.delenv("JUPYTER_CONFIG_PATH", raising=False)
    for name in ("ENV_CONFIG_PATH", "SYSTEM_CONFIG_PATH"):  # ignore installed extensions
        monkeypatch.setattr(jupyter_core.paths, name, [])
    # A server changes Tornado's loggers and does not restore them.
    for name in ("tornado", "tornado.access", "tornado.application", "tornado.general"):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "name", name)
        monkeypatch.setattr(logger, "parent", logger.parent)
        monkeypatch.setattr(logger, "level", logger.level)
    GatewayClient.clear_instance()
    made = Jupyter(tmp_path)
    yield made
    await made.aclose()
    GatewayClient.clear_instance()
