"""The class of seeds 003 and 004: all public names, over a hub with a kernel in memory."""

import asyncio
import inspect
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.session import Session
from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.services.kernels.connection.channels import (
    ZMQChannelsWebsocketConnection as PeerConnection,
)
from tornado.httputil import HTTPServerRequest, RequestStartLine
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError
from tornado.websocket import WebSocketHandler
from traitlets import HasTraits, TraitError
from traitlets.config import Config, Configurable

from kbridge.connection.channels import HUBS, ZMQChannelsWebsocketConnection
from kbridge.errors import HubClosed, InvalidRequest, KernelMessageError
from kbridge.hub.broadcast import delivery
from kbridge.hub.hub import Hub
from kbridge.hub.settings import HubSettings
from kbridge.hub.table import HubTable
from kbridge.link.memory import MemoryKernel
from kbridge.wire import legacy, v1
from kbridge.wire.build import build
from kbridge.wire.frames import BINARY, PING, TEXT, each, frame
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize
from tests.hub.rig import INFO, KEY, frames_of
from tests.support.memory import MemoryKernels
from tests.support.waiting import TIMEOUT

SIGNER = Signer(KEY)
DATE = "2030-01-01T00:00:00Z"


def message(channel: Channel, msg_type: str, content: Any = None, **more: Any) -> Message:
    return build(channel, msg_type, content or {}, session="a-client", date=DATE, **more)


class Kernels(Configurable):
    """The manager of all kernels; it is notified of each websocket that connects or disconnects."""

    kernel_info_timeout = 5.0
    allowed_message_types: list[str] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, str]] = []

    def notify_connect(self, kernel_id: str) -> None:
        self.told.append(("connect", kernel_id))

    def notify_disconnect(self, kernel_id: str) -> None:
        self.told.append(("disconnect", kernel_id))


class Kernel(Configurable):
    kernel_id = "a-kernel"

    def get_connection_info(self) -> dict[str, Any]:
        return INFO


class Handler(WebSocketHandler):
    """A websocket whose other end is a socket in the test."""

    def __init__(self, hubs: Any, query: str = "") -> None:
        request = HTTPServerRequest(
            start_line=RequestStartLine("GET", f"/?{query}", "HTTP/1.0"),
            connection=SimpleNamespace(set_close_callback=lambda _: None),
        )
        super().__init__(Application(**{HUBS: hubs}), request)
        ours, self.peer = socket.socketpair()
        self.peer.setblocking(False)
        self.stream = IOStream(ours)
        self.ws_connection = SimpleNamespace(
            stream=self.stream,
            server_terminated=False,
            is_closing=lambda: False,
            write_message=self._frame,
        )
        self.closes: list[tuple[int | None, str | None]] = []

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.closes.append((code, reason))

    def _frame(self, data: str | bytes, binary: bool = False) -> Any:
        raw = data.encode() if isinstance(data, str) else data
        return self.stream.write(frame(raw, BINARY if binary else TEXT))

    def written(self) -> list[tuple[int, bytes]]:
        """Return the frames at the other end; small ones arrive immediately."""
        try:
            return frames_of(self.peer.recv(1 << 20))
        except BlockingIOError:
            return []

    def messages(self) -> list[Message]:
        return [v1.decode(payload) for _, payload in self.written()]


class House:
    """The objects that a connection needs."""

    def __init__(self) -> None:
        self.links = MemoryKernels()
        self.hubs = HubTable(HubSettings(limit_rate=False), link=self.links)
        self.kernels = Kernels()
        self.handlers: list[Handler] = []

    def make(
        self, query: str = "session_id=s", *, offered: list[str] | None = None, **traits: Any
    ) -> tuple[ZMQChannelsWebsocketConnection, Handler]:
        handler = Handler(self.hubs, query)
        self.handlers.append(handler)
        made = ZMQChannelsWebsocketConnection(
            parent=Kernel(parent=self.kernels), websocket_handler=handler, **traits
        )
        made.select_subprotocol([v1.SUBPROTOCOL] if offered is None else offered)
        return made, handler

    async def open(self, *args: Any, **how: Any) -> tuple[Any, Handler]:
        made, handler = self.make(*args, **how)
        await made.prepare()
        await made.connect()
        return made, handler

    @property
    def hub(self) -> Hub:
        return self.hubs["a-kernel"]

    @property
    def kernel(self) -> MemoryKernel:
        return self.links.latest

    def say(self, msg: Message) -> None:
        self.kernel.say(msg.channel, serialize(msg, SIGNER))

    def sent(self) -> list[Message]:
        """Return the messages that clients sent to the kernel."""
        got = [parse(c, frames, SIGNER) for c, frames in self.kernel.sent]
        return [m for m in got if self.hub.notices.mark not in m.header]

    def prove(self) -> None:
        self.say(message(Channel.IOPUB, "iopub_welcome", {"subscription": ""}))
        assert self.hub.ready

    async def close(self) -> None:
        await self.hubs.aclose()
        for handler in self.handlers:
            handler.stream.close()
            handler.peer.close()


