"""Background tasks: their errors are logged, and stopped tasks are awaited."""

import asyncio
import contextlib
import logging
import threading

import pytest

from kbridge.kernels.tasks import in_thread, spawn, stop
from tests.support.waiting import TIMEOUT

LOG = logging.getLogger("kbridge")


async def fail() -> None:
    raise ValueError("no such thing")


async def test_the_error_of_a_task_is_logged_with_its_name(caplog) -> None:
    task = spawn(fail(), LOG)
    await asyncio.wait({task})
    await asyncio.sleep(0)  # for the callback of the task
    assert caplog.messages == ["fail failed"]
    assert caplog.records[0].exc_info[1].args == ("no such thing",)


async def test_a_task_that_ends_or_is_stopped_logs_nothing(caplog) -> None:
    async def succeed() -> None: ...

    running = spawn(asyncio.Event().wait(), LOG)
    done = spawn(succeed(), LOG)
    await asyncio.wait({done})
    await stop(done, None, running)
    assert running.cancelled()
    assert caplog.messages == []


async def test_stop_waits_until_a_task_has_cleaned_up() -> None:
    events = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            events.append("cleaned up")

    task = spawn(work(), LOG)
    await asyncio.sleep(0)
    await stop(task)
    assert events == ["cleaned up"]


async def test_stop_ignores_the_error_of_a_task() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("during the end") from None

    task = spawn(work(), LOG)
    await asyncio.sleep(0)
    await stop(task)
    assert isinstance(task.exception(), ValueError)


async def test_in_thread_returns_the_result_and_raises_the_error() -> None:
    assert await in_thread(lambda *numbers: sum(numbers), 1, 2) == 3
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancelled_caller_waits_for_its_thread(fails: bool) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(TIMEOUT)
        ended.set()
        if fails:
            raise ValueError("nobody reads this")

    caller = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 60)
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await caller
    assert caller.cancelled()
    assert ended.is_set()
