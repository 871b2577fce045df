"""Pings for all websockets: a websocket without an answer is closed one round later."""

import asyncio

import pytest
from tornado.websocket import WebSocketClosedError

from kbridge.link.keepalive import Keepalive
from tests.support.waiting import TIMEOUT


class Peer:
    """A websocket whose peer answers pings, or does not."""

    def __init__(self, *, gone: bool = False) -> None:
        self.gone = gone
        self.blocked = False
        self.pings: list[bytes] = []
        self.closed_with: list[tuple[int | None, str | None]] = []

    def ping(self, data: bytes = b"") -> None:
        if self.gone:
            raise WebSocketClosedError
        self.pings.append(data)

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.closed_with.append((code, reason))


@pytest.fixture
async def keepalive():
    return Keepalive(30.0)


async def test_a_websocket_that_answers_pings_stays_open(keepalive) -> None:
    peer = Peer()
    keepalive.add(peer)
    for beats in range(1, 6):
        keepalive.beat()
        assert len(peer.pings) == beats
        keepalive.heard(peer)
    assert peer.closed_with == []


async def test_a_silent_websocket_is_closed_at_the_next_ping_and_removed(keepalive) -> None:
    silent, lively = Peer(), Peer()
    keepalive.add(silent)
    keepalive.add(lively)
    keepalive.beat()
    assert silent.closed_with == []
    keepalive.heard(lively)
    keepalive.beat()
    assert silent.closed_with == [(1011, "no answer to a ping")]
    keepalive.heard(lively)
    keepalive.beat()
    assert len(silent.closed_with) == 1
    assert len(silent.pings) == 1
    assert len(lively.pings) == 3


async def test_a_websocket_added_between_two_pings_has_a_whole_interval(keepalive) -> None:
    keepalive.beat()
    late = Peer()
    keepalive.add(late)
    keepalive.beat()
    assert late.closed_with == []


async def test_a_closed_websocket_is_removed(keepalive) -> None:
    gone, other = Peer(gone=True), Peer()
    keepalive.add(gone)
    keepalive.add(other)
    keepalive.beat()
    keepalive.heard(other)
    gone.gone = False
    keepalive.beat()
    assert gone.pings == []
    assert gone.closed_with == []
    assert len(other.pings) == 2


async def test_a_removed_websocket_is_not_pinged_and_a_late_pong_does_not_add_it(
    keepalive,
) -> None:
    peer = Peer()
    keepalive.add(peer)
    keepalive.beat()
    keepalive.remove(peer)
    keepalive.remove(peer)
    keepalive.heard(peer)
    keepalive.beat()
    assert len(peer.pings) == 1
    assert peer.closed_with == []


async def test_a_websocket_may_remove_itself_while_it_is_closed(keepalive) -> None:
    """Tornado calls `on_close` from within `close` where the stream is gone."""

    class Leaving(Peer):
        def close(self, code: int | None = None, reason: str | None = None) -> None:
            super().close(code, reason)
            keepalive.remove(self)

    peers = [Leaving() for _ in range(3)]
    for peer in peers:
        keepalive.add(peer)
    keepalive.beat()
    keepalive.beat()
    assert all(len(peer.closed_with) == 1 for peer in peers)


def test_the_timer_runs_while_there_are_websockets_in_one_loop_after_another() -> None:
    keepalive = Keepalive(0.001)

    async def ping(*, stop: bool) -> None:
        peer, pinged = Peer(), asyncio.Event()
        peer.ping = lambda data=b"": pinged.set()  # type: ignore[method-assign]
        keepalive.add(peer)
        async with asyncio.timeout(TIMEOUT):
            await pinged.wait()
        if stop:
            keepalive.stop()
            keepalive.stop()
        keepalive.remove(peer)

    asyncio.run(ping(stop=False))
    asyncio.run(ping(stop=True))
    asyncio.run(ping(stop=False))


@pytest.mark.parametrize("method", ["ping", "close"])
async def test_a_websocket_that_fails_does_not_end_the_pings_of_the_others(
    keepalive, method, monkeypatch, caplog
) -> None:
    def fail(*_: object) -> None:
        raise LookupError("no such websocket")

    peers = [Peer() for _ in range(120)]  # more websockets than are pinged in one turn
    monkeypatch.setattr(peers[0], method, fail)
    for peer in peers:
        keepalive.add(peer)
    for beats in range(1, 4):
        keepalive.beat()
        async with asyncio.timeout(TIMEOUT):
            while len(peers[-1].pings) < beats:  # noqa: ASYNC110  # they tell nobody
                await asyncio.sleep(0)
        for peer in peers[1:]:
            keepalive.heard(peer)
    assert "no such websocket" in caplog.text
    assert {len(peer.pings) for peer in peers[1:]} == {3}


async def test_a_websocket_that_has_not_read_the_data_before_the_ping_stays_open(keepalive) -> None:
    busy = Peer()
    keepalive.add(busy)
    keepalive.beat()
    busy.blocked = True
    for _ in range(5):
        keepalive.beat()
    assert (busy.closed_with, len(busy.pings)) == ([], 1)
    busy.blocked = False
    keepalive.beat()
    assert len(busy.closed_with) == 1, "from then on it must answer"


async def test_many_websockets_are_pinged_in_several_turns(keepalive) -> None:
    peers = [Peer() for _ in range(1_000)]
    for peer in peers:
        keepalive.add(peer)
    keepalive.beat()
    first = sum(len(peer.pings) for peer in peers)
    assert 0 < first <= 100
    keepalive.remove(peers[-1])
    keepalive.beat()  # during the round
    async with asyncio.timeout(TIMEOUT):
        while len(peers[-2].pings) < 1:  # noqa: ASYNC110  # they tell nobody
            await asyncio.sleep(0)
    assert [len(peer.pings) for peer in peers] == [1] * 999 + [0]
    assert not any(peer.closed_with for peer in peers)
