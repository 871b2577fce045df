"""Requests that wait, and the client that each reply belongs to; without a hub."""

import asyncio
import gc
import json

import pytest

from kbridge.errors import HubClosed, InvalidMessage
from kbridge.flow.journal import EVERYONE
from kbridge.hub.kernel.requests import Requests
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message

ALICE, BOB = 1, 2


def request(channel: Channel = Channel.SHELL, code: str = "1") -> Message:
    return build(channel, "execute_request", {"code": code}, session="s", date="now")


def reply(to: Message, msg_type: str = "execute_reply") -> Message:
    return build(
        to.channel, msg_type, {"status": "ok"}, session="k", date="now", parent_header=to.header
    )


class Kernel:
    """Accepts requests unless it is full; refuses messages whose code is `odd`."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.got: list[Message] = []
        self.full = False
        self.requests = Requests(limit)

    def submit(self, msg: Message, client: int):
        return self.requests.submit(msg, client, self._send)

    def ask(self, msg: Message, timeout: float | None):
        return self.requests.ask(msg, timeout, self._send)

    def flush(self, *channels: Channel) -> None:
        self.requests.flush(channels, self._send)

    def _send(self, msg: Message) -> bool:
        if self.full:
            return False
        if json.loads(msg.content)["code"] == "odd":
            raise InvalidMessage("no such message")
        self.got.append(msg)
        return True


@pytest.fixture
def kernel():
    made = Kernel()
    yield made
    made.requests.close()


async def test_answers_are_for_who_asked_and_what_nobody_asked_for_is_for_all(kernel) -> None:
    hers, his = request(), request()
    assert kernel.submit(hers, ALICE) is None
    assert kernel.submit(his, BOB) is None
    assert kernel.got == [hers, his]
    assert kernel.requests.recipient(reply(his)) == BOB
    assert [kernel.requests.recipient(reply(hers)) for _ in range(2)] == [ALICE, ALICE]
    assert kernel.requests.recipient(reply(request())) == EVERYONE


async def test_what_waits_goes_in_order_and_control_goes_first(kernel) -> None:
    kernel.full = True
    first, second, interrupt = request(), request(), request(Channel.CONTROL)
    for each in (first, second, interrupt):
        kernel.submit(each, ALICE)
    kernel.full = False
    third = request()
    kernel.submit(third, ALICE)
    assert kernel.got == [], "it must not overtake"
    kernel.flush()
    assert kernel.got == [interrupt, first, second, third]


async def test_a_sender_waits_for_room_and_is_let_go(kernel) -> None:
    kernel = Kernel(limit=10)
    kernel.full = True
    room = kernel.submit(request(), ALICE)
    assert room is not None
    assert not room.done()
    kernel.full = False
    kernel.flush(Channel.SHELL)
    await room
    assert kernel.requests.statistics()["outbox"]["bytes"] == 0


async def test_a_request_that_the_kernel_does_not_have_is_its_senders_fault(kernel) -> None:
    with pytest.raises(InvalidMessage):
        kernel.submit(request(code="odd"), ALICE)


async def test_our_own_answers_are_ours(kernel) -> None:
    ours = request()
    asked = asyncio.ensure_future(kernel.ask(ours, None))
    await asyncio.sleep(0)
    answer = reply(ours)
    assert kernel.requests.recipient(answer) is None
    assert await asked == answer
    assert kernel.requests.recipient(answer) is None, "a second answer has the same client"


async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_asked(kernel) -> None:
    with pytest.raises(TimeoutError):
        await kernel.ask(request(), 0)


async def test_forget_leaves_nobody_waiting(kernel) -> None:
    hers = request()
    kernel.submit(hers, ALICE)
    asked = asyncio.ensure_future(kernel.ask(request(), None))
    await asyncio.sleep(0)
    kernel.requests.forget("the kernel died")
    with pytest.raises(HubClosed, match="died"):
        await asked
    assert kernel.requests.recipient(reply(hers)) == EVERYONE


async def test_a_request_of_our_own_that_waits_for_room_ends_without_a_complaint() -> None:
    kernel = Kernel(limit=1)
    kernel.full = True
    complaints: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    asked = asyncio.ensure_future(kernel.ask(request(), None))
    await asyncio.sleep(0)
    kernel.requests.close()
    kernel.requests.close()
    with pytest.raises(HubClosed):
        await asked
    del asked
    gc.collect()
    assert complaints == []


async def test_nothing_is_taken_after_close(kernel) -> None:
    kernel.full = True
    kernel.requests.close()
    with pytest.raises(HubClosed):
        kernel.submit(request(), ALICE)
