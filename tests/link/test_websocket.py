"""RFC 6455 between a real server and a client that writes its frames by hand."""

import ast
import asyncio
import gc
import inspect
import socket
import ssl
import struct
import textwrap
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol13

from kbridge.link import websocket
from kbridge.link.client import client_link
from kbridge.link.transport import SocketTransport
from kbridge.link.websocket import Websocket
from kbridge.wire import frames
from tests.link.peer import BINARY, CLOSE, PING, PONG, TEXT, Peer
from tests.support.waiting import TIMEOUT

LIMIT = 100_000
TOO_BIG = "over websocket_max_message_size (100000 bytes)"


class Handler(WebSocketHandler):
    """Stores the received messages, and waits when a test requires it."""

    def initialize(self, side: "Server") -> None:
        self.side = side

    def get_websocket_protocol(self):
        self.side.websockets.append(Websocket(self))
        return self.side.websockets[-1]

    async def open(self) -> None:
        self.side.handlers.append(self)
        if self.side.refuses:
            raise LookupError("no room")
        if self.side.opening is not None:
            await self.side.opening.wait()

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        self.side.messages.append(message)
        self.side.news.set()
        if message == "goodbye":
            self.close(4001, "as you wish")
        if self.side.error is not None:
            raise self.side.error
        return self.side.handling

    def on_progress(self) -> None:
        self.side.progress += 1

    def on_close(self) -> None:
        self.side.closed.append((self.close_code, self.close_reason))
        self.side.gone.set()


class Server:
    def __init__(self, tls: ssl.SSLContext | None = None, **settings: Any) -> None:
        self.handlers: list[Handler] = []
        self.websockets: list[Websocket] = []
        self.messages: list[str | bytes] = []
        self.closed: list[tuple[int | None, str | None]] = []
        self.gone = asyncio.Event()
        self.news = asyncio.Event()
        self.progress = 0
        self.refuses = False
        self.opening: asyncio.Event | None = None
        self.handling: asyncio.Future[None] | None = None
        self.error: Exception | None = None
        sock, self.port = bind_unused_port()
        settings.setdefault("websocket_max_message_size", LIMIT)
        app = Application([("/", Handler, {"side": self})], **settings)
        self.http = HTTPServer(app, ssl_options=tls)
        self.http.add_socket(sock)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def until_gone(self) -> None:
        async with asyncio.timeout(TIMEOUT):
            await self.gone.wait()


@pytest.fixture(params=["tcp", "tls"])
def contexts(request, tls, trusting):
    """Return the server's TLS context and the client's; None without TLS."""
    return (tls, trusting) if request.param == "tls" else (None, None)


@pytest.fixture
async def server(contexts):
    made = Server(contexts[0])
    yield made
    for left in made.websockets:
        left.on_connection_close()
    made.http.stop()
    await made.http.close_all_connections()


@pytest.fixture
async def connect(server, contexts):
    """Return a function that connects a client."""
    peers = []

    async def connect() -> Peer:
        peers.append(await Peer.connect(server.port, tls=contexts[1]))
        return peers[-1]

    yield connect
    for peer in peers:
        await peer.hang_up()


@pytest.fixture
async def peer(connect):
    return await connect()


async def test_text_and_binary_messages_are_delivered(server, peer) -> None:
    peer.send(TEXT, "grüß".encode())
    peer.send(BINARY, b"\xff\x00")
    await peer.answered()
    assert server.messages == ["grüß", b"\xff\x00"]


async def test_fragments_become_one_message_and_pings_may_come_between_them(server, peer) -> None:
    text = "naïve 🎉".encode()
    for at in range(len(text)):  # characters may also be divided
        peer.send(TEXT if at == 0 else 0, text[at : at + 1], final=at == len(text) - 1)
        peer.send(PING, b"%d" % at)
        assert await peer.frame() == (PONG, b"%d" % at)
    assert server.messages == [text.decode()]


