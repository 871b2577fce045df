"""RFC 6455 between a real server and a client that writes its frames by hand."""

import asyncio
import struct

import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from kbridge.link import protocol
from kbridge.link.protocol import BridgeWebSocketProtocol
from kbridge.link.stream import SocketStream
from tests.link.peer import BINARY, CLOSE, PING, PONG, TEXT, Peer

LIMIT = 100_000
TOO_BIG = "over some_setting (100000 bytes)"


class Handler(WebSocketHandler):
    """Keeps what it gets, and waits where a test wants it to."""

    def initialize(self, side: "Server") -> None:
        self.side = side

    def get_websocket_protocol(self):
        usual = super().get_websocket_protocol()
        assert usual is not None
        return BridgeWebSocketProtocol(self, False, usual.params, too_big=TOO_BIG)

    def open(self) -> None:
        self.side.handlers.append(self)

    def on_message(self, message: str | bytes) -> None:
        self.side.messages.append(message)
        if message == "goodbye":
            self.close(4001, "as you wish")

    def on_close(self) -> None:
        self.side.closed.append((self.close_code, self.close_reason))
        self.side.gone.set()


class Server:
    def __init__(self) -> None:
        self.handlers: list[Handler] = []
        self.messages: list[str | bytes] = []
        self.closed: list[tuple[int | None, str | None]] = []
        self.gone = asyncio.Event()
        sock, self.port = bind_unused_port()
        app = Application([("/", Handler, {"side": self})], websocket_max_message_size=LIMIT)
        self.http = HTTPServer(app)
        self.http.add_socket(sock)

    async def until_gone(self) -> None:
        async with asyncio.timeout(20):
            await self.gone.wait()


@pytest.fixture(params=["socket", "tornado"])
async def server(request, monkeypatch):
    if request.param == "tornado":  # as with TLS
        monkeypatch.setattr(SocketStream, "take_over", lambda _stream: None)
    made = Server()
    yield made
    made.http.stop()
    await made.http.close_all_connections()


@pytest.fixture
async def peer(server):
    made = await Peer.connect(server.port)
    yield made
    await made.hang_up()


async def test_text_and_binary_come_through(server, peer) -> None:
    peer.send(TEXT, "grüß".encode())
    peer.send(BINARY, b"\xff\x00")
    await peer.answered()
    assert server.messages == ["grüß", b"\xff\x00"]


async def test_fragments_come_as_one_message_with_pings_in_between(server, peer) -> None:
    text = "naïve 🎉".encode()
    for at in range(len(text)):  # characters are cut, too
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


async def test_binary_frames_are_nobodys_text(server, peer) -> None:
    peer.send(BINARY, b"\xff\xfe")
    await peer.answered()
    assert server.messages == [b"\xff\xfe"]


async def test_nothing_comes_of_what_is_sent_after_our_close(server, peer) -> None:
    peer.send(TEXT, b"\xff")
    peer.send(TEXT, b"too late")
    peer.send(BINARY, b"too late")
    peer.send(PING, b"no pong behind a close")
    assert (await peer.close_frame())[0] == 1007
    peer.send_close(1007)
    assert await peer.end() == b""
    assert server.messages == []


async def test_nothing_comes_of_what_follows_a_close_of_the_handlers_own(server, peer) -> None:
    peer.send(TEXT, b"goodbye")
    peer.send(TEXT, b"wait")
    assert await peer.close_frame() == (4001, "as you wish")
    peer.send_close(4001)
    assert await peer.end() == b""
    assert server.messages == ["goodbye"]


async def test_the_peer_reads_why_its_message_is_too_big_while_it_still_sends(server, peer) -> None:
    """Bytes of the message are on their way when the server has had enough of it."""
    size = 4 << 20
    peer.writer.write(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, size) + b"mask")
    chunk = b"x" * 65536

    async def go_on() -> None:
        for _ in range(size // len(chunk)):
            peer.writer.write(chunk)
            await peer.writer.drain()

    sending = asyncio.ensure_future(go_on())
    assert await peer.close_frame() == (1009, TOO_BIG)
    async with asyncio.timeout(20):
        await sending
    peer.send_close(1009)
    peer.writer.write_eof()
    assert await peer.end() == b""
    await server.until_gone()
    assert server.messages == []


async def test_fragments_are_too_big_together(server, peer) -> None:
    peer.send(TEXT, b"x" * (LIMIT - 10), final=False)
    peer.send(0, b"x" * 11)
    assert await peer.close_frame() == (1009, TOO_BIG)
    peer.writer.write_eof()
    assert await peer.end() == b""


async def test_a_message_of_the_limit_passes(server, peer) -> None:
    peer.send(BINARY, bytes(LIMIT))
    await peer.answered()
    assert server.messages == [bytes(LIMIT)]


async def test_a_length_that_lies_costs_nothing(server, peer) -> None:
    peer.writer.write(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, (1 << 63) - 1) + b"mask")
    assert await peer.close_frame() == (1009, TOO_BIG)


