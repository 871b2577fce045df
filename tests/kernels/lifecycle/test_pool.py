import asyncio
import logging
from collections import defaultdict

import pytest

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.pool import Pool

LOUD = 20


class Kernels:
    """Starts numbered kernels, and lets tests kill them."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.discarded: asyncio.Queue[str] = asyncio.Queue()
        self.dead: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.broken = 0
        self.running = 0
        self.most = 0

    async def start(self, name: str) -> str:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        if self.broken:
            self.broken -= 1
            raise KernelStartError("it does not")
        kernel = f"{name}-{sum(k.startswith(name) for k in self.dead)}"
        self.dead[kernel].clear()
        self.started.put_nowait(kernel)
        return kernel

    async def until_dead(self, kernel: str) -> None:
        await self.dead[kernel].wait()

    async def is_alive(self, kernel: str) -> bool:
        return not self.dead[kernel].is_set()

    async def discard(self, kernel: str) -> None:
        self.discarded.put_nowait(kernel)

    async def waiting(self, pool: Pool[str], name: str, count: int) -> None:
        async with asyncio.timeout(LOUD):
            while pool.statistics()[name]["waiting"] < count:
                await self.started.get()
                await asyncio.sleep(0)


@pytest.fixture
def kernels():
    return Kernels()


@pytest.fixture
async def make(kernels):
    pools = []

    def make(**sizes):
        pool = Pool(
            sizes,
            start=kernels.start,
            until_dead=kernels.until_dead,
            is_alive=kernels.is_alive,
            discard=kernels.discard,
            log=logging.getLogger(),
            backoff=0.001,
            backoff_limit=0.002,
        )
        pools.append(pool)
        pool.open()
        return pool

    yield make
    for pool in pools:
        await pool.drain()


async def test_it_fills_up_and_no_further(make, kernels):
    pool = make(py=2, r=1, none=0)
    await kernels.waiting(pool, "py", 2)
    await kernels.waiting(pool, "r", 1)
    assert pool.statistics() == {
        "py": {"size": 2, "waiting": 2, "failures": 0},
        "r": {"size": 1, "waiting": 1, "failures": 0},
    }
    assert len(kernels.dead) == 3
    assert kernels.most <= 2, "one start at a time for each kernelspec"


async def test_the_one_that_waited_longest_is_taken_and_replaced(make, kernels):
    pool = make(py=2)
    await kernels.waiting(pool, "py", 2)
    assert await pool.take("py") == "py-0"
    await kernels.waiting(pool, "py", 2)
    assert await pool.take("py") == "py-1"


async def test_an_empty_or_unknown_shelf_gives_none(make, kernels):
    pool = make(py=1)
    assert await pool.take("py") is None
    assert await pool.take("r") is None


async def test_a_kernel_that_dies_waiting_is_replaced(make, kernels):
    pool = make(py=1)
    await kernels.waiting(pool, "py", 1)
    kernels.dead["py-0"].set()
    async with asyncio.timeout(LOUD):
        assert await kernels.discarded.get() == "py-0"
    await kernels.waiting(pool, "py", 1)
    assert pool.statistics()["py"]["failures"] == 1
    assert await pool.take("py") == "py-1"
    assert pool.statistics()["py"]["failures"] == 0


async def test_a_dead_kernel_is_never_handed_out(make, kernels):
    pool = make(py=2)
    await kernels.waiting(pool, "py", 2)
    kernels.dead["py-0"].set()
    assert await pool.take("py") == "py-1"
    async with asyncio.timeout(LOUD):
        assert await kernels.discarded.get() == "py-0"


async def test_starts_that_fail_are_tried_again(make, kernels, caplog):
    kernels.broken = 3
    pool = make(py=1)
    await kernels.waiting(pool, "py", 1)
    assert caplog.text.count("it does not") == 3
    assert pool.statistics()["py"]["failures"] == 3


async def test_drain_gives_up_what_waits_and_starts_no_more(make, kernels):
    pool = make(py=2)
    await kernels.waiting(pool, "py", 2)
    assert await pool.drain() == ["py-0", "py-1"]
    assert await pool.drain() == []
    assert await pool.take("py") is None
    assert len(kernels.dead) == 2
