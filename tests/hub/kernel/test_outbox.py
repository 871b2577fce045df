"""Waiting requests: one queue per channel, and one limit in bytes for all."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kbridge.errors import HubClosed
from kbridge.hub.kernel.outbox import Outbox
from kbridge.wire.message import Channel, Message
from tests.support.waiting import TIMEOUT


def message(size: int, channel: Channel = Channel.SHELL, name: bytes = b"") -> Message:
    return Message(channel, name, b"", b"", b"x" * (size - len(name)))


class Kernel:
    """Accepts messages while it has room."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.got: list[Message] = []

    def read(self, outbox: Outbox, channel: Channel = Channel.SHELL) -> None:
        while len(self.got) < self.room and (msg := outbox.first(channel)) is not None:
            self.got.append(msg)
            outbox.remove_first(channel)


async def test_what_waits_goes_in_order_and_only_on_its_channel() -> None:
    outbox, kernel = Outbox(1000), Kernel()
    shell = [message(10, name=b"%d" % i) for i in range(5)]
    control = message(10, Channel.CONTROL)
    for msg in (*shell[:3], control, *shell[3:]):
        assert outbox.put(msg) is None
    assert outbox.waits(Channel.SHELL)
    assert not outbox.waits(Channel.STDIN)
    kernel.read(outbox, Channel.CONTROL)
    assert kernel.got == [control]
    kernel.read(outbox)
    assert kernel.got[1:] == shell
    assert outbox.statistics() == {
        "bytes": 0,
        "limit": 1000,
        "requests": 0,
        "senders_waiting": 0,
    }


async def test_a_refusal_leaves_the_rest_where_it_is() -> None:
    outbox, kernel = Outbox(1000), Kernel(room=2)
    sent = [message(10, name=b"%d" % i) for i in range(5)]
    for msg in sent:
        outbox.put(msg)
    kernel.read(outbox)
    assert kernel.got == sent[:2]
    assert outbox.nbytes == 30
    kernel.room = 10
    kernel.read(outbox)
    assert kernel.got == sent


async def test_who_goes_beyond_the_limit_waits_until_there_is_room() -> None:
    outbox, kernel = Outbox(100), Kernel(room=0)
    assert outbox.put(message(100)) is None, "a message of exactly the limit is accepted"
    first = outbox.put(message(30))
    second = outbox.put(message(30, Channel.CONTROL))
    assert first is not None
    assert second is not None
    kernel.read(outbox)
    assert not first.done()
    kernel.room = 1
    kernel.read(outbox)
    async with asyncio.timeout(TIMEOUT):
        await first
        await second
    assert outbox.statistics()["senders_waiting"] == 0
    assert outbox.statistics()["requests"] == 2


async def test_buffers_count_as_bytes() -> None:
    outbox = Outbox(100)
    wide = memoryview(b"x" * 96).cast("I")  # its length is in items
    assert outbox.put(message(4)._replace(buffers=(wide,))) is None
    assert outbox.nbytes == 100
    assert outbox.put(message(1)) is not None


async def test_clearing_forgets_all_and_lets_senders_go_on() -> None:
    outbox, kernel = Outbox(10), Kernel()
    waiter = outbox.put(message(20))
    assert waiter is not None
    outbox.clear()
    async with asyncio.timeout(TIMEOUT):
        await waiter
    kernel.read(outbox)
    assert kernel.got == []
    assert outbox.nbytes == 0
    assert outbox.put(message(5)) is None


async def test_closing_tells_who_waits_and_who_comes_and_twice_is_once() -> None:
    outbox = Outbox(10)
    waiter = outbox.put(message(20))
    assert waiter is not None
    outbox.close()
    outbox.close()
    with pytest.raises(HubClosed):
        await waiter
    with pytest.raises(HubClosed):
        outbox.put(message(1))


async def test_a_sender_that_has_gone_harms_nobody() -> None:
    outbox, kernel = Outbox(10), Kernel()
    gone, stays = outbox.put(message(20)), outbox.put(message(20))
    assert gone is not None
    assert stays is not None
    gone.cancel()
    kernel.read(outbox)
    async with asyncio.timeout(TIMEOUT):
        await stays
    outbox.put(message(20))
    outbox.close()


CHANNELS = st.sampled_from([Channel.SHELL, Channel.CONTROL, Channel.STDIN])


@given(
    st.lists(st.one_of(st.tuples(CHANNELS, st.integers(0, 50)), st.integers(0, 4)), max_size=60),
    st.integers(0, 120),
)
def test_against_a_model_nothing_is_lost_or_overtaken(steps, limit) -> None:
    async def run() -> None:
        outbox, kernel = Outbox(limit), Kernel(room=0)
        put: list[Message] = []
        for i, step in enumerate(steps):
            if isinstance(step, int):
                kernel.room += step
                for channel in Channel:
                    kernel.read(outbox, channel)
            else:
                name = b"%03d" % i
                put.append(message(step[1] + 3, step[0], name))
                waiter = outbox.put(put[-1])
                waiting = sum(m.nbytes for m in put) - sum(m.nbytes for m in kernel.got)
                assert (waiter is not None) == (waiting > limit)
            assert outbox.nbytes == sum(m.nbytes for m in put) - sum(m.nbytes for m in kernel.got)
        kernel.room = 1 << 30
        for channel in Channel:
            kernel.read(outbox, channel)
            assert [m for m in kernel.got if m.channel is channel] == [
                m for m in put if m.channel is channel
            ]
        assert outbox.statistics()["senders_waiting"] == 0

    asyncio.run(run())


async def test_requests_of_one_type_can_be_taken_out() -> None:
    def request(msg_type: str, channel: Channel = Channel.SHELL) -> Message:
        return Message(channel, b'{"msg_type": "%s"}' % msg_type.encode(), b"", b"", b"x" * 30)

    outbox, kernel = Outbox(150), Kernel()
    kept = [request("complete_request"), request("execute_request", Channel.CONTROL)]
    taken = [request("execute_request"), request("execute_request")]
    for msg in (taken[0], *kept):
        outbox.put(msg)
    waiter = outbox.put(taken[1])
    assert waiter is not None
    assert outbox.take(Channel.SHELL, "execute_request") == taken
    assert outbox.nbytes == sum(msg.nbytes for msg in kept)
    await asyncio.wait_for(waiter, TIMEOUT)
    assert outbox.take(Channel.SHELL, "execute_request") == []
    kernel.read(outbox)
    kernel.read(outbox, Channel.CONTROL)
    assert kernel.got == kept
