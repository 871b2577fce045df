"""Pings on a kernel's hb port, with real sockets on the other side."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zmq

from kbridge.link.endpoints import Endpoints
from kbridge.link.heartbeat import Heartbeat
from tests.support.heartbeat_kernel import HeartbeatKernel

LOUD = 20
# Two hundred milliseconds of silence: long enough for a loaded machine to answer one of many pings.
INTERVAL, MISSES = 0.005, 40


class Listener:
    """A heartbeat that records its events."""

    def __init__(self, where: Endpoints | None, **options: Any) -> None:
        self.where = where
        self.at_work = ""
        self.told: list[str] = []
        self.beats = 0
        self._news = asyncio.Event()
        self.heartbeat = Heartbeat(
            self._ask_where,
            interval=INTERVAL,
            misses=MISSES,
            on_lost=lambda: self._tell("lost"),
            on_found=lambda: self._tell("found"),
            at_work=lambda: self.at_work,
            **options,
        )

    def _ask_where(self) -> Endpoints | None:
        self.beats += 1
        self._news.set()
        return self.where

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self._news.set()

    @property
    def known(self) -> bool:
        return self.heartbeat.monitor.known

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(LOUD):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def after(self, beats: int) -> None:
        until = self.beats + beats
        await self.until(lambda: self.beats >= until)


def endpoints(port: int | str | None, ip: str = "127.0.0.1", **more: Any) -> Endpoints:
    return Endpoints(more.pop("transport", "tcp"), ip, {}, heartbeat=port, **more)


@pytest.fixture
async def beating() -> AsyncIterator[tuple[HeartbeatKernel, Listener]]:
    heart = HeartbeatKernel()
    listener = Listener(endpoints(heart.port))
    await listener.until(lambda: listener.known)
    yield heart, listener
    listener.heartbeat.close()
    listener.heartbeat.close()
    await heart.end()


async def test_a_kernel_that_answers_is_not_reported(beating) -> None:
    heart, listener = beating
    await listener.after(2 * MISSES)
    assert listener.told == []
    assert heart.asked >= 10
    assert not listener.heartbeat.lost
    assert len(heart.connections) == 1, "a connection whose pings are answered is kept"


async def test_a_lost_kernel_and_its_return_are_each_reported_once(beating) -> None:
    heart, listener = beating
    for rounds in (1, 2):
        heart.stop()
        await listener.until(lambda: listener.heartbeat.lost)
        await listener.after(2 * MISSES)
        heart.go_on()
        await listener.until(lambda: not listener.heartbeat.lost)
        await listener.after(2 * MISSES)
        assert listener.told == ["lost", "found"] * rounds


async def test_a_kernel_that_returns_on_the_same_port_is_reported(beating) -> None:
    heart, listener = beating
    port = heart.port
    await heart.end()
    await listener.until(lambda: listener.heartbeat.lost)
    again = HeartbeatKernel(f"tcp://127.0.0.1:{port}")
    try:
        await listener.until(lambda: listener.told == ["lost", "found"])
    finally:
        listener.heartbeat.close()
        await again.end()


async def test_pings_to_a_stopped_kernel_are_bounded(beating) -> None:
    heart, listener = beating
    heart.stop()
    await listener.until(lambda: listener.heartbeat.lost)
    before = heart.asked
    await listener.after(4 * MISSES)
    heart.go_on()
    await listener.until(lambda: not listener.heartbeat.lost)
    await listener.after(5)
    # Answers to pings on closed connections are ignored.
    assert heart.asked - before <= 6 * MISSES
    assert listener.told == ["lost", "found"]
    assert listener.heartbeat.monitor.waiting <= MISSES


async def test_a_dead_port_is_never_reported_as_lost() -> None:
    free = zmq.Context.instance().socket(zmq.DEALER)
    port = free.bind_to_random_port("tcp://127.0.0.1")
    free.close(0)
    listener = Listener(endpoints(port))
    await listener.after(2 * MISSES)
    assert listener.told == []
    listener.heartbeat.close()


@pytest.mark.parametrize(
    "where",
    [endpoints(1, transport="bogus"), endpoints("x", ip="y"), endpoints(1, curve=(b"a", b"b"))],
    ids=["transport", "port", "keys"],
)
async def test_an_invalid_address_is_never_reported_as_lost(where) -> None:
    listener = Listener(where)
    await listener.after(10)
    assert listener.told == []
    listener.heartbeat.close()


async def test_kernels_that_answer_with_a_rep_socket_are_supported(beating) -> None:
    _, listener = beating
    heart = HeartbeatKernel(kind=zmq.REP)
    listener.where = endpoints(heart.port)
    await listener.until(lambda: heart.asked > 3)
    assert listener.told == []
    listener.heartbeat.close()
    await heart.end()


@pytest.mark.parametrize("kind", ["ipv6", "ipc", "curve"])
async def test_heartbeats_work_over_ipv6_ipc_and_curve(kind, tmp_path: Path, monkeypatch) -> None:
    curve = zmq.curve_keypair() if kind == "curve" else None
    if kind == "ipc":
        monkeypatch.chdir(tmp_path)  # paths of sockets must be short
        heart = HeartbeatKernel("ipc://k-5")
        where = endpoints(5, ip="k", transport="ipc")
    elif kind == "ipv6":
        heart = HeartbeatKernel("tcp://[::1]:*")
        where = endpoints(heart.port, ip="::1")
    else:
        heart = HeartbeatKernel(curve=curve)
        where = endpoints(heart.port, curve=curve)
    listener = Listener(where)
    await listener.until(lambda: heart.asked > 2 and listener.known)
    listener.heartbeat.close()
    await heart.end()


async def test_without_the_keys_no_answer_arrives() -> None:
    heart = HeartbeatKernel(curve=zmq.curve_keypair())
    listener = Listener(endpoints(heart.port))
    await listener.after(2 * MISSES)
    assert (heart.asked, listener.known, listener.told) == (0, False, [])
    listener.heartbeat.close()
    await heart.end()


async def test_a_change_of_the_address_resets_the_heartbeat(beating) -> None:
    heart, listener = beating
    heart.stop()
    other = HeartbeatKernel()
    listener.where = endpoints(other.port)
    await listener.until(lambda: other.asked > 2)
    await listener.after(10)
    assert listener.told == []
    listener.heartbeat.close()
    await other.end()


async def test_no_ping_is_sent_without_an_address(beating) -> None:
    heart, listener = beating
    listener.where = None
    await listener.after(2)
    asked = heart.asked
    heart.stop()
    await listener.after(2 * MISSES)
    assert (heart.asked, listener.told, listener.known) == (asked, [], False)


async def test_a_busy_kernel_that_never_answered_while_busy_is_not_lost(beating) -> None:
    heart, listener = beating
    heart.stop()
    listener.at_work = "a cell"
    await listener.after(2 * MISSES)
    assert listener.told == []
    listener.at_work = ""
    await listener.until(lambda: listener.told == ["lost"])


async def test_a_peer_with_more_answers_than_pings_is_disconnected(beating) -> None:
    """After one ping and a thousand answers, at most two answers are read."""
    heart, listener = beating
    heart.answers = 1000
    await listener.until(
        lambda: len(heart.connections) > 3
    )  # each connection is closed and opened again
    heart.answers = 1
    await listener.after(10)
    assert listener.told == []
    assert listener.known


async def test_after_close_no_ping_is_sent_and_nothing_reported(beating) -> None:
    heart, listener = beating
    heart.stop()
    await listener.until(lambda: listener.heartbeat.lost)
    listener.heartbeat.close()
    beats = listener.beats
    heart.go_on()
    other = Listener(endpoints(heart.port))
    await other.until(lambda: other.known)
    assert (listener.beats, listener.told) == (beats, ["lost"])
    other.heartbeat.close()


@pytest.mark.parametrize("when", ["lost", "found"])
async def test_a_callback_may_close_the_heartbeat(beating, when) -> None:
    heart, listener = beating
    heart.stop()
    closed = asyncio.Event()
    close = listener.heartbeat.close
    setattr(listener.heartbeat, f"_on_{when}", lambda: (close(), closed.set()))
    if when == "found":
        await listener.until(lambda: listener.heartbeat.lost)
        heart.go_on()
    async with asyncio.timeout(LOUD):
        await closed.wait()
    beats = listener.beats
    heart.go_on()
    other = Listener(endpoints(heart.port))
    await other.until(lambda: other.known)
    assert listener.beats == beats
    other.heartbeat.close()


def test_endpoints_contain_the_hb_port() -> None:
    ports = {f"{name}_port": 1000 for name in ("shell", "iopub", "stdin", "control")}
    assert Endpoints.from_connection_info(ports).heartbeat is None
    info = json.loads(json.dumps(ports | {"hb_port": 7, "ip": "::1"}))
    found = Endpoints.from_connection_info(info)
    assert found.heartbeat == 7
    assert found.address(7) == "tcp://[::1]:7"