@pytest.mark.parametrize("bad", [b"\xff", b"ok \xc3\x28", b"\xed\xa0\x80", b"cut \xe2\x82"])
async def test_text_that_is_not_utf8_is_closed_with_1007(server, peer, bad) -> None:
    peer.send(TEXT, bad)
    assert await peer.close_frame() == (1007, "text that is not UTF-8")
    peer.send_close(1007)
    assert await peer.end() == b""
    assert server.messages == []


async def test_fragments_that_are_not_utf8_together_are_closed_with_1007(server, peer) -> None:
    peer.send(TEXT, b"\xc3", final=False)
    peer.send(0, b"\x28")
    assert (await peer.close_frame())[0] == 1007


async def test_binary_frames_need_not_be_utf8(server, peer) -> None:
    peer.send(BINARY, b"\xff\xfe")
    await peer.answered()
    assert server.messages == [b"\xff\xfe"]


async def test_messages_after_the_servers_close_frame_are_ignored(server, peer) -> None:
    peer.send(TEXT, b"\xff")
    peer.send(TEXT, b"too late")
    peer.send(BINARY, b"too late")
    peer.send(PING, b"no pong behind a close")
    assert (await peer.close_frame())[0] == 1007
    peer.send_close(1007)
    assert await peer.end() == b""
    assert server.messages == []


async def test_messages_after_a_close_by_the_handler_are_ignored(server, peer) -> None:
    peer.send(TEXT, b"goodbye")
    peer.send(TEXT, b"wait")
    assert await peer.close_frame() == (4001, "as you wish")
    peer.send_close(4001)
    assert await peer.end() == b""
    assert server.messages == ["goodbye"]


async def test_the_peer_reads_why_its_message_is_too_big_while_it_still_sends(server, peer) -> None:
    """Bytes of the message are still in transit when the server refuses it."""
    size = 4 << 20
    peer.writer.write(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, size) + b"mask")
    chunk = b"x" * 65536

    async def go_on() -> None:
        for _ in range(size // len(chunk)):
            peer.writer.write(chunk)
            await peer.writer.drain()

    sending = asyncio.ensure_future(go_on())
    assert await peer.close_frame() == (1009, TOO_BIG)
    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(sending, return_exceptions=not peer.writer.can_write_eof())
    # With TLS, asyncio closes the connection when the server stops writing.
    if peer.writer.can_write_eof():
        peer.send_close(1009)
        peer.writer.write_eof()
        assert await peer.end() == b""
    await server.until_gone()
    assert server.messages == []


async def test_fragments_are_too_big_together(server, peer) -> None:
    peer.send(TEXT, b"x" * (LIMIT - 10), final=False)
    peer.send(0, b"x" * 11)
    assert await peer.close_frame() == (1009, TOO_BIG)
    if peer.writer.can_write_eof():
        peer.writer.write_eof()
    assert await peer.end() == b""


async def test_a_message_of_the_limit_passes(server, peer) -> None:
    peer.send(BINARY, bytes(LIMIT))
    await peer.answered()
    assert server.messages == [bytes(LIMIT)]


async def test_a_false_length_allocates_no_memory(server, peer) -> None:
    peer.writer.write(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, (1 << 63) - 1) + b"mask")
    assert await peer.close_frame() == (1009, TOO_BIG)


async def test_a_peer_that_hangs_up_ends_the_lingering(server, peer) -> None:
    peer.writer.write(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, 1 << 30) + b"mask")
    assert (await peer.close_frame())[0] == 1009
    await peer.hang_up()
    await server.until_gone()
    assert len(server.closed) == 1


async def test_a_1009_of_the_peer_is_echoed_without_a_reason(server, peer) -> None:
    """The message to the peer was too large, which is not related to our setting."""
    peer.send_close(1009, "your message is too big")
    assert await peer.close_frame() == (1009, "")
    assert await peer.end() == b""
    await server.until_gone()
    assert server.closed == [(1009, "your message is too big")]


