"""The link with libzmq: encryption, descriptors and batches. See also tests/link/test_kernel.py."""

import asyncio
import errno
import select

import pytest
import zmq

from kbridge.errors import KernelError
from kbridge.link.endpoints import Endpoints
from kbridge.link.pyzmq import link as module
from kbridge.link.pyzmq import sockets
from kbridge.link.pyzmq.link import PyzmqLink
from kbridge.wire.message import Channel
from tests.link.kernel_side import Recorder, Side, body, large, limited, until_subscribed
from tests.support.waiting import TIMEOUT


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


@pytest.mark.parametrize("first", [Channel.SHELL, Channel.IOPUB])
async def test_a_reply_and_an_idle_that_have_arrived_are_delivered_together(
    side, linked, first
) -> None:
    link, events = linked
    await until_subscribed(side, events)
    assert link.send(Channel.SHELL, body(0))
    async with asyncio.timeout(TIMEOUT):
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
    async with asyncio.timeout(TIMEOUT):
        old, *_ = await side.sockets[Channel.SHELL].recv_multipart()
    await side.sockets[Channel.SHELL].send_multipart([old, *body(1)])
    await events.until(lambda: (Channel.SHELL, body(1)) in events.messages)
    link.renew(b"new", keep=True)
    assert link.send(Channel.SHELL, body(2))
    async with asyncio.timeout(TIMEOUT):
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
        await side.sockets[Channel.IOPUB].send_multipart([b"topic", *large(200_000)])
        await events.until(lambda: events.gone == [Channel.IOPUB])
        await until_subscribed(side, events)
    finally:
        link.close()


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
            async with asyncio.timeout(TIMEOUT):
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
        async with asyncio.timeout(TIMEOUT):
            _, *parts = await encrypted.sockets[Channel.SHELL].recv_multipart()
        assert parts == body(1), "the first accepted one"
        assert "connected" not in events.news
        assert events.messages == []
    finally:
        for link in links:
            link.close()