async def test_who_hangs_up_while_we_linger_is_gone_at_once(server, peer) -> None:
    peer.writer.write(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, 1 << 30) + b"mask")
    assert (await peer.close_frame())[0] == 1009
    await peer.hang_up()
    await server.until_gone()
    assert len(server.closed) == 1


async def test_the_peers_own_1009_is_echoed_without_our_reason(server, peer) -> None:
    """What we sent was too big for it: that is no word about our setting."""
    peer.send_close(1009, "your message is too big")
    assert await peer.close_frame() == (1009, "")
    assert await peer.end() == b""
    await server.until_gone()
    assert server.closed == [(1009, "your message is too big")]


async def test_a_normal_close_is_echoed_and_told(server, peer) -> None:
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
async def test_a_close_frame_that_is_none_is_closed_with_1002(server, peer, bad) -> None:
    peer.send(CLOSE, bad)
    assert (await peer.close_frame())[0] == 1002
    await server.until_gone()


@pytest.mark.parametrize("code", [1000, 1011, 3000, 4999])
async def test_a_code_that_may_be_sent_is_echoed(server, peer, code) -> None:
    peer.send_close(code)
    assert await peer.close_frame() == (code, "")


async def test_a_peer_that_vanishes_is_told_of(server, peer) -> None:
    peer.send(TEXT, b"half a mess", final=False)
    await peer.hang_up()
    await server.until_gone()
    assert server.closed == [(None, None)]
    assert server.messages == []


@pytest.mark.parametrize(
    "frames",
    [
        [(0, b"nothing to continue", True)],
        [(TEXT, b"a", False), (TEXT, b"b", True)],
        [(PING, b"a fragment", False)],
        [(0x3, b"no such opcode", True)],
        [(TEXT | 0x40, b"no such extension", True)],
    ],
    ids=["continuation", "interleaved", "control", "opcode", "reserved"],
)
async def test_what_breaks_the_framing_ends_the_connection(server, peer, frames) -> None:
    for opcode, payload, final in frames:
        peer.send(opcode, payload, final=final)
    await server.until_gone()
    assert server.messages == []


async def test_one_websockets_fault_is_nobody_elses(server, peer) -> None:
    other = await Peer.connect(server.port)
    try:
        other.send(TEXT, b"\xff")
        assert (await other.close_frame())[0] == 1007
        peer.send(TEXT, b"still here")
        await peer.answered()
        assert server.messages == ["still here"]
    finally:
        await other.hang_up()


async def test_a_flood_of_small_frames_leaves_others_their_turn(server, peer) -> None:
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


async def test_a_flood_of_empty_fragments_leaves_others_their_turn(server, peer) -> None:
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


async def test_messages_that_cost_much_leave_others_their_turn(server, peer, monkeypatch) -> None:
    """A turn ends with the message that has used its time up."""
    monkeypatch.setattr(protocol, "_TURN_SECONDS", 0.0)
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


async def test_pings_whose_pongs_nobody_reads_pile_up_nothing(server, peer) -> None:
    for _ in range(400):
        for _ in range(500):
            peer.send(PING, b"x" * 125)
        await peer.writer.drain()
    handler = server.handlers[0]
    stream = handler.ws_connection.stream
    pending = stream.waiting if isinstance(stream, SocketStream) else len(stream._write_buffer)
    assert pending < 1 << 20
    peer.writer.transport.abort()
    await server.until_gone()


async def test_the_peer_reads_why_its_framing_is_wrong_while_it_still_sends(server, peer) -> None:
    peer.writer.write(b"\xff")  # reserved bits
    peer.writer.write(b"\xff" * 500_000)
    assert (await peer.close_frame())[0] == 1002
    assert await peer.end() == b""
    peer.writer.write(b"\xff" * 100)  # no reset has come
    await peer.writer.drain()
    await server.until_gone()