@pytest.fixture
async def house():
    made = House()
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("agent", "paced"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", True),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0 Safari/537.36", True),
        ("Tornado/6.5", True),
        ("Python/3.11 websockets/15.0", False),
        ("python-requests/2.32 (not Mozilla/5.0)", False),
        ("", False),
        (None, False),
    ],
)
async def test_pages_are_paced_and_programs_are_not(house, agent, paced) -> None:
    made, handler = house.make()
    if agent is not None:
        handler.request.headers["User-Agent"] = agent
    await made.prepare()
    await made.connect()
    assert made._cursor.paced is paced


# -- names and settings ---------------------------------------------------------------------


def test_the_names_are_those_of_jupyter_server() -> None:
    theirs = {n for n in dir(PeerConnection) if not n.startswith("_")} - set(dir(HasTraits))
    # The seeds do not name the internal methods of Jupyter Server; here the hub does their work.
    ours = set(dir(ZMQChannelsWebsocketConnection))
    named = {
        "channels", "close", "close_all", "connect", "create_stream", "disconnect", "get_part",
        "handle_incoming_message", "handle_outgoing_message", "iopub_data_rate_limit",
        "iopub_msg_rate_limit", "kernel_info_channel", "limit_rate", "nudge",
        "on_kernel_restarted", "on_restart_failed", "prepare", "rate_limit_window",
        "request_kernel_info", "session_key", "subprotocol", "websocket_handler",
        "write_message", "write_stderr", "kernel_id", "kernel_info_timeout", "kernel_manager",
        "kernel_ws_protocol", "multi_kernel_manager", "session", "session_id",
    }  # fmt: skip
    assert named <= theirs
    assert named <= ours


def test_the_limits_are_those_of_jupyter_server() -> None:
    for name in (
        "limit_rate",
        "iopub_msg_rate_limit",
        "iopub_data_rate_limit",
        "rate_limit_window",
    ):
        theirs = PeerConnection.class_traits()[name]
        assert ZMQChannelsWebsocketConnection.class_traits()[name].default() == theirs.default()
        assert name in ZMQChannelsWebsocketConnection.class_trait_names(config=True)


def default_journal() -> str:
    return str(Path(jupyter_runtime_dir()) / "kbridge-journal")


def test_hub_settings_are_the_defaults_unless_something_is_set() -> None:
    made = ZMQChannelsWebsocketConnection.hub_settings()
    assert made == HubSettings(journal_dir=default_journal())


@pytest.mark.parametrize("chosen", ["", "/somewhere/else", None])
def test_the_journal_is_beside_the_connection_files_unless_it_is_set(chosen: str | None) -> None:
    config = Config()
    if chosen is not None:
        config.ZMQChannelsWebsocketConnection.journal_dir = chosen
    manager = SimpleNamespace(connection_dir="/run/kernels")
    made = ZMQChannelsWebsocketConnection.hub_settings(config, manager)
    assert made.journal_dir == ("/run/kernels/kbridge-journal" if chosen is None else chosen)


def test_hub_settings_come_from_the_configuration() -> None:
    wanted: dict[str, Any] = {
        "limit_rate": False,
        "iopub_msg_rate_limit": 1.0,
        "iopub_data_rate_limit": 2.0,
        "rate_limit_window": 3.0,
        "journal_limit": 4,
        "history_limit": 5,
        "journal_dir": "/somewhere",
        "journal_disk_limit": 10,
        "journal_disk_total": 11,
        "journal_disk_reserve": 0.5,
        "resume_timeout": 6.0,
        "request_limit": 7,
        "kernel_message_limit": 9,
        "kernel_info_timeout": 8.0,
    }
    config = Config()
    config.ZMQChannelsWebsocketConnection.update(wanted)
    made = ZMQChannelsWebsocketConnection.hub_settings(config, Kernels())
    assert {name: getattr(made, name) for name in wanted} == wanted


