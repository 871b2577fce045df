"""Output of a kernel while the event loop does something else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kbridge.flow.seam import Seam
from kbridge.link.endpoints import Endpoints
from kbridge.link.holder.client import Holder, is_supported
from kbridge.link.holder.keeper import Keeper
from kbridge.link.zmtp import connection
from kbridge.link.zmtp import late_reader as module
from kbridge.link.zmtp.backlog import Backlog
from kbridge.link.zmtp.late_reader import LateReader, late_reader
from kbridge.link.zmtp.link import ZmtpLink
from kbridge.link.zmtp.receive import ReceiveBuffer
from kbridge.wire.message import Channel
from kbridge.wire.zmtp.encoder import encode
from kbridge.wire.zmtp.peer import Limits, Peer, SocketType
from tests.link.kernel_side import Recorder, body
from tests.link.zmtp.plain_kernel import PlainKernel
from tests.link.zmtp.publisher import Publisher, number
from tests.support.waiting import TIMEOUT, eventually

LOG = logging.getLogger("kbridge.test.late")
ROOT = Path(__file__).parents[3]
COUNT = 30_000  # messages of a kilobyte: more than the buffers of the system hold


class Numbers(Recorder):
    """Records the numbers of messages."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []
        self.batches: list[int] = []
        self.channels: set[Channel] = set()

    def on_connected(self, channel) -> None:
        self.channels.add(channel)
        super().on_connected(channel)

    def on_messages(self, channel, batch) -> None:
        self.batches.append(len(batch))
        self.numbers += [number(parts) for parts in batch]
        self._changed.set()

    async def until_all(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT):
            while len(self.numbers) < count:
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture(params=["tcp", "ipc"])
def publisher(request, tmp_path):
    return Publisher(tmp_path if request.param == "ipc" else None)


@pytest.fixture
def connect():
    links = []

    def make(endpoints: Endpoints, events: Recorder) -> ZmtpLink:
        links.append(ZmtpLink(endpoints, events))
        return links[-1]

    yield make
    for link in links:
        link.close()


async def connected(events: Recorder, publisher: Publisher, times: int = 1) -> None:
    await events.until(lambda: events.news.count("connected") == times)
    publisher.until_subscribed()


async def test_nothing_is_lost_while_the_event_loop_is_blocked(publisher, connect) -> None:
    events = Numbers()
    connect(publisher.endpoints, events)
    await connected(events, publisher)
    publisher.send(COUNT)  # blocks the event loop
    await events.until_all(COUNT)
    assert events.numbers == list(range(COUNT))
    publisher.send(1)
    await events.until_all(COUNT + 1)
    publisher.end()


