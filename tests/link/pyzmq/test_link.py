"""The sockets to a kernel, with real sockets as the kernel."""

import asyncio
import dataclasses
import errno
import json
import select
import socket
from types import SimpleNamespace

import pytest
import zmq
import zmq.asyncio

from kbridge.errors import KernelError
from kbridge.link.endpoints import Endpoints
from kbridge.link.pyzmq import link as module
from kbridge.link.pyzmq import sockets
from kbridge.link.pyzmq.link import PyzmqLink
from kbridge.wire.message import Channel
from kbridge.wire.zmq import DELIMITER

TYPES = {
    Channel.IOPUB: zmq.PUB,
    Channel.SHELL: zmq.ROUTER,
    Channel.CONTROL: zmq.ROUTER,
    Channel.STDIN: zmq.ROUTER,
}


class Side:
    """The kernel's sockets."""

    def __init__(
        self,
        ports: dict[Channel, int] | None = None,
        curve: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.context = zmq.asyncio.Context()
        self.curve = curve
        self.sockets = {}
        self.ports = {}
        for channel, kind in TYPES.items():
            socket = self.context.socket(kind)
            socket.linger = 0
            # A PUB drops messages beyond its limit, which a test that sends until something arrives
            # reaches if the I/O thread gets no time.
            socket.sndhwm = 0
            if curve is not None:
                socket.curve_publickey, socket.curve_secretkey = curve
                socket.curve_server = True
            if ports is None:
                self.ports[channel] = socket.bind_to_random_port("tcp://127.0.0.1")
            else:
                self.ports[channel] = ports[channel]
                socket.bind(f"tcp://127.0.0.1:{ports[channel]}")
            self.sockets[channel] = socket

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints("tcp", "127.0.0.1", self.ports, b"key", curve=self.curve)

    def close(self) -> None:
        for each in self.sockets.values():
            each.close(0)
        self.context.term()


class Recorder:
    """Records the events of a link; a test can wait for them."""

    def __init__(self) -> None:
        self.messages: list[tuple[Channel, list[bytes]]] = []
        self.drained = 0
        self.news: list[str] = []
        self.stdin: list[str] = []
        self.gone: list[Channel] = []
        self._changed = asyncio.Event()

    def on_messages(self, channel, batch) -> None:
        self.messages += [(channel, [bytes(p) for p in parts]) for parts in batch]
        self._changed.set()

    def on_drained(self) -> None:
        self.drained += 1

    def on_writable(self, channel) -> None:
        self._tell(f"writable {channel}")

    def on_connected(self, channel) -> None:
        self._tell("connected", channel)

    def on_disconnected(self, channel) -> None:
        self._tell("disconnected", channel)

    def on_gone(self, channel) -> None:
        self.gone.append(channel)
        self._changed.set()

    def _tell(self, what: str, channel: Channel = Channel.IOPUB) -> None:
        if channel in (Channel.IOPUB, Channel.STDIN):
            (self.news if channel is Channel.IOPUB else self.stdin).append(what)
        self._changed.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def body(n: int) -> list[bytes]:
    return [DELIMITER, b"sig", b'{"n":%d}' % n, b"{}", b"{}", json.dumps({"n": n}).encode()]


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.close()


@pytest.fixture
async def linked(side):
    events = Recorder()
    link = PyzmqLink(side.endpoints, events)
    await events.until(lambda: "connected" in events.news)
    yield link, events
    link.close()
    link.close()
    assert link.closed


async def until_subscribed(side: Side, events: Recorder) -> None:
    """A PUB socket drops messages until the subscription has arrived."""
    async with asyncio.timeout(20):
        while not events.messages:
            await side.sockets[Channel.IOPUB].send_multipart([b"hello", *body(-1)])
            await asyncio.sleep(0)
    events.messages = []


async def test_a_flood_arrives_whole_in_few_batches(side, linked) -> None:
    _, events = linked
    await until_subscribed(side, events)
    for n in range(5000):
        await side.sockets[Channel.IOPUB].send_multipart([b"flood", *body(n)])

    def numbers() -> list[int]:
        return [n for _, parts in events.messages if (n := json.loads(parts[-1])["n"]) >= 0]

    await events.until(lambda: len(numbers()) == 5000)
    assert numbers() == list(range(5000))
    assert events.drained < 2500


async def test_requests_go_out_and_replies_come_back_on_each_channel(side, linked) -> None:
    link, events = linked
    idents = set()
    for n, channel in enumerate((Channel.SHELL, Channel.CONTROL, Channel.STDIN)):
        assert link.send(channel, body(n))
        async with asyncio.timeout(20):
            ident, *parts = await side.sockets[channel].recv_multipart()
        assert parts == body(n)
        idents.add(ident)
        await side.sockets[channel].send_multipart([ident, *body(n + 10)])
        await events.until(lambda c=channel, n=n: (c, body(n + 10)) in events.messages)
    assert len(idents) == 1, "one identity for all: input requests are addressed to it"


@pytest.mark.parametrize("first", [Channel.SHELL, Channel.IOPUB])
async def test_a_reply_and_an_idle_that_have_arrived_are_delivered_together(
    side, linked, first
) -> None:
    link, events = linked
    await until_subscribed(side, events)
    assert link.send(Channel.SHELL, body(0))
    async with asyncio.timeout(20):
        ident, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    await side.sockets[Channel.IOPUB].send_multipart([b"the last before", *body(99)])
    await events.until(lambda: (Channel.IOPUB, [b"the last before", *body(99)]) in events.messages)
    for turn in range(10):
        at_drained: list[int] = []

        def arrived(last: bytes = body(turn)[-1]) -> int:
            return sum(parts[-1] == last for _, parts in events.messages)

        events.on_drained = lambda at=at_drained, arrived=arrived: at.append(arrived())
        # A descriptor may be readable because of internal events of ZeroMQ; reading clears them.
        link.drain()
        for channel in (first, *({Channel.SHELL, Channel.IOPUB} - {first})):
            blocking = zmq.Socket.shadow(side.sockets[channel].underlying)
            blocking.send_multipart([ident, *body(turn)])
            poller = select.poll()
            poller.register(link._sockets[channel].fileno(), select.POLLIN)
            assert poller.poll(20_000), "the message has arrived, and the loop had no turn"
        await events.until(lambda arrived=arrived: arrived() == 2)
        await asyncio.sleep(0)
        assert 1 not in at_drained, at_drained


async def test_replies_that_arrive_during_a_send_are_delivered(side, linked) -> None:
    """The descriptor is edge-triggered, and sending consumes the event."""
    link, events = linked
    count = 300
    sent = 0

    async def echo() -> None:
        for _ in range(count):
            ident, *parts = await side.sockets[Channel.SHELL].recv_multipart()
            await side.sockets[Channel.SHELL].send_multipart([ident, *parts])

    echoing = asyncio.ensure_future(echo())
    while sent < count:
        while sent < count and link.send(Channel.SHELL, body(sent)):
            sent += 1
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await echoing
    await events.until(lambda: len(events.messages) == count)


async def test_a_full_channel_refuses_messages_and_reports_when_there_is_room(side, linked) -> None:
    link, events = linked
    big = [*body(0), b"x" * 200_000]
    for _ in range(1000):
        if not link.send(Channel.SHELL, big):
            break
    else:
        pytest.fail("a kernel that does not read takes 200 MB")
    assert link.send(Channel.CONTROL, body(1)), "the other channels have separate queues"
    reading = asyncio.ensure_future(drain_all(side.sockets[Channel.SHELL]))
    await events.until(lambda: "writable shell" in events.news)
    assert link.send(Channel.SHELL, body(2))
    reading.cancel()


async def drain_all(socket) -> None:
    while True:
        await socket.recv_multipart()


async def test_disconnects_and_reconnects_are_reported(side, linked) -> None:
    _, events = linked
    ports = dict(side.ports)
    await events.until(lambda: events.stdin == ["connected"])
    side.close()
    await events.until(lambda: "disconnected" in events.news)
    again = Side(ports)
    try:
        await events.until(lambda: events.news[-1] == "connected")
        assert events.news == ["connected", "disconnected", "connected"]
        await events.until(lambda: events.stdin == ["connected", "disconnected", "connected"])
    finally:
        again.close()


def limited(side: Side, limit: int) -> Endpoints:
    return dataclasses.replace(side.endpoints, message_limit=limit)


async def test_a_message_that_is_too_large_makes_the_socket_reconnect(side) -> None:
    """libzmq allocates its size before it can be checked, and does not reconnect."""
    events = Recorder()
    link = PyzmqLink(limited(side, 100_000), events)
    try:
        await events.until(lambda: "connected" in events.news)
        await until_subscribed(side, events)
        large = [DELIMITER, b"sig", b"{}", b"{}", b"{}", b"x" * 200_000]
        await side.sockets[Channel.IOPUB].send_multipart([b"topic", *large])
        await events.until(lambda: events.gone == [Channel.IOPUB])
        await events.until(lambda: events.news == ["connected", "disconnected", "connected"])
        await until_subscribed(side, events)
    finally:
        link.close()


@pytest.mark.parametrize(
    ("channel", "share"), [(Channel.SHELL, 16), (Channel.CONTROL, 16), (Channel.STDIN, 1024)]
)
async def test_a_reply_that_is_too_large_affects_no_other_socket(side, channel, share) -> None:
    events = Recorder()
    limit = 1 << 20
    link = PyzmqLink(limited(side, limit), events)
    try:
        await events.until(lambda: events.news and events.stdin)
        for size, arrives in ((limit // share - 10, True), (limit // share + 1, False)):
            assert link.send(channel, body(1))
            async with asyncio.timeout(20):
                ident, *_ = await side.sockets[channel].recv_multipart()
            answer = [*body(2), b"x" * size]
            await side.sockets[channel].send_multipart([ident, *answer])
            if arrives:
                await events.until(lambda a=answer: (channel, a) in events.messages)
        await events.until(lambda: events.gone == [channel])
        link.renew(b"another name", keep=True)
        await events.until(lambda: events.stdin[-1:] == ["connected"])
        assert link.send(channel, body(3))
        async with asyncio.timeout(20):
            ident, *parts = await side.sockets[channel].recv_multipart()
        assert (ident, parts) == (b"another name", body(3))
        await side.sockets[channel].send_multipart([ident, *body(4)])
        await events.until(lambda: (channel, body(4)) in events.messages)
        assert events.news == ["connected"]
    finally:
        link.close()


async def test_replies_to_a_former_identity_arrive_until_it_is_dropped(side, linked) -> None:
    link, events = linked
    assert link.send(Channel.SHELL, body(0))
    async with asyncio.timeout(20):
        old, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    link.renew(b"new", keep=True)
    assert link.send(Channel.SHELL, body(1))
    async with asyncio.timeout(20):
        new, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    assert old != new == b"new"
    for name, n in ((old, 10), (new, 11)):
        await side.sockets[Channel.SHELL].send_multipart([name, *body(n)])
        await events.until(lambda n=n: (Channel.SHELL, body(n)) in events.messages)
    link.drop_former()
    assert link.send(Channel.SHELL, body(2)), "and requests are still sent"


def without_descriptors(monkeypatch, after: int, times: int = 1) -> list[zmq.Socket]:
    """Let the creation of sockets succeed, then fail several times; return the created sockets."""
    made: list[zmq.Socket] = []
    left = times

    def make(*args) -> zmq.Socket:
        nonlocal left
        if len(made) == after and left:
            left -= 1
            raise zmq.ZMQError(errno.EMFILE)
        made.append(sockets.make(*args))
        return made[-1]

    monkeypatch.setattr(module, "make", make)
    return made


async def test_without_descriptors_the_open_sockets_stay_open(side, linked, monkeypatch) -> None:
    link, events = linked
    made = without_descriptors(monkeypatch, after=2, times=2)
    with pytest.raises(KernelError, match="cannot create more sockets"):
        link.renew(b"new", keep=True)
    with pytest.raises(KernelError, match="cannot create more sockets"):
        link.receive_for(b"of the dead")
    assert all(socket.closed for socket in made)
    assert link.send(Channel.SHELL, body(0))
    async with asyncio.timeout(20):
        old, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    await side.sockets[Channel.SHELL].send_multipart([old, *body(1)])
    await events.until(lambda: (Channel.SHELL, body(1)) in events.messages)
    link.renew(b"new", keep=True)
    assert link.send(Channel.SHELL, body(2))
    async with asyncio.timeout(20):
        new, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    assert new == b"new"


async def test_iopub_reconnects_once_there_is_a_descriptor(side, monkeypatch) -> None:
    events = Recorder()
    monkeypatch.setattr(module, "_GONE_SECONDS", 0.01)
    link = PyzmqLink(limited(side, 100_000), events)
    try:
        await events.until(lambda: "connected" in events.news)
        await until_subscribed(side, events)
        without_descriptors(monkeypatch, after=0, times=3)
        large = [DELIMITER, b"sig", b"{}", b"{}", b"{}", b"x" * 200_000]
        await side.sockets[Channel.IOPUB].send_multipart([b"topic", *large])
        await events.until(lambda: events.gone == [Channel.IOPUB])
        await until_subscribed(side, events)
    finally:
        link.close()


async def test_replies_to_an_identity_of_another_process_are_received(side) -> None:
    heir = Recorder()
    link = PyzmqLink(side.endpoints, heir)
    link.receive_for(b"of the dead")
    try:
        async with asyncio.timeout(20):
            while not heir.messages:  # the kernel does not know the name before its handshake
                await side.sockets[Channel.STDIN].send_multipart([b"of the dead", *body(5)])
                await asyncio.sleep(0)
        assert heir.messages[0] == (Channel.STDIN, body(5))
    finally:
        link.close()


async def test_an_accepted_connection_on_stdin_is_no_handshake() -> None:
    """The local end of a tunnel accepts connections before the kernel is reachable."""
    side = Side()
    ports = dict(side.ports)
    mute = socket.create_server(("127.0.0.1", 0))
    mute.setblocking(False)
    ports[Channel.STDIN] = mute.getsockname()[1]
    events = Recorder()
    link = PyzmqLink(Endpoints("tcp", "127.0.0.1", ports, b"key"), events)
    try:
        async with asyncio.timeout(20):
            accepted, _ = await asyncio.get_running_loop().sock_accept(mute)
        await events.until(lambda: "connected" in events.news)
        assert events.stdin == []
        accepted.close()
    finally:
        link.close()
        mute.close()
        side.close()


async def test_a_batch_that_its_owner_fails_on_does_not_stop_the_next(side, linked) -> None:
    _, events = linked
    await until_subscribed(side, events)
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    take, fails = events.on_messages, [True]

    def on_messages(channel, batch) -> None:
        if fails:
            raise RuntimeError(fails.pop())
        take(channel, batch)

    for number in range(1000):  # more than one batch, which has arrived before the first read
        await side.sockets[Channel.IOPUB].send_multipart([b"topic", *body(number)])
    events.on_messages = on_messages
    await events.until(lambda: events.messages and events.messages[-1][1][-1] == body(999)[-1])
    assert len(complaints) == 1


@pytest.fixture
async def encrypted():
    made = Side(curve=zmq.curve_keypair())
    yield made
    made.close()


async def test_an_encrypted_kernel_can_be_used(encrypted) -> None:
    events = Recorder()
    link = PyzmqLink(encrypted.endpoints, events)
    try:
        await events.until(lambda: "connected" in events.news)
        await until_subscribed(encrypted, events)
        for n, channel in enumerate((Channel.SHELL, Channel.CONTROL, Channel.STDIN)):
            assert link.send(channel, body(n))
            async with asyncio.timeout(20):
                ident, *parts = await encrypted.sockets[channel].recv_multipart()
            assert parts == body(n)
            await encrypted.sockets[channel].send_multipart([ident, *body(n + 10)])
            await events.until(lambda c=channel, n=n: (c, body(n + 10)) in events.messages)
    finally:
        link.close()


@pytest.mark.parametrize("curve", [None, "another pair"])
async def test_without_the_keys_an_encrypted_kernel_cannot_be_used(encrypted, curve) -> None:
    pair = curve and zmq.curve_keypair()
    stranger = Endpoints("tcp", "127.0.0.1", encrypted.ports, b"key", curve=pair)
    events, known = Recorder(), Recorder()
    links = [PyzmqLink(stranger, events), PyzmqLink(encrypted.endpoints, known)]
    try:
        links[0].send(Channel.SHELL, body(0))
        await known.until(lambda: "connected" in known.news)
        await until_subscribed(encrypted, known)
        assert links[1].send(Channel.SHELL, body(1))
        async with asyncio.timeout(20):
            _, *parts = await encrypted.sockets[Channel.SHELL].recv_multipart()
        assert parts == body(1), "the first accepted one"
        assert "connected" not in events.news
        assert events.messages == []
    finally:
        for link in links:
            link.close()


async def test_after_close_nothing_is_reported(side) -> None:
    events = Recorder()
    link = PyzmqLink(side.endpoints, events)
    link.close()
    assert not link.send(Channel.SHELL, body(0))
    link.drain()
    assert events.messages == []


def test_endpoints_read_connection_info_and_hide_the_key() -> None:
    info = {"ip": "::1", "transport": "tcp", "key": "secret", "signature_scheme": "hmac-sha1"}
    ports = {f"{c}_port": 1000 + i for i, c in enumerate(Channel)}
    endpoints = Endpoints.from_connection_info(info | ports)
    assert endpoints.url(Channel.SHELL) == "tcp://[::1]:1000"
    assert endpoints.key == b"secret"
    assert "secret" not in repr(endpoints)
    with pytest.raises(ValueError, match="control_port"):
        Endpoints.from_connection_info(info | {k: v for k, v in ports.items() if "con" not in k})
    ipc = Endpoints.from_connection_info(info | ports | {"transport": "ipc", "ip": "/tmp/k"})
    assert ipc.url(Channel.IOPUB) == "ipc:///tmp/k-1001"


async def test_an_invalid_address_raises_an_error_of_kbridge() -> None:
    info = {f"{name}_port": 1 for name in ("shell", "iopub", "stdin", "control")}
    endpoints = Endpoints.from_connection_info({**info, "transport": "bogus"})
    with pytest.raises(KernelError, match="cannot connect to the kernel"):
        PyzmqLink(endpoints, SimpleNamespace())  # type: ignore[arg-type]
