"""Functions that block, in separate threads."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kbridge.client.threads import in_thread
from tests.support.waiting import TIMEOUT


async def test_the_result_is_returned() -> None:
    thread = await in_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon


@pytest.mark.parametrize(
    ("raised", "expected"), [(KeyError("a"), KeyError), (StopIteration(), RuntimeError)]
)
async def test_an_exception_is_raised(raised: Exception, expected: type[Exception]) -> None:
    def fails() -> None:
        raise raised

    with pytest.raises(expected):
        await in_thread(fails)


def test_the_end_of_the_loop_does_not_wait_for_the_thread() -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def blocks() -> None:
        began.set()
        may_end.wait(TIMEOUT)
        ended.set()

    async def leaves() -> None:
        task = asyncio.create_task(in_thread(blocks))
        assert await asyncio.to_thread(began.wait, TIMEOUT)
        task.cancel()

    asyncio.run(leaves())
    assert not ended.is_set()
    may_end.set()
    assert ended.wait(TIMEOUT)