async def test_nothing_is_lost_while_an_event_takes_long(publisher, connect) -> None:
    events = Numbers()
    take = events.on_messages

    def on_messages(channel, batch) -> None:
        take(channel, batch)
        if len(events.batches) <= 10:
            publisher.send(COUNT // 10)

    events.on_messages = on_messages
    connect(publisher.endpoints, events)
    await connected(events, publisher)
    publisher.send(1)
    await events.until_all(COUNT + 1)
    assert events.numbers == list(range(COUNT + 1))
    publisher.end()


async def test_the_end_of_a_connection_is_found_behind_its_messages(publisher, connect) -> None:
    events = Numbers()
    connect(publisher.endpoints, events)
    await connected(events, publisher)
    publisher.send(COUNT)
    publisher.end()
    assert events.numbers == []
    await events.until(lambda: "disconnected" in events.news)
    assert events.numbers == list(range(COUNT))


async def test_a_drain_delivers_all_that_was_received(tmp_path, connect) -> None:
    publisher = Publisher(tmp_path)  # a unix socket: sent messages have arrived
    events = Numbers()
    link = connect(publisher.endpoints, events)
    await connected(events, publisher)
    publisher.send(COUNT)
    publisher.end()
    link.drain()
    assert events.numbers == list(range(COUNT))
    assert events.news == ["connected"]
    await events.until(lambda: "disconnected" in events.news)


async def test_a_link_may_be_closed_while_the_thread_receives(publisher, connect) -> None:
    """Again and again, so that a new connection has the descriptor of the one before."""
    sent = 0
    for _ in range(10):
        events = Numbers()
        link = connect(publisher.endpoints, events)
        await connected(events, publisher)
        publisher.send(COUNT // 10)
        await events.until_all(1)
        link.close()
        publisher.until_ended()
        count = len(events.numbers)
        assert events.numbers == list(range(sent, sent + count))
        sent += COUNT // 10
    publisher.end()


class Pair:
    """A connection and its backlog, of which an event loop that is always late is the owner."""

    def __init__(self) -> None:
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.loop = asyncio.new_event_loop()
        self.backlog = self.loop.run_until_complete(self._make(near))
        self.far.settimeout(TIMEOUT)

    async def _make(self, near: socket.socket) -> Backlog:
        return Backlog(near, ReceiveBuffer(), self)

    def on_backlog(self) -> None:
        raise AssertionError("the event loop does not run")


@pytest.fixture
def pairs():
    made = [Pair(), Pair()]
    yield made
    for each in made:
        each.backlog.close()
        each.far.close()
        each.loop.close()


def test_one_thread_receives_until_the_last_connection_is_removed(pairs) -> None:
    reader = LateReader()
    before = set(threading.enumerate())
    for each in pairs:
        reader.add(each.backlog)
    [thread] = set(threading.enumerate()) - before
    for each in pairs:
        each.far.sendall(bytes(4 << 20))  # more than the buffers hold
        reader.remove(each.backlog)
        each.backlog.close()
        # The system ends a connection when no thread waits for it any longer. Unread bytes may
        # make that a reset.
        with contextlib.suppress(ConnectionResetError):
            assert each.far.recv(1) == b""
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_connection_is_closed_whose_event_loop_was_closed_before(pairs) -> None:
    reader = LateReader()
    before = set(threading.enumerate())
    for each in pairs:
        reader.add(each.backlog)
    [thread] = set(threading.enumerate()) - before
    for each in pairs:
        each.loop.close()
    pairs[0].far.sendall(b"bytes")
    pairs[1].far.shutdown(socket.SHUT_WR)  # as a kernel that has ended
    for each in pairs:
        with contextlib.suppress(ConnectionResetError):
            assert each.far.recv(1) == b""
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_without_a_thread_the_next_connection_tries_again(pairs, monkeypatch) -> None:
    reader = LateReader()

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        reader.add(pairs[0].backlog)
    reader.add(pairs[1].backlog)
    for each in pairs:
        each.far.sendall(bytes(4 << 20))  # more than the buffers hold
        reader.remove(each.backlog)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_after_an_error_the_next_connection_starts_another_thread(pairs) -> None:
    class Failing(ReceiveBuffer):
        def collect(self, sock: socket.socket, size: int) -> bytes:
            raise MemoryError

    reader = LateReader()
    before = set(threading.enumerate())
    pairs[0].backlog.buffer = Failing()
    reader.add(pairs[0].backlog)
    [thread] = set(threading.enumerate()) - before
    pairs[0].far.sendall(b"bytes")
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    pairs[0].backlog.buffer = ReceiveBuffer()
    reader.add(pairs[1].backlog)
    for each in pairs:
        each.far.sendall(bytes(4 << 20))  # more than the buffers hold
        reader.remove(each.backlog)


async def test_the_event_loop_receives_in_advance_without_the_thread(connect, monkeypatch) -> None:
    """As on a system without `poll`: while the hub is slow, but the event loop is not blocked."""
    monkeypatch.setattr(module, "_SUPPORTED", False)
    kernel = PlainKernel()
    events = Numbers()
    connect(kernel.endpoints, events)
    await kernel.accept_all()
    await events.until(lambda: bool(events.news))
    iopub = kernel.connected[Channel.IOPUB].sock
    size, messages = 0, 0

    def flood() -> None:
        nonlocal size, messages
        data = b"".join(encode([*body(0), b"p" * 900, b"%d" % (messages + n)]) for n in range(500))
        messages += 500
        size += len(data)
        iopub.settimeout(TIMEOUT)
        iopub.sendall(data)  # four times the bytes of a batch
        iopub.setblocking(False)

    take = events.on_messages

    def on_messages(channel, batch) -> None:
        take(channel, batch)
        if messages < COUNT:
            flood()

    events.on_messages = on_messages
    flood()
    await events.until_all(COUNT)
    assert events.numbers == list(range(COUNT))
    assert max(events.batches) < 500
    kernel.close()


async def test_long_messages_behind_a_backlog_are_received_into_their_place(
    connect, monkeypatch
) -> None:
    """Received in advance, each byte would be copied once more, for as long as the kernel sends."""
    monkeypatch.setattr(module, "_SUPPORTED", False)
    backlogs: list[Counting] = []

    class Counting(Backlog):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            self.calls = 0
            backlogs.append(self)

        def collect(self) -> None:
            self.calls += 1
            super().collect()

    monkeypatch.setattr(connection, "Backlog", Counting)
    kernel = PlainKernel()
    events = Numbers()
    connect(kernel.endpoints, events)
    await kernel.accept_all()
    await events.until(lambda: bool(events.news))
    iopub = kernel.connected[Channel.IOPUB].sock
    messages = [encode([*body(0), b"%300000d" % n]) for n in range(6)]

    # While the event loop is blocked, two messages are received in advance.
    early = b"".join(messages[:2])
    at = 0
    while at < len(early):
        with contextlib.suppress(BlockingIOError):
            at += iopub.send(early[at:])
        for each in backlogs:
            each.collect_late()
    eventually(lambda: any(b.collect_late() and b.size == len(early) for b in backlogs), "all")
    [backlog] = [each for each in backlogs if each.size]
    sent = iopub.send(messages[2])
    eventually(lambda: backlog.waiting > len(early), "the next message")

    late = b"".join(messages[2:])[sent:]
    await asyncio.gather(
        asyncio.get_running_loop().sock_sendall(iopub, late), events.until_all(len(messages))
    )
    assert events.numbers == list(range(len(messages)))
    assert backlog.calls == 0
    kernel.close()


@pytest.mark.skipif(not is_supported(), reason="needs Linux")
async def test_nothing_is_lost_while_output_of_an_earlier_bridge_comes_again(tmp_path) -> None:
    publisher = Publisher()
    kernel = PlainKernel()
    endpoints = dataclasses.replace(
        kernel.endpoints,
        ports=kernel.ports | {Channel.IOPUB: publisher.endpoints.ports[Channel.IOPUB]},
    )
    path = tmp_path / "holder"
    keepers = [Keeper(Holder(path, tmp_path, 1 << 30, 600), LOG) for _ in range(2)]

    kept = keepers[0].kernel("one")
    events = Numbers()
    link = ZmtpLink(endpoints, events, kept=kept)
    for channel in (Channel.SHELL, Channel.CONTROL, Channel.STDIN):
        await (await kernel.accept(channel)).shake_hands()
    await connected(events, publisher)
    await events.until(lambda: events.channels == set(Channel))
    publisher.send(10)
    await events.until_all(10)
    kept.note()
    kept.reached(0)  # the first ten are in a journal, the others come again
    publisher.send(1000)
    await events.until_all(1010)
    keepers[0].leave()
    link.close()
    keepers[0].close()

    async with asyncio.timeout(TIMEOUT):
        while not keepers[1].left:
            await keepers[1].take()
    kept = keepers[1].kernel("one")
    kept.seam = Seam([])
    events = Numbers()
    take = events.on_messages

    def on_messages(channel, batch) -> None:
        take(channel, batch)
        if len(events.batches) == 1:
            assert events.news == []  # the connections do not receive for their owner yet
            publisher.send(COUNT)

    events.on_messages = on_messages
    link = ZmtpLink(endpoints, events, kept.identity, kept)
    await events.until_all(1000 + COUNT)
    assert events.numbers == list(range(10, 1010 + COUNT))
    assert events.news == ["connected"]
    link.close()
    keepers[1].drop(kept)
    keepers[1].close()
    eventually(lambda: not path.exists(), "the holder has ended")
    publisher.end()
    kernel.close()


@pytest.mark.skipif(not is_supported(), reason="needs Linux")
def test_a_bridge_that_is_killed_while_it_is_late_loses_nothing(tmp_path) -> None:
    publisher = Publisher(tmp_path)
    path = tmp_path / "holder"
    command = [sys.executable, "-m", "tests.link.zmtp.late_bridge", str(path), str(tmp_path)]
    with subprocess.Popen(
        [*command, publisher.endpoints.ip], cwd=ROOT, stdout=subprocess.PIPE
    ) as bridge:
        assert bridge.stdout is not None
        assert bridge.stdout.readline() == b"connected\n"
        publisher.until_subscribed()
        publisher.send(COUNT // 3)  # as much as the shared buffer holds
        bridge.kill()
    publisher.send(COUNT // 3)  # while no bridge runs
    holder = Holder(path, tmp_path, 1 << 30, 600)
    [held] = [each for each in holder.take() if each.key == "kernel/iopub"]
    assert held.complete
    # The header says that no message is in a journal; the handshake does not come again.
    peer = Peer.resume(SocketType.SUB, b"", Limits(1 << 20, 1 << 20), 1)
    messages = [m for data in held.read() for batch in peer.feed_all(data) for m in batch]
    assert len(messages) > COUNT // 6  # more than the buffers of the system hold
    held.sock.setblocking(True)
    held.sock.settimeout(TIMEOUT)
    while len(messages) < COUNT // 3 * 2:
        messages += [m for batch in peer.feed_all(held.sock.recv(1 << 20)) for m in batch]
    assert list(map(number, messages)) == list(range(COUNT // 3 * 2))
    holder.drop(held.key)
    held.close()
    holder.close()
    eventually(lambda: not path.exists(), "the holder has ended")
    publisher.end()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_may_close_its_connections(pairs) -> None:
    pair, _ = pairs
    late_reader.add(pair.backlog)
    try:
        with pair.backlog.lock:  # as the thread may have it
            child = os.fork()
            if not child:
                signal.alarm(int(TIMEOUT))
                late_reader.remove(pair.backlog)
                pair.backlog.close()
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        pair.far.sendall(bytes(4 << 20))  # the thread of the parent receives
    finally:
        late_reader.remove(pair.backlog)
