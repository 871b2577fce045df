"""Work in short turns: no task delays the others, and all make progress."""

import asyncio
import gc
import weakref

import pytest

from kbridge.hub.broadcast import turns as module
from kbridge.hub.broadcast.turns import Turns, turns
from tests.support.waiting import TIMEOUT


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