async def test_a_normal_close_is_echoed_and_reported_to_the_handler(server, peer) -> None:
    peer.send_close(1000, "done")
    assert await peer.close_frame() == (1000, "")
    assert await peer.end() == b""
    await server.until_gone()
    assert server.closed == [(1000, "done")]


async def test_a_close_without_a_code_is_echoed(server, peer) -> None:
    peer.send(CLOSE, b"")
    assert await peer.frame() == (CLOSE, b"")
    assert await peer.end() == b""


@pytest.mark.parametrize(
    "bad",
    [b"\x03", *(struct.pack("!H", code) for code in (0, 999, 1005, 1006, 5000)), b"\x03\xe8\xff"],
)
async def test_an_invalid_close_frame_is_closed_with_1002(server, peer, bad) -> None:
    peer.send(CLOSE, bad)
    assert (await peer.close_frame())[0] == 1002
    await server.until_gone()


@pytest.mark.parametrize("code", [1000, 1011, 3000, 4999])
async def test_a_code_that_may_be_sent_is_echoed(server, peer, code) -> None:
    peer.send_close(code)
    assert await peer.close_frame() == (code, "")


async def test_a_lost_connection_is_reported_to_the_handler(server, peer) -> None:
    peer.send(TEXT, b"half a mess", final=False)
    await peer.hang_up()
    await server.until_gone()
    assert server.closed == [(None, None)]
    assert server.messages == []


@pytest.mark.parametrize(
    "sent",
    [
        [(0, b"nothing to continue", True)],
        [(TEXT, b"a", False), (TEXT, b"b", True)],
        [(PING, b"a fragment", False)],
        [(0x3, b"no such opcode", True)],
        [(TEXT | 0x40, b"no such extension", True)],
    ],
    ids=["continuation", "interleaved", "control", "opcode", "reserved"],
)
async def test_invalid_framing_ends_the_connection(server, peer, sent) -> None:
    for opcode, payload, final in sent:
        peer.send(opcode, payload, final=final)
    await server.until_gone()
    assert server.messages == []


async def test_a_fault_of_one_websocket_does_not_affect_others(server, connect, peer) -> None:
    other = await connect()
    other.send(TEXT, b"\xff")
    assert (await other.close_frame())[0] == 1007
    peer.send(TEXT, b"still here")
    await peer.answered()
    assert server.messages == ["still here"]


async def test_a_flood_of_small_frames_does_not_delay_others(server, peer) -> None:
    turns, on = 0, True

    def turn() -> None:
        nonlocal turns
        turns += 1
        if on:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    for at in range(9_000):  # less than one chunk of 64 KiB
        peer.send(PONG, b"" if at else b"0")
    await peer.answered()
    on = False
    assert turns > 9_000 // 256, "they were all handled in a turn"


async def test_a_flood_of_empty_fragments_does_not_delay_others(server, peer) -> None:
    turns, on = 0, True

    def turn() -> None:
        nonlocal turns
        turns += 1
        if on:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    peer.send(TEXT, b"a", final=False)
    for _ in range(9_000):  # less than one chunk of 64 KiB
        peer.send(0, b"", final=False)
    peer.send(0, b"b")
    await peer.answered()
    on = False
    assert turns > 9_000 // 256, "they were all handled in a turn"
    assert server.messages == ["ab"]


async def test_expensive_messages_do_not_delay_others(server, peer, monkeypatch) -> None:
    """A turn ends with the message that exceeds its time."""
    monkeypatch.setattr(websocket, "_TURN_SECONDS", 0.0)
    turns, on = 0, True

    def turn() -> None:
        nonlocal turns
        turns += 1
        if on:
            asyncio.get_running_loop().call_soon(turn)

    turn()
    for i in range(100):
        peer.send(TEXT, b"%d" % i)
    await peer.answered()
    on = False
    assert turns >= 100
    assert server.messages == [str(i) for i in range(100)]


