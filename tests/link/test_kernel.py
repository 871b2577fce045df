"""Both links to a kernel, with sockets of libzmq as the kernel."""

import asyncio
import json
import socket
from itertools import pairwise
from types import SimpleNamespace

import pytest
import zmq

from kbridge.errors import KernelError
from kbridge.link.choice import LinkKind, make_link
from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel
from tests.link.kernel_side import Recorder, Side, body, large, limited, until_subscribed
from tests.support.waiting import TIMEOUT


@pytest.fixture(params=[LinkKind.ZMTP, LinkKind.PYZMQ])
def connect(request):
    """Make a link of each kind in turn, and close it after the test."""
    links = []

    def make(endpoints, events, identity=b""):
        links.append(make_link(request.param)(endpoints, events, identity))
        return links[-1]

    yield make
    for link in links:
        link.close()
        link.close()
        assert link.closed


@pytest.fixture
async def side():
    made = Side()
    yield made
    made.close()


@pytest.fixture
async def linked(side, connect):
    events = Recorder()
    link = connect(side.endpoints, events)
    await events.until(lambda: "connected" in events.news)
    return link, events


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


async def test_a_backlog_is_delivered_in_slices(side, linked) -> None:
    link, events = linked
    await until_subscribed(side, events)
    blocking = zmq.Socket.shadow(side.sockets[Channel.IOPUB].underlying)
    count, padding = 3000, b"p" * 1000
    for n in range(count):
        blocking.send_multipart([b"backlog", *body(n), padding])

    def arrived() -> int:
        return sum(parts[0] == b"backlog" for _, parts in events.messages)

    steps, events.drained = [0], 0
    while steps[-1] < count:  # a thread of libzmq sends them; the event loop has no turn
        steps += [arrived() for _ in link.drain_slices()]
        steps.append(arrived())  # nothing follows the last slice, so it has no step
    assert events.drained > 1, "clients receive them meanwhile"
    assert max(b - a for a, b in pairwise(steps)) <= 400


async def test_a_drain_in_slices_may_be_left(side, linked) -> None:
    link, events = linked
    await until_subscribed(side, events)
    blocking = zmq.Socket.shadow(side.sockets[Channel.IOPUB].underlying)
    for n in range(3000):
        blocking.send_multipart([b"backlog", *body(n), b"p" * 1000])
    for slices in (link.drain_slices(), link.drain_slices()):
        next(slices, None)
        slices.close()
    await events.until(lambda: events.messages and events.messages[-1][1][1:-1] == body(2999))
    numbers = [json.loads(parts[6])["n"] for _, parts in events.messages]
    assert [n for n in numbers if n >= 0] == list(range(3000))


async def test_requests_go_out_and_replies_come_back_on_each_channel(side, linked) -> None:
    link, events = linked
    idents = set()
    for n, channel in enumerate((Channel.SHELL, Channel.CONTROL, Channel.STDIN)):
        assert link.send(channel, body(n))
        async with asyncio.timeout(TIMEOUT):
            ident, *parts = await side.sockets[channel].recv_multipart()
        assert parts == body(n)
        idents.add(ident)
        await side.sockets[channel].send_multipart([ident, *body(n + 10)])
        await events.until(lambda c=channel, n=n: (c, body(n + 10)) in events.messages)
    assert len(idents) == 1, "one identity for all: input requests are addressed to it"


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
    async with asyncio.timeout(TIMEOUT):
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


async def test_a_message_that_is_too_large_makes_the_socket_reconnect(side, connect) -> None:
    """libzmq allocates its size before it can be checked, and does not reconnect."""
    events = Recorder()
    link = connect(limited(side, 100_000), events)
    try:
        await events.until(lambda: "connected" in events.news)
        await until_subscribed(side, events)
        await side.sockets[Channel.IOPUB].send_multipart([b"topic", *large(200_000)])
        await events.until(lambda: events.gone == [Channel.IOPUB])
        await events.until(lambda: events.news == ["connected", "disconnected", "connected"])
        await until_subscribed(side, events)
    finally:
        link.close()