def test_hub_settings_include_those_of_the_kernel_manager() -> None:
    manager = SimpleNamespace(
        allow_tracebacks=False,
        traceback_replacement_message="no",
        kernel_info_timeout=9.0,
        allowed_message_types=["kernel_info_request"],
    )
    made = ZMQChannelsWebsocketConnection.hub_settings(Config(), manager)
    assert made == HubSettings(
        allow_tracebacks=False,
        traceback_replacement_message="no",
        kernel_info_timeout=9.0,
        allowed_message_types=("kernel_info_request",),
        journal_dir=default_journal(),
    )


async def test_a_configured_value_reaches_the_trait_by_the_name_that_users_know(house) -> None:
    config = Config()
    config.ZMQChannelsWebsocketConnection.iopub_msg_rate_limit = 12
    made, _ = house.make(config=config)
    assert made.iopub_msg_rate_limit == 12


# -- who is who -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "expected"), [("session_id=abc", "abc"), ("", ""), ("session_id=", ""), ("x=1", "")]
)
async def test_the_session_id_is_an_optional_argument_of_the_url(house, query, expected) -> None:
    made, _ = house.make(query)
    await made.prepare()
    assert made.session_id == expected
    assert made.session_key == f"a-kernel:{expected}"


async def test_a_session_that_is_passed_is_used(house) -> None:
    made, _ = house.make("session_id=url", session=Session(session="given"))
    assert made.session_id == "given"


@pytest.mark.parametrize(
    ("offered", "preferred", "chosen"),
    [
        ([v1.SUBPROTOCOL], None, v1.SUBPROTOCOL),
        ([], None, None),
        (["another"], None, None),
        (["another", v1.SUBPROTOCOL], None, v1.SUBPROTOCOL),
        ([v1.SUBPROTOCOL], "", None),
        ([v1.SUBPROTOCOL], v1.SUBPROTOCOL, v1.SUBPROTOCOL),
    ],
)
async def test_the_subprotocol_is_negotiated(house, offered, preferred, chosen) -> None:
    made, _ = house.make(offered=[], kernel_ws_protocol=preferred)
    assert made.select_subprotocol(offered) == chosen
    assert made.subprotocol == chosen


async def test_without_a_table_of_hubs_connecting_fails() -> None:
    made = ZMQChannelsWebsocketConnection(
        parent=Kernel(parent=Kernels()), websocket_handler=Handler(None)
    )
    assert made.subprotocol is None
    with pytest.raises(HubClosed, match="hubs"):
        _ = made.hub
    made.websocket_handler.stream.close()
    made.websocket_handler.peer.close()


async def test_connections_of_one_kernel_share_its_hub(house) -> None:
    (one, _), (two, _) = house.make(), house.make()
    assert one.hub is two.hub is house.hub


# -- life -----------------------------------------------------------------------------------


async def test_connecting_is_done_at_once_and_reported_to_the_manager(house) -> None:
    made, handler = house.make()
    await made.prepare()
    done = made.connect()
    assert inspect.isawaitable(done)
    assert done.done()
    assert house.hub.connections == 1
    assert house.kernels.told == [("connect", "a-kernel")]
    assert sorted(made.channels) == ["control", "iopub", "shell", "stdin"]
    assert made in ZMQChannelsWebsocketConnection._open_sockets
    assert handler.stream.socket.fileno() > 0


async def test_connecting_before_the_upgrade_is_an_assertion_error(house) -> None:
    made, handler = house.make()
    handler.ws_connection = None
    with pytest.raises(AssertionError, match="accepted"):
        made.connect()


async def test_without_a_subprotocol_the_legacy_dialect_is_used(house) -> None:
    handler = Handler(house.hubs)
    house.handlers.append(handler)
    made = ZMQChannelsWebsocketConnection(
        parent=Kernel(parent=house.kernels), websocket_handler=handler
    )
    await made.connect()
    house.say(message(Channel.IOPUB, "status", {"execution_state": "idle"}))
    ((opcode, _),) = handler.written()
    assert opcode == 1


@pytest.mark.parametrize("name", ["disconnect", "close"])
async def test_disconnecting_twice_has_no_further_effect(house, name) -> None:
    made, handler = await house.open()
    channels = list(made.channels.values())
    assert not any(c.closed() for c in channels)
    for _ in range(2):
        getattr(made, name)()
    assert house.hub.connections == 0
    assert house.kernels.told == [("connect", "a-kernel"), ("disconnect", "a-kernel")]
    assert all(c.closed() for c in channels)
    assert made not in ZMQChannelsWebsocketConnection._open_sockets
    house.say(message(Channel.IOPUB, "stream", {"name": "stdout", "text": "x"}))
    assert handler.written() == []


async def test_disconnecting_before_connecting_has_no_effect(house) -> None:
    made, _ = house.make()
    made.disconnect()
    assert house.kernels.told == []


