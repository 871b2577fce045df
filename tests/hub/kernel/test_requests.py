"""Requests that wait, and the client that each reply belongs to; without a hub."""

import asyncio
import gc

import pytest

from kbridge.errors import HubClosed, InvalidMessage
from kbridge.flow.journal import EVERYONE
from kbridge.hub.kernel.process_link import ProcessLink
from kbridge.hub.kernel.requests import Requests
from kbridge.hub.settings import HubSettings
from kbridge.link.memory import MemoryKernel
from kbridge.wire.build import build
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse
from tests.hub.rig import INFO, KEY, StoppedClock, make_context

ALICE, BOB = 1, 2


def request(channel: Channel = Channel.SHELL) -> Message:
    return build(channel, "execute_request", {"code": "1"}, session="s", date="now")


def odd() -> Message:
    """A request that protocol 4 does not have."""
    return build(Channel.SHELL, "complete_request", {"code": 5}, session="s", date="now")


def reply(to: Message, msg_type: str = "execute_reply") -> Message:
    return build(
        to.channel, msg_type, {"status": "ok"}, session="k", date="now", parent_header=to.header
    )


class Side:
    """The requests to a kernel of protocol 4 in memory, which has a `full` queue or room."""

    def __init__(self, limit: int = 1 << 20) -> None:
        context = make_context(StoppedClock(), HubSettings(request_limit=limit))
        link = ProcessLink("a-kernel", self._make_link, NoEvents(), (), context.log)
        link.open(INFO, context.settings.kernel_message_limit)
        info = {"protocol_version": [4, 1]}
        link.learn_protocol(build(Channel.SHELL, "kernel_info_reply", info, session="k", date=""))
        self.requests = Requests(context, link)

    def _make_link(self, endpoints, events, identity) -> MemoryKernel:
        self.kernel = MemoryKernel(endpoints, events, identity)
        return self.kernel

    @property
    def got(self) -> list[str]:
        """The ids of the messages that the kernel got."""
        return [parse(channel, frames, Signer(KEY)).msg_id for channel, frames in self.kernel.sent]

    def submit(self, msg: Message, client: int = ALICE):
        return self.requests.submit(msg, client, ready=True)

    def ask(self, msg: Message, timeout: float | None = None):
        return self.requests.ask(msg, timeout, ready=True)


class NoEvents:
    """The events of a link that has none to report."""


@pytest.fixture
def side():
    made = Side()
    yield made
    made.requests.close()


def ids(*messages: Message) -> list[str]:
    return [msg.msg_id for msg in messages]


async def test_answers_are_for_who_asked_and_what_nobody_asked_for_is_for_all(side) -> None:
    hers, his = request(), request()
    assert side.submit(hers, ALICE) is None
    assert side.submit(his, BOB) is None
    assert side.got == ids(hers, his)
    assert side.requests.recipient(reply(his)) == BOB
    assert [side.requests.recipient(reply(hers)) for _ in range(2)] == [ALICE, ALICE]
    assert side.requests.recipient(reply(request())) == EVERYONE


async def test_what_waits_goes_in_order_and_control_goes_first(side) -> None:
    side.kernel.full = True
    first, second, interrupt = request(), request(), request(Channel.CONTROL)
    for each in (first, second, interrupt):
        side.submit(each, ALICE)
    side.kernel.full = False
    third = request()
    side.submit(third, ALICE)
    assert side.got == [], "it must not overtake"
    side.requests.flush()
    assert side.got == ids(interrupt, first, second, third)


async def test_a_sender_waits_for_room_and_is_let_go() -> None:
    side = Side(limit=10)
    side.kernel.full = True
    room = side.submit(request(), ALICE)
    assert room is not None
    assert not room.done()
    side.kernel.full = False
    side.requests.flush((Channel.SHELL,))
    await room
    assert side.requests.statistics()["outbox"]["bytes"] == 0


async def test_a_request_that_the_kernel_does_not_have_is_its_senders_fault(side) -> None:
    with pytest.raises(InvalidMessage):
        side.submit(odd(), ALICE)


async def test_a_request_that_waited_and_that_the_kernel_does_not_have_is_dropped(
    side, caplog
) -> None:
    side.kernel.full = True
    first, last = request(), request()
    side.submit(first)
    side.requests.submit(odd(), ALICE, ready=False)
    side.submit(last)
    side.kernel.full = False
    side.requests.flush()
    assert side.got == ids(first, last)
    assert "was dropped" in caplog.text


async def test_our_own_answers_are_ours(side) -> None:
    ours = request()
    asked = asyncio.ensure_future(side.ask(ours, None))
    await asyncio.sleep(0)
    answer = reply(ours)
    assert side.requests.recipient(answer) is None
    assert await asked == answer
    assert side.requests.recipient(answer) is None, "a second answer has the same client"


async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_asked(side) -> None:
    with pytest.raises(TimeoutError):
        await side.ask(request(), 0)


async def test_forget_leaves_nobody_waiting(side) -> None:
    hers = request()
    side.submit(hers, ALICE)
    asked = asyncio.ensure_future(side.ask(request(), None))
    await asyncio.sleep(0)
    side.requests.forget("the kernel died")
    with pytest.raises(HubClosed, match="died"):
        await asked
    assert side.requests.recipient(reply(hers)) == EVERYONE


async def test_a_request_of_our_own_that_waits_for_room_ends_without_a_complaint() -> None:
    side = Side(limit=1)
    side.kernel.full = True
    complaints: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    asked = asyncio.ensure_future(side.ask(request(), None))
    await asyncio.sleep(0)
    side.requests.close()
    side.requests.close()
    with pytest.raises(HubClosed):
        await asked
    del asked
    gc.collect()
    assert complaints == []


async def test_nothing_is_taken_after_close(side) -> None:
    side.kernel.full = True
    side.requests.close()
    with pytest.raises(HubClosed):
        side.submit(request(), ALICE)
