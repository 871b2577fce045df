"""Work in short turns: no task delays the others, and all make progress."""

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from kbridge.hub.broadcast import turns as module
from kbridge.hub.broadcast.turns import Turns, turns
from tests.support.waiting import TIMEOUT

TURN = 0.001  # seconds


class Work:
    def __init__(self, log: list[str], name: str, pieces: int) -> None:
        self.log, self.name, self.pieces = log, name, pieces

    def step(self) -> bool:
        self.log.append(self.name)
        self.pieces -= 1
        return self.pieces > 0


async def finish(queue: Turns) -> int:
    """Wait until all work is done; return the number of turns of the loop."""
    count = 0
    async with asyncio.timeout(TIMEOUT):
        while len(queue):
            await asyncio.sleep(0)
            count += 1
    return count


async def test_each_has_its_turn_before_one_has_the_next(monkeypatch) -> None:
    log: list[str] = []
    queue = Turns(asyncio.get_running_loop())
    for name, pieces in (("a", 3), ("b", 1), ("c", 2)):
        queue.add(Work(log, name, pieces).step)
    assert log == [], "not at once"
    await finish(queue)
    assert log == ["a", "b", "c", "a", "c", "a"]


async def test_a_turn_ends_when_its_time_is_up(monkeypatch) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    log: list[str] = []
    queue = Turns(asyncio.get_running_loop())
    queue.add(Work(log, "a", 50).step)
    assert await finish(queue) >= 50


class Loop:
    """Records what is scheduled; `run` makes one pass, as the loop of asyncio does."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        self.later: list[tuple[float, Callable[[], object]]] = []

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        self.soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[[], object]) -> None:
        self.later.append((delay, callback))

    def run(self, arrived: Callable[[], object] | None = None) -> None:
        """Make one pass; call `arrived` at its end, as the handler of a socket."""
        ready, self.soon = self.soon, []
        for callback, args in ready:
            callback(*args)
        if arrived is not None:
            arrived()


class Bulk:
    """Work that takes some time on a clock which only this work moves."""

    def __init__(self, seconds: float) -> None:
        self.loop = Loop()
        self.now = 0.0
        self.seconds = seconds
        self.steps = 0
        self.queue = Turns(self.loop, lambda: self.now)  # type: ignore[arg-type]
        self.queue.add(self._step)

    def _step(self) -> bool:
        self.now += self.seconds
        self.steps += 1
        return True

    def turn(self, arrived: Callable[[], object] | None = None) -> int:
        """Make passes until a turn was taken, or no further one is due; return its steps."""
        before = self.steps
        while self.steps == before and self.loop.soon:
            self.loop.run(arrived)
        return self.steps - before


@pytest.mark.parametrize(("share", "steps"), [(0.049, 20), (0.3, 3), (0.6, 1), (1.0, 1), (7.0, 1)])
def test_a_turn_is_not_longer_than_its_time_unless_one_step_is(share, steps) -> None:
    bulk = Bulk(share * TURN)
    assert [bulk.turn() for _ in range(3)] == [steps] * 3
    assert not bulk.loop.later, "no request came, so there is no rest"


def test_the_loop_handles_what_arrived_in_a_turn_before_the_next() -> None:
    bulk = Bulk(TURN)
    bulk.turn()
    handled: list[int] = []
    bulk.turn(lambda: handled.append(bulk.steps))
    assert handled[:2] == [1, 1]
    assert bulk.steps == 2


@pytest.mark.parametrize("share", [0.4, 1.0, 3.0])
def test_a_turn_rests_twice_as_long_as_it_took_if_a_request_came(share) -> None:
    bulk = Bulk(share * TURN)
    bulk.turn()
    took = bulk.now
    bulk.loop.run(bulk.queue.on_request)
    assert bulk.turn() == 0
    [(rest, take)] = bulk.loop.later
    assert rest == pytest.approx(2 * max(took, TURN))
    before = bulk.steps
    take()  # requests that came during the rest do not prolong it
    assert bulk.steps > before
    bulk.turn()
    assert len(bulk.loop.later) == 1, "no request since: no rest"


def test_work_that_is_added_after_a_turn_rests_as_well() -> None:
    bulk = Bulk(TURN)
    queue = Turns(bulk.loop, lambda: bulk.now)  # type: ignore[arg-type]

    def once() -> bool:
        bulk.now += TURN
        return False

    bulk.loop.soon.clear()
    queue.add(once)
    bulk.loop.run()
    assert len(queue) == 0
    queue.on_request()
    assert queue.gives_way
    queue.add(once)
    assert not bulk.loop.soon
    assert [rest for rest, _ in bulk.loop.later] == pytest.approx([2 * TURN])
    bulk.now += 2 * TURN
    assert not queue.gives_way


async def test_an_error_ends_its_own_work_alone() -> None:
    loop = asyncio.get_running_loop()
    errors: list[dict] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    log: list[str] = []
    queue = Turns(loop)

    def fail() -> bool:
        raise ValueError("on purpose")

    queue.add(fail)
    queue.add(Work(log, "b", 2).step)
    await finish(queue)
    assert log == ["b", "b"]
    assert len(errors) == 1


async def test_all_of_a_loop_share_one_queue() -> None:
    assert turns() is turns()


def test_another_loop_has_another_queue() -> None:
    async def get() -> Turns:
        return turns()

    assert asyncio.run(get()) is not asyncio.run(get())


def test_the_queue_of_a_loop_goes_with_it() -> None:
    async def get() -> weakref.ref[asyncio.AbstractEventLoop]:
        log: list[str] = []
        turns().add(Work(log, "a", 3).step)
        await finish(turns())
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(get())
    gc.collect()
    assert loop() is None


@pytest.mark.parametrize("pieces", [1, 100])
async def test_what_is_done_is_not_kept(pieces) -> None:
    queue = Turns(asyncio.get_running_loop())
    queue.add(Work([], "a", pieces).step)
    await finish(queue)
    assert not queue._queue
    assert not queue._scheduled