async def test_a_manager_without_notify_methods_is_supported(house) -> None:
    house.kernels = Configurable()
    made, _ = await house.open()
    made.disconnect()
    assert house.hub.connections == 0


async def test_close_all_disconnects_every_websocket(house) -> None:
    made = [(await house.open())[0] for _ in range(3)]
    await ZMQChannelsWebsocketConnection.close_all()
    assert house.hub.connections == 0
    assert not any(c in ZMQChannelsWebsocketConnection._open_sockets for c in made)
    await ZMQChannelsWebsocketConnection.close_all()


async def test_create_stream_makes_channels_whose_flush_delivers_messages(house) -> None:
    made, _ = house.make()
    made.create_stream()
    assert {name: c.channel for name, c in made.channels.items()} == {
        str(c): str(c) for c in Channel
    }
    made.channels["iopub"].flush()


async def test_a_client_that_reconnects_gets_the_messages_it_missed(house) -> None:
    made, _ = await house.open("session_id=me")
    made.disconnect()
    house.say(message(Channel.IOPUB, "stream", {"name": "stdout", "text": "meanwhile"}))
    _, again = await house.open("session_id=me")
    _, other = await house.open("session_id=other")
    assert [m.msg_type for m in again.messages()] == ["stream"]
    assert other.messages() == []


# -- messages -------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["v1", "legacy"])
async def test_messages_of_the_websocket_reach_the_kernel(house, dialect) -> None:
    made, handler = await house.open(offered=None if dialect == "v1" else [])
    house.prove()
    encode = v1.encode if dialect == "v1" else legacy.encode
    asked = [
        message(Channel.SHELL, "execute_request", {"code": "1 # ü"}),
        message(Channel.CONTROL, "interrupt_request"),
        message(Channel.STDIN, "input_reply", {"value": "x"}),
        message(Channel.SHELL, "comm_msg", {"comm_id": "c"}, buffers=[b"\x00\xff"]),
    ]
    for msg in asked:
        assert made.handle_incoming_message(encode(msg)) is None
    assert house.sent() == asked
    assert handler.closes == []