async def test_unread_pongs_do_not_use_memory(server, peer) -> None:
    for _ in range(400):
        for _ in range(500):
            peer.send(PING, b"x" * 125)
        await peer.writer.drain()
    handler = server.handlers[0]
    assert handler.ws_connection.unsent_bytes < 1 << 20
    peer.writer.transport.abort()
    await server.until_gone()


async def test_the_peer_reads_why_its_framing_is_wrong_while_it_still_sends(server, peer) -> None:
    peer.writer.write(b"\xff")  # reserved bits
    peer.writer.write(b"\xff" * 500_000)
    assert (await peer.close_frame())[0] == 1002
    assert await peer.end() == b""
    # With TLS, asyncio closes the connection when the server stops writing.
    if peer.writer.can_write_eof():
        peer.writer.write(b"\xff" * 100)  # no reset has arrived
        await peer.writer.drain()
    await server.until_gone()


# -- the handshake ---------------------------------------------------------------------------


async def head_of(port: int, tls: ssl.SSLContext | None, *leave_out: str, **more: str) -> bytes:
    """Send a handshake that lacks some headers and has others, and return the answer."""
    headers = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **more,
    }
    lines = ["GET / HTTP/1.1", *(f"{k}: {v}" for k, v in headers.items() if k not in leave_out)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    async with asyncio.timeout(TIMEOUT):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


async def test_the_handshake_is_that_of_rfc_6455(server, contexts) -> None:
    head = await head_of(server.port, contexts[1])
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nSec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    assert b"\r\nConnection: Upgrade\r\n" in head
    assert b"Content-Type" not in head
    await server.until_gone()


async def test_a_part_of_an_offered_subprotocol_is_not_selected(
    server, contexts, monkeypatch
) -> None:
    monkeypatch.setattr(Handler, "select_subprotocol", lambda self, offered: "v1")
    offer = {"Sec-WebSocket-Protocol": "v1.kernel"}
    head = await head_of(server.port, contexts[1], **offer)
    assert head.startswith(b"HTTP/1.1 500 ")


async def test_a_handshake_without_a_key_is_refused(server, contexts) -> None:
    head = await head_of(server.port, contexts[1], "Sec-WebSocket-Key")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert not server.handlers


async def test_a_handler_that_fails_to_open_is_told_that_the_connection_ended(
    server, connect, caplog
) -> None:
    server.refuses = True
    peer = await connect()
    assert await peer.end() == b""
    await server.until_gone()
    assert "no room" in caplog.text


async def test_frames_sent_right_behind_the_handshake_are_read(server, connect) -> None:
    server.opening = asyncio.Event()
    peer = await connect()
    peer.send(TEXT, b"early")
    server.opening.set()
    await peer.answered()
    assert server.messages == ["early"]


# -- messages that take time, and errors of the handler --------------------------------------


async def test_nothing_is_read_while_a_message_is_being_handled(server, peer) -> None:
    server.handling = asyncio.get_running_loop().create_future()
    peer.send(TEXT, b"one")
    peer.send(TEXT, b"two")
    peer.send(PING, b"!")
    await server.until(lambda: server.messages)
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.messages == ["one"]
    handling, server.handling = server.handling, None
    handling.set_result(None)
    assert await peer.frame() == (PONG, b"!")
    assert server.messages == ["one", "two"]


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_an_error_of_the_handler_ends_the_connection(server, peer, caplog, when) -> None:
    if when == "later":
        server.handling = asyncio.get_running_loop().create_future()
        server.handling.set_exception(LookupError("no room"))
    else:
        server.error = LookupError("no room")
    peer.send(TEXT, b"one")
    peer.send(TEXT, b"two")
    await server.until_gone()
    assert server.messages == ["one"]
    assert "no room" in caplog.text


async def test_an_error_of_on_close_is_logged_and_ends_the_request(
    connect, caplog, monkeypatch
) -> None:
    ended = asyncio.Event()
    accept = Websocket.accept_connection

    async def accept_connection(self: Websocket, handler: WebSocketHandler) -> None:
        await accept(self, handler)
        ended.set()

    def on_close(self: Handler) -> None:
        raise LookupError("nothing to close")

    monkeypatch.setattr(Websocket, "accept_connection", accept_connection)
    monkeypatch.setattr(Handler, "on_close", on_close)
    peer = await connect()
    await peer.hang_up()
    async with asyncio.timeout(TIMEOUT):
        await ended.wait()
    assert "nothing to close" in caplog.text


async def test_a_closed_websocket_is_freed_without_a_garbage_collection(server, peer) -> None:
    """The buffer may hold most of a large message."""
    peer.send(BINARY, b"half a message", final=False)
    await peer.answered()
    freed = asyncio.Event()
    handler = weakref.ref(server.handlers.pop(), lambda _: freed.set())
    server.websockets.clear()
    gc.disable()
    try:
        await peer.hang_up()
        async with asyncio.timeout(TIMEOUT):
            await freed.wait()
    finally:
        gc.enable()
    assert handler() is None


# -- writing ---------------------------------------------------------------------------------

BIG = b"x" * (8 << 20)  # more than the sockets' buffers take


async def test_a_batch_is_written_by_a_hub_and_blocks_until_it_is_read(server, peer) -> None:
    await peer.answered()
    link = client_link(server.handlers[0])
    writable = asyncio.Event()
    link.on_writable = writable.set
    assert link.write(frames.frame(b"one", BINARY) + frames.frame(b"two", BINARY))
    assert [await peer.frame(), await peer.frame()] == [(BINARY, b"one"), (BINARY, b"two")]
    assert not link.write(frames.frame(BIG, BINARY))
    peer.send(PING, b"old")
    peer.send(PING, b"new")
    peer.send(TEXT, b"read meanwhile")
    await server.until(lambda: server.messages)
    assert not writable.is_set()
    assert server.progress == 0
    assert await peer.frame() == (BINARY, BIG)
    assert await peer.frame() == (PONG, b"new"), "the latest ping alone is answered"
    async with asyncio.timeout(TIMEOUT):
        await writable.wait()
    assert server.progress > 0
    assert link.write(frames.frame(b"more", BINARY))
    assert await peer.frame() == (BINARY, b"more")


async def test_futures_of_written_messages_end_when_these_are_sent_or_lost(server, peer) -> None:
    await peer.answered()
    handler = server.handlers[0]
    await handler.write_message("text")
    await handler.write_message({"a": 1})
    await handler.write_message(b"data", binary=True)
    handler.ping(b"are you there")
    expected = [(TEXT, b"text"), (TEXT, b'{"a": 1}'), (BINARY, b"data"), (PING, b"are you there")]
    assert [await peer.frame() for _ in expected] == expected
    written = handler.write_message(BIG, binary=True)
    assert not written.done()
    assert await peer.frame() == (BINARY, BIG)
    async with asyncio.timeout(TIMEOUT):
        await written
    lost = handler.write_message(BIG, binary=True)
    peer.writer.transport.abort()
    with pytest.raises(WebSocketClosedError):
        async with asyncio.timeout(TIMEOUT):
            await lost
    await server.until_gone()
    with pytest.raises(WebSocketClosedError):
        handler.write_message("late")


async def test_writing_to_a_reset_connection_fails(server, peer) -> None:
    server.handling = asyncio.get_running_loop().create_future()  # nothing is read in the meantime
    peer.send(TEXT, b"wait")
    await server.until(lambda: server.messages)
    sock = peer.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.writer.transport.abort()
    await peer.hang_up()
    with pytest.raises(WebSocketClosedError):
        async with asyncio.timeout(TIMEOUT):
            await server.handlers[0].write_message("lost")
    await server.until_gone()
    server.handling.set_result(None)


async def test_nothing_is_written_after_the_close_frame_of_the_server(server, peer) -> None:
    await peer.answered()
    link = client_link(server.handlers[0])
    assert not link.closed
    link.close(1001, "é" * 100)
    assert link.closed
    assert not link.write(frames.frame(b"late", BINARY))
    assert await peer.close_frame() == (1001, "é" * 61), "a reason has at most 123 bytes"
    peer.send_close(1001)
    assert await peer.end() == b""
    await server.until_gone()


async def test_a_peer_that_does_not_answer_a_close_is_dropped(server, peer, monkeypatch) -> None:
    monkeypatch.setattr(websocket, "_CLOSING_SECONDS", 0.01)
    await peer.answered()
    server.handlers[0].close(1001)
    assert await peer.close_frame() == (1001, "")
    assert await peer.end() == b""
    await server.until_gone()


async def test_the_ping_interval_of_tornado_applies() -> None:
    server = Server(websocket_ping_interval=0.05)
    peer = await Peer.connect(server.port)
    try:
        assert await peer.frame() == (PING, b"")
        peer.send(PONG, b"")
        assert await peer.frame() == (PING, b"")
        assert await peer.close_frame() == (1000, "ping timed out")
        peer.send_close(1000)
        await server.until_gone()
    finally:
        await peer.hang_up()
        server.http.stop()
        await server.http.close_all_connections()


async def test_a_websocket_that_ends_while_it_opens_is_not_pinged(
    server, connect, monkeypatch
) -> None:
    timers: list[Any] = []
    monkeypatch.setattr(websocket, "PeriodicTimer", lambda *args: timers.append(args))
    monkeypatch.setattr(Handler, "ping_interval", 30)
    server.opening = asyncio.Event()
    ended = asyncio.Event()
    accept = Websocket.accept_connection

    async def accept_connection(self: Websocket, handler: WebSocketHandler) -> None:
        await accept(self, handler)
        ended.set()

    monkeypatch.setattr(Websocket, "accept_connection", accept_connection)
    await connect()
    server.websockets[0].on_connection_close()
    await server.until_gone()
    server.opening.set()
    async with asyncio.timeout(TIMEOUT):
        await ended.wait()
    assert timers == []


# -- Tornado ---------------------------------------------------------------------------------


def names(source: object, owner: str) -> set[str]:
    """Return the attributes of `owner`, such as `self.ws_connection`, that source code uses."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(source)))
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return {node.attr for node in attributes if ast.unparse(node.value) == owner}


def test_all_names_that_tornados_handler_uses_exist() -> None:
    """This test fails with a new Tornado that needs more."""
    asked = names(WebSocketHandler, "self.ws_connection")
    assert "accept_connection" in asked
    assert {name for name in asked if not hasattr(Websocket, name)} == set()


def test_only_public_names_of_tornado_are_used_and_they_exist() -> None:
    """The only names of Tornado that a websocket uses; this test fails if a new Tornado lacks one.

    `close_fd` is one that IOStream documents for subclasses; here it is replaced on an instance.
    """
    of_handler = names(Websocket, "handler") | names(Websocket, "self._handler")
    assert {name for name in of_handler if not hasattr(WebSocketHandler, name)} <= {
        "request",  # set by the constructor
        "ws_connection",
        "open_args",
        "open_kwargs",
    }
    of_stream = names(SocketTransport, "stream") | names(Websocket, "stream")
    assert {name for name in of_stream if not hasattr(IOStream, name)} == {"socket"}
    assert not {name for name in of_handler | of_stream if name.startswith("_")}
    assert WebSocketProtocol13.compute_accept_value("dGhlIHNhbXBsZSBub25jZQ==")


def test_frames_are_unmasked_in_c() -> None:
    """A Tornado without this function works, but large messages take ten times as long."""
    from tornado.speedups import websocket_mask

    assert websocket.unmask is websocket_mask
