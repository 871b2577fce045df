"""Who asked what, and who is owed the answer; without a hub."""

import asyncio
import gc
import json
import logging

import pytest

from kbridge.errors import HubClosed, InvalidMessage
from kbridge.flow.journal import EVERYONE
from kbridge.hub.kernel.requests import Requests
from kbridge.hub.notices import Notices
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from tests.hub.rig import StoppedClock

ALICE, BOB = 1, 2


def request(channel: Channel = Channel.SHELL, code: str = "1") -> Message:
    return build(channel, "execute_request", {"code": code}, session="s", date="now")


def reply(to: Message, msg_type: str = "execute_reply") -> Message:
    return build(
        to.channel, msg_type, {"status": "ok"}, session="k", date="now", parent_header=to.header
    )


class Kernel:
    """Takes requests, unless it is full; knows no message whose code is `odd`."""

    def __init__(self, limit: int = 1 << 20) -> None:
        self.got: list[Message] = []
        self.full = False
        clock = StoppedClock()
        self.requests = Requests(
            limit,
            self._send,
            logging.getLogger("kbridge.hub"),
            notices=Notices(clock),
            clock=clock,
        )

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
    assert kernel.requests.submit(hers, ALICE) is None
    assert kernel.requests.submit(his, BOB) is None
    assert kernel.got == [hers, his]
    assert kernel.requests.audience(reply(his)) == BOB
    assert [kernel.requests.audience(reply(hers)) for _ in range(2)] == [ALICE, ALICE]
    assert kernel.requests.audience(reply(request())) == EVERYONE


async def test_what_waits_goes_in_order_and_control_goes_first(kernel) -> None:
    kernel.full = True
    first, second, interrupt = request(), request(), request(Channel.CONTROL)
    for each in (first, second, interrupt):
        kernel.requests.submit(each, ALICE)
    kernel.full = False
    third = request()
    kernel.requests.submit(third, ALICE)
    assert kernel.got == [], "it must not overtake"
    kernel.requests.flush()
    assert kernel.got == [interrupt, first, second, third]


async def test_a_sender_waits_for_room_and_is_let_go(kernel) -> None:
    kernel = Kernel(limit=10)
    kernel.full = True
    room = kernel.requests.submit(request(), ALICE)
    assert room is not None
    assert not room.done()
    kernel.full = False
    kernel.requests.flush(Channel.SHELL)
    await room
    assert kernel.requests.statistics()["outbox"]["bytes"] == 0


async def test_what_no_kernel_takes_is_its_senders_fault_or_dropped_when_late(
    kernel, caplog
) -> None:
    with pytest.raises(InvalidMessage):
        kernel.requests.submit(request(code="odd"), ALICE)
    kernel.full = True
    good = request()
    kernel.requests.submit(request(code="odd"), ALICE)
    kernel.requests.submit(good, ALICE)
    kernel.full = False
    kernel.requests.flush()
    assert kernel.got == [good]
    assert "no such message" in caplog.text


async def test_our_own_answers_are_ours(kernel) -> None:
    ours = request()
    asked = asyncio.ensure_future(kernel.requests.ask(ours, None))
    await asyncio.sleep(0)
    answer = reply(ours)
    assert kernel.requests.audience(answer) is None
    assert await asked == answer
    assert kernel.requests.audience(answer) is None, "a second answer is nobody else's either"


async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_asked(kernel) -> None:
    with pytest.raises(TimeoutError):
        await kernel.requests.ask(request(), 0)


async def test_forget_leaves_nobody_waiting(kernel) -> None:
    hers = request()
    kernel.requests.submit(hers, ALICE)
    asked = asyncio.ensure_future(kernel.requests.ask(request(), None))
    await asyncio.sleep(0)
    kernel.requests.forget("the kernel died")
    with pytest.raises(HubClosed, match="died"):
        await asked
    assert kernel.requests.audience(reply(hers)) == EVERYONE


async def test_a_request_of_our_own_that_waits_for_room_ends_without_a_complaint() -> None:
    kernel = Kernel(limit=1)
    kernel.full = True
    complaints: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    asked = asyncio.ensure_future(kernel.requests.ask(request(), None))
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
        kernel.requests.submit(request(), ALICE)
