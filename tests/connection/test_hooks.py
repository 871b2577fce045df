"""The slow path of a websocket whose connection overrides methods: one message at a time."""

import asyncio
import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.websocket import WebSocketClosedError

from kbridge.connection import hooks
from kbridge.connection.hooks import HookedClient, overridden
from kbridge.hub.settings import HubSettings
from kbridge.link.memory import MemoryClient
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.frames import BINARY, PING, each, ping
from kbridge.wire.message import Channel, Message
from kbridge.wire.v1 import encode_frame
from tests.hub.rig import Rig, texts
from tests.support.waiting import TIMEOUT


def stream(text: str) -> Message:
    return build(Channel.IOPUB, "stream", {"name": "stdout", "text": text}, session="k", date="now")


class Desk:
    """A websocket behind hooks, and a connection that writes each message."""

    def __init__(self) -> None:
        self.link = MemoryClient()
        self.got: list[Message] = []
        self.client = HookedClient(self.link, self.deliver, logging.getLogger("kbridge.hooks"))  # type: ignore[arg-type]
        self.fault: dict[int, Exception] = {}

    def deliver(self, msg: Message) -> None:
        number = len(self.got)
        self.got.append(msg)
        if number in self.fault:
            raise self.fault[number]
        self.link.written += encode_frame(msg)

    def write(self, *messages: Message) -> bool:
        return self.client.write(b"".join(map(encode_frame, messages)))


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_each_message_of_a_batch_is_passed_on_in_order(desk) -> None:
    display = build(
        Channel.IOPUB, "display_data", {}, session="k", date="now", buffers=(b"\x00", b"")
    )
    messages = [stream("one"), display, stream("x" * 70_000)]
    assert desk.write(*messages)
    assert [tuple(m[:5]) for m in desk.got] == [tuple(m[:5]) for m in messages]
    assert [bytes(b) for b in desk.got[1].buffers] == [b"\x00", b""]


def test_an_exception_of_a_hook_loses_one_message_and_is_logged(desk, caplog) -> None:
    desk.fault[1] = RuntimeError("a fault of the subclass")
    assert desk.write(*(stream(str(i)) for i in range(4)))
    assert texts(desk.link) == ["0", "2", "3"]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "a fault of the subclass" in caplog.text
    assert desk.write(stream("4")), "no part of the message may remain"


def test_no_more_messages_are_passed_on_after_the_websocket_closed(desk, caplog) -> None:
    desk.fault[1] = WebSocketClosedError()
    assert not desk.write(*(stream(str(i)) for i in range(4)))
    assert len(desk.got) == 2
    assert caplog.records == []


def test_the_hub_waits_while_written_frames_are_in_transit(desk) -> None:
    told: list[bool] = []
    desk.client.on_writable = lambda: told.append(True)
    desk.link.stalled = True
    assert not desk.write(stream("one"))
    desk.link.resume()
    assert told == [True]
    assert desk.write(stream("two"))


def test_a_hooked_client_is_closed_with_its_websocket(desk) -> None:
    assert not desk.client.closed
    desk.client.close(1001, "the kernel was shut down")
    assert desk.client.closed
    assert desk.link.closed_with == (1001, "the kernel was shut down")
    assert not desk.write(stream("late"))


async def test_a_slow_hook_does_not_delay_others(monkeypatch) -> None:
    monkeypatch.setattr(hooks, "_TURN", -1.0)  # it has ended before the first check
    desk = Desk()
    told = asyncio.Event()
    desk.client.on_writable = told.set
    count = 3 * hooks._LOOK_AFTER
    assert not desk.write(*(stream(str(i)) for i in range(count))), "the hub must wait"
    turns = []
    while not told.is_set():
        turns.append(len(desk.got))
        await asyncio.sleep(0)
    assert turns[0] == hooks._LOOK_AFTER - 1
    assert texts(desk.link) == [str(i) for i in range(count)]
    desk.client.abandon()


async def test_messages_that_wait_are_dropped_with_the_websocket(monkeypatch) -> None:
    monkeypatch.setattr(hooks, "_TURN", -1.0)
    desk = Desk()
    desk.write(*(stream(str(i)) for i in range(3 * hooks._LOOK_AFTER)))
    desk.client.abandon()
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(desk.got) == hooks._LOOK_AFTER - 1


async def test_with_hooks_a_flood_waits_in_the_journal(monkeypatch) -> None:
    """No message is passed on until the last batch is written."""
    monkeypatch.setattr(hooks, "_TURN", math.inf)  # a slow machine would need several turns
    rig, desk = Rig(HubSettings(limit_rate=False)), Desk()
    rig.prove()
    attachment = rig.hub.attach(desk.client, V1, "s", verbatim=True)
    desk.link.stalled = True
    for i in range(100):
        rig.say(rig.stream(str(i)))
    assert len(desk.got) == 1
    assert attachment.blocked
    desk.link.resume()
    assert texts(desk.link) == [str(i) for i in range(100)]
    await rig.hub.aclose()