MALFORMED: dict[str, tuple[str, Any, int, str]] = {
    "text in v1": ("v1", '{"header": {}}', 1003, "text frame"),
    "nothing": ("v1", b"", 1007, "too short"),
    "a count beyond": ("v1", b"\xff" * 40, 1007, "offsets"),
    "two msg_type": (
        "v1",
        v1.encode(
            message(Channel.SHELL, "x")._replace(
                header=b'{"msg_id": "a", "msg_type": "b", "msg_type": "c"}'
            )
        ),
        1008,
        "msg_type",
    ),
    "not UTF-8": (
        "v1",
        v1.encode(message(Channel.SHELL, "x")._replace(content=b'{"a": "\xff"}')),
        1007,
        "content is not valid UTF-8",
    ),
    "not JSON": ("legacy", "{", 1007, "JSON"),
    "no object": ("legacy", "[]", 1008, "object"),
    "no header": ("legacy", "{}", 1008, "header"),
    "binary without offsets": ("legacy", b"\x00", 1007, "too short"),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_an_invalid_frame_closes_only_its_websocket(house, name) -> None:
    dialect, frame, code, reason = MALFORMED[name]
    made, handler = await house.open(offered=None if dialect == "v1" else [])
    _, bystander = await house.open("session_id=other")
    house.prove()
    assert made.handle_incoming_message(frame) is None
    ((closed_code, closed_reason),) = handler.closes
    assert closed_code == code
    assert closed_reason is not None
    assert reason in closed_reason
    assert len(closed_reason.encode()) <= 123, "does not fit a close frame"
    good = message(Channel.SHELL, "execute_request", {"code": "1"})
    made.handle_incoming_message((v1 if dialect == "v1" else legacy).encode(good))
    house.say(message(Channel.IOPUB, "status", {"execution_state": "idle"}))
    assert house.sent() == [], "no frame after an invalid one is processed"
    assert handler.written() == [], "nothing follows a close frame"
    assert bystander.closes == []
    assert len(bystander.messages()) == 1


IGNORED: dict[str, tuple[str, Any]] = {
    "an unknown channel": (
        "v1",
        v1.encode(message(Channel.SHELL, "x")).replace(b"shell", b"shelf"),
    ),
    "iopub": ("v1", v1.encode(message(Channel.IOPUB, "x"))),
    "no msg_type": (
        "v1",
        v1.encode(message(Channel.SHELL, "x")._replace(header=b'{"msg_id": "a"}')),
    ),
    "content that is not JSON": (
        "v1",
        v1.encode(message(Channel.SHELL, "x")._replace(content=b"{")),
    ),
    "a channel that is a number": ("legacy", '{"channel": 5, "header": {}}'),
}


@pytest.mark.parametrize("name", IGNORED)
async def test_ignored_messages_are_dropped_counted_and_logged_once(house, name, caplog) -> None:
    dialect, frame = IGNORED[name]
    made, handler = await house.open(offered=None if dialect == "v1" else [])
    house.prove()
    for _ in range(50):
        assert made.handle_incoming_message(frame) is None
    good = message(Channel.SHELL, "execute_request", {"code": "1"})
    made.handle_incoming_message((v1 if dialect == "v1" else legacy).encode(good))
    assert handler.closes == []
    assert [m.msg_type for m in house.sent()] == ["execute_request"]
    assert house.hub.statistics()["ignored_client_messages"] == 50
    assert len([r for r in caplog.records if "Ignored" in r.getMessage()]) == 1


def many_keys(size: int) -> str:
    """A legacy frame with a large content that takes long to parse."""
    head = json.dumps({"msg_id": "large", "msg_type": "execute_request"})
    content = ",".join(f'"{i}":1' for i in range(size // 10))
    return f'{{"header": {head}, "content": {{{content}}}}}'


async def test_decoding_a_large_frame_does_not_delay_others(house) -> None:
    made, handler = await house.open(offered=[])
    house.prove()
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    loop.call_soon(turn)
    frame = many_keys(1 << 20)
    decoded = made.handle_incoming_message(frame)
    assert decoded is not None
    assert house.sent() == []
    assert made.pending is decoded, "the websocket is not read in the meantime"
    async with asyncio.timeout(TIMEOUT):
        await decoded
    assert turns > 5
    (msg,) = house.sent()
    assert msg.content.decode() == frame[frame.index('"content": ') + 11 : -1]
    assert handler.closes == []


async def test_a_large_frame_with_little_json_is_sent_at_once(house) -> None:
    made, _ = await house.open(offered=[])
    house.prove()
    asked = message(Channel.SHELL, "execute_request", {"code": "x" * 100_000})
    assert made.handle_incoming_message(legacy.encode(asked)) is None
    assert house.sent() == [asked]


@pytest.mark.parametrize(
    ("spoil", "code"), [(lambda frame: frame[:-1], 1007), (lambda frame: "[" + frame, 1008)]
)
async def test_an_invalid_large_frame_closes_the_websocket(house, spoil, code) -> None:
    made, handler = await house.open(offered=[])
    house.prove()
    decoded = made.handle_incoming_message(spoil(many_keys(1 << 20)))
    if decoded is not None:
        async with asyncio.timeout(TIMEOUT):
            await decoded
    assert [closed[0] for closed in handler.closes] == [code]
    assert house.sent() == []


@pytest.mark.parametrize("channel", ["iopub", "hb", "nosuch"])
async def test_an_ignored_large_frame_is_dropped_and_counted(house, channel) -> None:
    made, handler = await house.open(offered=[])
    house.prove()
    decoded = made.handle_incoming_message(many_keys(1 << 20)[:-1] + f', "channel": "{channel}"}}')
    assert decoded is not None
    async with asyncio.timeout(TIMEOUT):
        await decoded
    assert handler.closes == []
    assert house.sent() == []
    assert house.hub.statistics()["ignored_client_messages"] == 1


async def test_a_large_frame_of_a_websocket_that_disconnects_is_dropped(house) -> None:
    made, handler = await house.open(offered=[])
    house.prove()
    decoded = made.handle_incoming_message(many_keys(1 << 20))
    made.disconnect()
    async with asyncio.timeout(TIMEOUT):
        await decoded
    assert house.sent() == []
    assert handler.closes == []


async def test_messages_are_ignored_before_connect_and_after_disconnect(house) -> None:
    made, handler = house.make()
    good = v1.encode(message(Channel.SHELL, "execute_request", {"code": "1"}))
    assert made.handle_incoming_message(good) is None
    await made.connect()
    made.disconnect()
    house.prove()
    assert made.handle_incoming_message(good) is None
    assert house.sent() == []
    assert handler.closes == []


async def test_a_kernel_that_is_gone_closes_with_1012(house) -> None:
    made, handler = await house.open()
    house.hub._kernel._requests.close()
    made.handle_incoming_message(v1.encode(message(Channel.SHELL, "execute_request")))
    assert handler.closes == [(1012, "the kernel is gone")]


async def test_a_full_kernel_returns_an_awaitable(house) -> None:
    made, _ = await house.open()
    house.prove()
    house.kernel.full = True
    big = v1.encode(message(Channel.SHELL, "execute_request", {"code": "x" * (2 << 20)}))
    room = made.handle_incoming_message(big)
    assert room is not None
    assert not room.done()
    house.kernel.make_room()
    async with asyncio.timeout(TIMEOUT):
        await room
    assert len(house.sent()) == 1


@pytest.mark.parametrize("as_channel", [False, True])
async def test_handle_outgoing_message_writes_to_this_websocket_only(house, as_channel) -> None:
    made, handler = await house.open()
    _, other = await house.open("session_id=other")
    msg = message(Channel.SHELL, "execute_reply", {"status": "ok"})
    stream = made.channels["shell"] if as_channel else "shell"
    made.handle_outgoing_message(stream, [b"identity", *serialize(msg, SIGNER)])
    assert handler.messages() == [msg]
    assert other.messages() == []


@pytest.mark.parametrize("offered", [None, []], ids=["v1", "legacy"])
async def test_handle_outgoing_message_refuses_invalid_parts(house, offered) -> None:
    made, handler = await house.open(offered=offered)
    with pytest.raises(KernelMessageError):
        made.handle_outgoing_message("iopub", [b"no", b"message"])
    made.disconnect()
    made.handle_outgoing_message("iopub", serialize(message(Channel.IOPUB, "status"), SIGNER))
    assert handler.written() == []


async def test_get_part_returns_the_value_or_reads_the_part(house) -> None:
    made, _ = house.make()
    parts = [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}', b'{"d": "\xc3\xbc"}']
    names = ("header", "parent_header", "metadata", "content")
    assert [made.get_part(n, None, parts) for n in names] == [
        {"a": 1},
        {"b": 2},
        {"c": 3},
        {"d": "ü"},
    ]
    assert made.get_part("header", {"known": True}, parts) == {"known": True}
    assert made.get_part("content", {}, parts) == {}


async def test_write_message_is_that_of_the_handler(house) -> None:
    made, handler = house.make()
    assert made.write_message == handler.write_message


async def test_write_stderr_shows_a_line_to_this_websocket_only(house) -> None:
    made, handler = await house.open()
    _, other = await house.open("session_id=other")
    parent = json.loads(message(Channel.SHELL, "execute_request", msg_id="cell").header)
    made.write_stderr("look here: ü", Session().msg_header("x") | parent)
    made.write_stderr("no cell", None)
    one, two = handler.messages()
    assert (one.msg_type, one.parent_id, one.channel) == ("stream", "cell", Channel.IOPUB)
    assert json.loads(one.content) == {"name": "stderr", "text": "look here: ü\n"}
    assert two.parent_id == ""
    assert other.messages() == []
    made.disconnect()


@pytest.mark.parametrize(
    ("name", "state"), [("on_kernel_restarted", "restarting"), ("on_restart_failed", "dead")]
)
async def test_restarts_are_announced_as_status(house, name, state) -> None:
    made, handler = await house.open()
    getattr(made, name)()
    (told,) = handler.messages()
    assert (told.msg_type, told.channel) == ("status", Channel.IOPUB)
    assert json.loads(told.content) == {"execution_state": state}
    made.disconnect()
    getattr(made, name)()
    assert handler.messages() == []


# -- the kernel -----------------------------------------------------------------------------


async def test_nudging_waits_for_the_hub(house) -> None:
    made, _ = await house.open()
    nudged = made.nudge()
    await asyncio.sleep(0)
    assert not nudged.done()
    house.prove()
    async with asyncio.timeout(TIMEOUT):
        assert await nudged is True
        assert await made.nudge() is True


async def test_kernel_info_is_requested_and_not_shown_to_clients(house) -> None:
    made, handler = await house.open()
    house.prove()
    asked = made.request_kernel_info()
    async with asyncio.timeout(TIMEOUT):
        await asyncio.sleep(0)  # the first step of the task
        (request,) = house.sent()
        assert request.msg_type == "kernel_info_request"
        info = {"status": "ok", "protocol_version": "5.3"}
        house.say(message(Channel.SHELL, "kernel_info_reply", info, parent_header=request.header))
        assert await asked == info
    assert handler.messages() == []


async def test_kernel_info_of_a_kernel_that_ends_is_an_error(house) -> None:
    made, _ = await house.open()
    asked = made.request_kernel_info()
    await asyncio.sleep(0)
    await house.hubs.close("a-kernel")
    with pytest.raises(HubClosed):
        await asked


async def test_kernel_info_timeout_limits_the_wait_for_kernel_info(house) -> None:
    made, _ = await house.open(kernel_info_timeout=0.0)
    assert await made.request_kernel_info() == {}
    assert await asyncio.wrap_future(made._kernel_info_future) == {}


class Particular(ZMQChannelsWebsocketConnection):
    """A message that only the server can build."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        assert self.websocket_handler is not None
        self.journal_limit = 12345


async def test_hub_settings_can_come_from_the_traits_of_a_connection(house) -> None:
    handler = Handler(house.hubs)
    house.handlers.append(handler)
    made = Particular(parent=Kernel(parent=house.kernels), websocket_handler=handler)
    assert Particular.hub_settings(Config(), house.kernels, made).journal_limit == 12345


# -- nothing lost ---------------------------------------------------------------------------------


def test_settings_of_the_journal_can_be_configured() -> None:
    chosen = {
        "acknowledge": False,
        "rate_limit_policy": "drop",
        "journal_limit": 1 << 20,
        "history_limit": 1 << 10,
        "resume_timeout": 7.0,
    }
    config = Config({"ZMQChannelsWebsocketConnection": chosen})
    made = ZMQChannelsWebsocketConnection.hub_settings(config)
    assert {name: getattr(made, name) for name in chosen} == chosen


def test_an_unknown_rate_limit_policy_is_refused() -> None:
    config = Config({"ZMQChannelsWebsocketConnection": {"rate_limit_policy": "guess"}})
    with pytest.raises(TraitError, match="rate_limit_policy"):
        ZMQChannelsWebsocketConnection.hub_settings(config)


def test_an_overridden_connection_is_limited_by_its_methods_and_not_in_the_hub() -> None:
    class Own(ZMQChannelsWebsocketConnection):
        def write_message(self, *args: Any, **how: Any) -> None: ...

    assert Own.hub_settings().limit_rate is False
    assert ZMQChannelsWebsocketConnection.hub_settings().limit_rate is True


def frames_to(handler: Handler) -> list[tuple[int, bytes]]:
    """Return the bytes that arrived at the other end, pings included."""
    try:
        return list(each(handler.peer.recv(1 << 20)))
    except BlockingIOError:
        return []


def say(house: House, msg: Message) -> None:
    house.kernel.say(msg.channel, serialize(msg, SIGNER))


def stream(text: str) -> Message:
    return message(Channel.IOPUB, "stream", {"name": "stdout", "text": text})


@pytest.mark.parametrize("offered", [[v1.SUBPROTOCOL], []], ids=["v1", "legacy"])
async def test_a_pong_acknowledges_messages(house, offered, monkeypatch) -> None:
    monkeypatch.setattr(delivery, "PING_INTERVAL", 0.0)
    made, handler = await house.open(offered=offered)
    say(house, stream("one"))
    (first, _), (second, payload) = frames_to(handler)
    assert (first, second) == (BINARY if offered else TEXT, PING)
    attachment = made._cursor
    made.on_pong(b"")
    made.on_pong(b"1")
    assert attachment.delivered != attachment.place
    say(house, stream("two"))
    (_, (_, payload)) = frames_to(handler)
    made.on_pong(payload)
    assert attachment.delivered == attachment.place == house.hub.journal.end()
    made.disconnect()
    made.on_pong(payload)


async def test_pongs_acknowledge_although_the_handler_does_not_pass_them_on(house) -> None:
    made, handler = await house.open()
    say(house, stream("one"))
    _, (_, payload) = frames_to(handler)
    assert type(handler).on_pong is WebSocketHandler.on_pong
    handler.on_pong(payload)
    made.disconnect()
    assert "on_pong" not in vars(handler)
    _, again = await house.open()
    assert again.messages() == []


async def test_a_pong_that_the_handler_passes_on_is_processed_once(house, monkeypatch) -> None:
    heard: list[bytes] = []
    monkeypatch.setattr(Hub, "on_pong", lambda hub, attachment, payload: heard.append(payload))
    made, handler = house.make()

    class Passing(type(handler)):  # type: ignore[misc]
        def on_pong(self, data: bytes) -> str:
            made.on_pong(data)
            return "its own result"

    handler.__class__ = Passing
    await made.prepare()
    await made.connect()
    assert [handler.on_pong(b"1"), handler.on_pong(b"2")] == ["its own result"] * 2
    assert heard == [b"1", b"2"]


async def test_pongs_are_ignored_before_connect_and_after_disconnect(house) -> None:
    made, _ = house.make()
    made.on_pong(b"1")
    await made.prepare()
    await made.connect()
    made.disconnect()
    made.on_pong(b"1")
    assert house.hub.connections == 0


async def test_unacknowledged_messages_are_sent_again_to_the_session(house) -> None:
    made, handler = await house.open()
    say(house, stream("one"))
    assert len(frames_to(handler)) == 2
    made.disconnect()
    _, again = await house.open()
    assert [m.msg_type for m in again.messages()] == ["stream"]


async def test_since_is_an_optional_argument_of_the_url(house) -> None:
    for query, expected in (("", ""), ("since=start", "start"), ("since=a%20b%2Fc", "a b/c")):
        made, _ = house.make(query)
        await made.prepare()
        assert made.since == expected


async def test_parents_is_an_optional_argument_of_the_url(house) -> None:
    for query, expected in (
        ("", []),
        ("parents=a", ["a"]),
        ("parents=a,b&parents=c%20d,a", ["a", "b", "c d"]),
    ):
        made, _ = house.make(query)
        await made.prepare()
        assert made.parents == expected


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("parents=", "no request"),
        ("parents=" + ",".join(map(str, range(101))), "more than 100 requests"),
        ("parents=" + "x" * 20_000, "more than 16,384 bytes"),
    ],
    ids=["none", "too many", "too long"],
)
async def test_parents_beyond_the_limits_are_refused_with_400(house, query, reason) -> None:
    made, _ = house.make(query)
    with pytest.raises(HTTPError, match=reason) as caught:
        await made.prepare()
    assert (caught.value.status_code, caught.value.reason) == (400, caught.value.log_message)
    made.disconnect()


async def test_a_websocket_with_parents_receives_the_messages_of_these_requests(house) -> None:
    await house.open()
    a, b = (message(Channel.SHELL, "execute_request", {}, msg_id=each) for each in "ab")
    said = [message(Channel.IOPUB, "comm_msg", {}, parent_header=each.header) for each in (a, b, a)]
    for one in said:
        say(house, one)
    _, handler = await house.open("session_id=t&parents=a")
    assert handler.messages() == [said[0], said[2]]
    _, handler = await house.open(f"session_id=t&parents=a&since={said[0].msg_id}")
    assert handler.messages() == [said[2]]
    _, handler = await house.open("session_id=u&parents=b,a")
    assert handler.messages() == said


@pytest.mark.parametrize("name", ["session_id", "since", "parents"])
async def test_arguments_that_are_not_text_are_refused_with_400(house, name) -> None:
    made, _ = house.make(f"{name}=%ff")
    with pytest.raises(HTTPError) as caught:
        await made.prepare()
    assert caught.value.status_code == 400


async def test_a_new_session_begins_after_the_message_in_since(house) -> None:
    await house.open()
    said = [message(Channel.IOPUB, "comm_msg", {"n": i}) for i in range(3)]
    for one in said:
        say(house, one)
    _, handler = await house.open(f"session_id=t&since={said[0].msg_id}")
    assert handler.messages() == said[1:]
    _, handler = await house.open("since=start")
    assert handler.messages() == said
    _, handler = await house.open("session_id=u")
    assert handler.messages() == []
    _, handler = await house.open("session_id=v&since=never-was")
    marker, *rest = handler.messages()
    assert "[kbridge: " in json.loads(marker.content)["text"]
    assert rest == said


async def test_a_since_that_is_too_long_is_refused(house) -> None:
    made, _ = house.make("session_id=s&since=" + "x" * 513)
    await made.prepare()
    with pytest.raises(InvalidRequest) as caught:
        made.connect()
    assert caught.value.close_code == 1008
    assert house.hub.connections == 0
    made.disconnect()


async def test_an_overridden_connection_gets_each_message_and_then_the_ping(
    house,
) -> None:
    made, handler = house.make()
    got: list[str] = []
    usual = made.handle_outgoing_message

    def own(stream: str, parts: Any) -> Any:
        got.append(parse(Channel.IOPUB, parts, SIGNER).msg_type)
        return usual(stream, parts)

    made.handle_outgoing_message = own  # type: ignore[method-assign]
    await made.prepare()
    await made.connect()
    parent = message(Channel.SHELL, "execute_request").header
    batch = [stream(str(i))._replace(parent_header=parent) for i in range(5)]
    made._cursor.set_behind(True)
    house.kernel.say(Channel.IOPUB, *(serialize(m, SIGNER) for m in batch))
    assert got == ["stream"] * 5, "not joined"
    frames = frames_to(handler)
    payload = frames[-1][1]
    assert [opcode for opcode, _ in frames] == [BINARY] * 5 + [PING]
    made.on_pong(payload)
    assert made._cursor.delivered == house.hub.journal.end()
    made.disconnect()
