"""The links in memory behave as those on sockets."""

import pytest

from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import ClientLink, KernelEvents, KernelSockets
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.wire.message import Channel

ENDPOINTS = Endpoints("tcp", "127.0.0.1", dict.fromkeys(Channel, 1))


class Recorder:
    """Records the events of a link, in order."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def on_messages(self, channel, batch) -> None:
        self.heard.append((channel, batch))

    def on_drained(self) -> None:
        self.heard.append("drained")

    def on_writable(self, channel) -> None:
        self.heard.append(f"writable {channel}")

    def on_connected(self, channel) -> None:
        self.heard.append(f"connected {channel}")

    def on_gone(self, channel) -> None:
        self.heard.append(f"gone {channel}")

    def on_disconnected(self, channel) -> None:
        self.heard.append(f"disconnected {channel}")


@pytest.fixture
def told() -> Recorder:
    return Recorder()


@pytest.fixture
def kernel(told) -> MemoryKernel:
    events: KernelEvents = told
    return MemoryKernel(ENDPOINTS, events)


def test_a_memory_client_keeps_the_frames_it_was_sent() -> None:
    client = MemoryClient()
    link: ClientLink = client
    assert link.write(b"a")
    assert link.write(b"b")
    assert client.written == b"ab"
    assert client.writes == 2


def test_a_stalled_client_holds_one_write_and_reports_its_completion() -> None:
    client = MemoryClient()
    told: list[bytes] = []
    client.on_writable = lambda: told.append(bytes(client.written))
    client.stalled = True
    assert not client.write(b"a")
    assert client.written == b""
    with pytest.raises(AssertionError, match="while blocked"):
        client.write(b"b")
    client.resume()
    assert told == [b"a"], "reported before the write was done, or twice"
    assert client.write(b"b")


def test_a_closed_client_accepts_no_write_and_keeps_its_first_reason() -> None:
    client = MemoryClient()
    client.close(1001, "first")
    client.close(1011, "second")
    assert client.closed_with == (1001, "first")
    assert not client.write(b"late")
    assert client.written == b""


def test_a_kernel_takes_messages_until_it_is_full_or_closed(kernel, told) -> None:
    link: KernelSockets = kernel
    assert link.send(Channel.SHELL, (b"a", b"b"))
    kernel.full = True
    assert not link.send(Channel.SHELL, [b"c"])
    kernel.make_room()
    assert link.send(Channel.CONTROL, [b"d"])
    link.close()
    link.close()
    assert link.closed
    assert not link.send(Channel.SHELL, [b"e"])
    assert kernel.sent == [(Channel.SHELL, [b"a", b"b"]), (Channel.CONTROL, [b"d"])]
    assert told.heard == ["writable shell", "writable control", "writable stdin"]


def test_messages_sent_together_arrive_in_one_wake_up(kernel, told) -> None:
    kernel.connect()
    kernel.say(Channel.IOPUB, [b"a"], [b"b"])
    kernel.drain()
    kernel.disconnect()
    assert told.heard == [
        "connected stdin",
        "connected iopub",
        (Channel.IOPUB, [[b"a"], [b"b"]]),
        "drained",
        "drained",
        "disconnected stdin",
        "disconnected iopub",
    ]


def test_messages_that_wait_are_delivered_by_a_drain_or_in_slices(kernel, told) -> None:
    for n in (b"1", b"2", b"3", b"4"):
        kernel.arrive(Channel.SHELL, [n])
    slices = kernel.drain_slices()
    next(slices)
    next(slices)
    assert told.heard == [
        (Channel.SHELL, [[b"1"]]),
        "drained",
        (Channel.SHELL, [[b"2"]]),
        "drained",
    ]
    del told.heard[:]
    kernel.drain()
    assert told.heard == [(Channel.SHELL, [[b"3"]]), (Channel.SHELL, [[b"4"]]), "drained"]
    assert list(slices) == []