class Base:
    def one(self) -> None: ...

    def two(self) -> None: ...


class Quiet(Base):
    more = True


class Own(Base):
    def two(self) -> None: ...


@pytest.mark.parametrize(
    ("connection", "names", "expected"),
    [
        (Base(), ("one", "two"), False),
        (Quiet(), ("one", "two"), False),
        (Own(), ("one", "two"), True),
        (Own(), ("one",), False),
        (Own(), (), False),
    ],
)
def test_overridden_methods_are_found(connection: Any, names: Any, expected: bool) -> None:
    assert overridden(connection, Base, names) == expected


def test_a_method_of_the_instance_counts_as_overridden() -> None:
    connection: Any = Base()
    connection.one = SimpleNamespace()
    assert overridden(connection, Base, ("one",))
    assert not overridden(Base(), Base, ("one",))


class Slow(Desk):
    """A connection whose hook is a coroutine, which writes when the test continues it."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = asyncio.Event()

    def deliver(self, msg: Message) -> Any:
        return self.late(msg)

    async def late(self, msg: Message) -> None:
        await self.go_on.wait()
        super().deliver(msg)


async def test_a_hook_that_is_a_coroutine_is_awaited_message_by_message() -> None:
    desk, done = Slow(), asyncio.Event()
    desk.client.on_writable = done.set
    assert not desk.write(stream("one"), stream("two"), stream("three"))
    assert desk.got == []
    desk.go_on.set()
    async with asyncio.timeout(TIMEOUT):
        await done.wait()
    assert texts(desk.link) == ["one", "two", "three"]


async def test_an_exception_of_a_coroutine_loses_one_message(caplog) -> None:
    desk, done = Slow(), asyncio.Event()
    desk.client.on_writable = done.set
    desk.fault[0] = RuntimeError("a fault of the subclass")
    desk.go_on.set()
    assert not desk.write(stream("one"), stream("two"))
    async with asyncio.timeout(TIMEOUT):
        await done.wait()
    assert texts(desk.link) == ["two"]
    assert "a fault of the subclass" in caplog.text


async def test_a_coroutine_ends_with_its_websocket() -> None:
    desk = Slow()
    assert not desk.write(stream("one"))
    task = desk.client._waiting
    assert task is not None
    desk.client.abandon()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert desk.got == []


# -- pings among the messages ---------------------------------------------------------------------


def opcodes(link: MemoryClient) -> list[int]:
    return [opcode for opcode, _ in each(bytes(link.written))]


def test_a_ping_is_written_after_the_frames_of_earlier_messages(desk) -> None:
    assert desk.client.write(encode_frame(stream("one")) + ping(b"17") + encode_frame(stream("2")))
    assert [m.msg_type for m in desk.got] == ["stream", "stream"]
    assert list(each(bytes(desk.link.written)))[1] == (PING, b"17")
    assert opcodes(desk.link) == [BINARY, PING, BINARY]


def test_a_ping_without_messages_is_written(desk) -> None:
    assert desk.client.write(ping(b"17"))
    assert desk.got == []
    assert desk.link.written == ping(b"17")


def test_an_exception_of_a_hook_loses_no_ping(desk) -> None:
    desk.fault[0] = RuntimeError("a fault of the subclass")
    assert desk.client.write(encode_frame(stream("one")) + ping(b"17"))
    assert desk.link.written == ping(b"17")


def test_the_hub_waits_for_a_ping_in_transit(desk) -> None:
    told: list[bool] = []
    desk.client.on_writable = lambda: told.append(True)
    desk.link.stalled = True
    assert not desk.client.write(ping(b"17"))
    assert told == []
    desk.link.resume()
    assert told == [True]
    assert desk.link.written == ping(b"17")


async def test_a_ping_waits_for_the_coroutines_before_it() -> None:
    link, gates = MemoryClient(), [asyncio.Event(), asyncio.Event()]
    done = asyncio.Event()

    async def deliver(msg: Message) -> None:
        gate = gates.pop(0)
        await gate.wait()
        link.written += encode_frame(msg)

    client = HookedClient(link, deliver, logging.getLogger("kbridge.hooks"))  # type: ignore[arg-type]
    client.on_writable = done.set
    first, second = gates
    data = encode_frame(stream("one")) + encode_frame(stream("two")) + ping(b"17")
    assert not client.write(data)
    second.set()
    assert link.written == b"", "nothing overtakes"
    first.set()
    async with asyncio.timeout(TIMEOUT):
        await done.wait()
    assert bytes(link.written) == data