@pytest.mark.parametrize(
    ("channel", "share"), [(Channel.SHELL, 16), (Channel.CONTROL, 16), (Channel.STDIN, 1024)]
)
async def test_a_reply_that_is_too_large_affects_no_other_socket(
    side, connect, channel, share
) -> None:
    events = Recorder()
    limit = 1 << 20
    link = connect(limited(side, limit), events)
    try:
        await events.until(lambda: events.news and events.stdin)
        for size, arrives in ((limit // share - 10, True), (limit // share + 1, False)):
            assert link.send(channel, body(1))
            async with asyncio.timeout(TIMEOUT):
                ident, *_ = await side.sockets[channel].recv_multipart()
            answer = [*body(2), b"x" * size]
            await side.sockets[channel].send_multipart([ident, *answer])
            if arrives:
                await events.until(lambda a=answer: (channel, a) in events.messages)
        await events.until(lambda: events.gone == [channel])
        link.renew(b"another name", keep=True)
        await events.until(lambda: events.stdin[-1:] == ["connected"])
        assert link.send(channel, body(3))
        async with asyncio.timeout(TIMEOUT):
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
    async with asyncio.timeout(TIMEOUT):
        old, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    link.renew(b"new", keep=True)
    assert link.send(Channel.SHELL, body(1))
    async with asyncio.timeout(TIMEOUT):
        new, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    assert old != new == b"new"
    for name, n in ((old, 10), (new, 11)):
        await side.sockets[Channel.SHELL].send_multipart([name, *body(n)])
        await events.until(lambda n=n: (Channel.SHELL, body(n)) in events.messages)
    link.drop_former()
    assert link.send(Channel.SHELL, body(2)), "and requests are still sent"


async def test_replies_to_an_identity_of_another_process_are_received(side, connect) -> None:
    heir = Recorder()
    link = connect(side.endpoints, heir)
    link.receive_for(b"of the dead")
    try:
        async with asyncio.timeout(TIMEOUT):
            while not heir.messages:  # the kernel does not know the name before its handshake
                await side.sockets[Channel.STDIN].send_multipart([b"of the dead", *body(5)])
                await asyncio.sleep(0)
        assert heir.messages[0] == (Channel.STDIN, body(5))
    finally:
        link.close()


async def test_an_accepted_connection_on_stdin_is_no_handshake(connect) -> None:
    """The local end of a tunnel accepts connections before the kernel is reachable."""
    side = Side()
    ports = dict(side.ports)
    mute = socket.create_server(("127.0.0.1", 0))
    mute.setblocking(False)
    ports[Channel.STDIN] = mute.getsockname()[1]
    events = Recorder()
    link = connect(Endpoints("tcp", "127.0.0.1", ports, b"key"), events)
    try:
        async with asyncio.timeout(TIMEOUT):
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

    for number in range(5000):  # more than one batch, which has arrived before the first read
        await side.sockets[Channel.IOPUB].send_multipart([b"topic", *body(number)])
    events.on_messages = on_messages
    await events.until(lambda: events.messages and events.messages[-1][1][-1] == body(4999)[-1])
    assert len(complaints) == 1


async def test_after_close_nothing_is_reported(side, connect) -> None:
    events = Recorder()
    link = connect(side.endpoints, events)
    link.close()
    assert not link.send(Channel.SHELL, body(0))
    link.drain()
    assert events.messages == []


async def test_an_invalid_address_raises_an_error_of_kbridge(connect) -> None:
    info = {f"{name}_port": 1 for name in ("shell", "iopub", "stdin", "control")}
    endpoints = Endpoints.from_connection_info({**info, "transport": "bogus"})
    with pytest.raises(KernelError, match="cannot connect to the kernel"):
        connect(endpoints, SimpleNamespace())  # type: ignore[arg-type]
