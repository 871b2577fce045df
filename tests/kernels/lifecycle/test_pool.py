import asyncio
import logging
from collections import Counter

import pytest

from kbridge.errors import KernelStartError
from kbridge.kernels.lifecycle.pool import Pool, backoff_delay
from tests.support.waiting import TIMEOUT


class Kernel:
    """A numbered kernel that a test can kill."""

    ended = False

    def __init__(self, name: str, number: int, discarded: asyncio.Queue[str]) -> None:
        self.kernel_name = name
        self.pool_fingerprint = "made so"
        self.label = f"{name}-{number}"
        self.dead = asyncio.Event()
        self._discarded = discarded

    async def wait_exit(self) -> None:
        await self.dead.wait()

    async def is_alive(self) -> bool:
        return not self.dead.is_set()

    async def discard(self, *, keep_log: bool) -> None:
        assert keep_log
        self._discarded.put_nowait(self.label)


class Factory:
    """Starts kernels, and fails as often as `broken` says."""

    def __init__(self) -> None:
        self.started: asyncio.Queue[str] = asyncio.Queue()
        self.discarded: asyncio.Queue[str] = asyncio.Queue()
        self.kernels: dict[str, Kernel] = {}
        self.broken = 0
        self.starting: Counter[str] = Counter()
        self.most_starting = 0

    async def launch_for_pool(self, name: str) -> Kernel:
        self.starting[name] += 1
        self.most_starting = max(self.most_starting, *self.starting.values())
        await asyncio.sleep(0)
        self.starting[name] -= 1
        if self.broken:
            self.broken -= 1
            raise KernelStartError("it does not")
        kernel = Kernel(name, sum(k.startswith(name) for k in self.kernels), self.discarded)
        self.kernels[kernel.label] = kernel
        self.started.put_nowait(kernel.label)
        return kernel

    async def waiting(self, pool: Pool, name: str, count: int) -> None:
        async with asyncio.timeout(TIMEOUT):
            while pool.waiting(name) < count:
                await self.started.get()
                await asyncio.sleep(0)


@pytest.fixture
def factory():
    return Factory()


@pytest.fixture
async def make(factory):
    pools = []

    def make(**sizes):
        pool = Pool(factory, logging.getLogger(), backoff=0.001, backoff_limit=0.002)
        pools.append(pool)
        pool.open({name: (size, "made so") for name, size in sizes.items()})
        return pool

    yield make
    for pool in pools:
        await pool.drain()


async def take(pool, name):
    kernel = await pool.take(name)
    return kernel and kernel.label


async def test_pool_fills_up_to_its_size(make, factory):
    pool = make(py=2, r=1, none=0)
    await factory.waiting(pool, "py", 2)
    await factory.waiting(pool, "r", 1)
    assert [pool.waiting(name) for name in ("py", "r", "none")] == [2, 1, 0]
    assert len(factory.kernels) == 3
    assert factory.most_starting == 1, "one start at a time for each kernelspec"


async def test_take_returns_the_oldest_kernel_and_starts_another(make, factory):
    pool = make(py=2)
    await factory.waiting(pool, "py", 2)
    assert await take(pool, "py") == "py-0"
    await factory.waiting(pool, "py", 2)
    assert await take(pool, "py") == "py-1"


async def test_take_returns_none_if_no_kernel_waits(make):
    pool = make(py=1)
    assert await pool.take("py") is None
    assert await pool.take("r") is None


async def test_a_waiting_kernel_that_dies_is_replaced(make, factory):
    pool = make(py=1)
    await factory.waiting(pool, "py", 1)
    factory.kernels["py-0"].dead.set()
    async with asyncio.timeout(TIMEOUT):
        assert await factory.discarded.get() == "py-0"
    await factory.waiting(pool, "py", 1)
    assert pool.failures("py") == 1
    assert await take(pool, "py") == "py-1"
    assert pool.failures("py") == 0


async def test_a_kernel_that_was_released_is_left_alone(make, factory):
    pool = make(py=2)
    await factory.waiting(pool, "py", 2)
    released = factory.kernels["py-0"]
    released.ended = True
    released.dead.set()
    assert await take(pool, "py") == "py-1"
    await factory.waiting(pool, "py", 2)
    assert factory.discarded.empty()
    assert not pool.failures("py")


async def test_take_never_returns_a_dead_kernel(make, factory):
    pool = make(py=2)
    await factory.waiting(pool, "py", 2)
    factory.kernels["py-0"].dead.set()
    assert await take(pool, "py") == "py-1"
    async with asyncio.timeout(TIMEOUT):
        assert await factory.discarded.get() == "py-0"


async def test_failed_starts_are_repeated(make, factory, caplog):
    factory.broken = 3
    pool = make(py=1)
    await factory.waiting(pool, "py", 1)
    assert caplog.text.count("it does not") == 3
    assert pool.failures("py") == 3


def test_the_delay_after_failures_doubles_up_to_a_limit():
    delays = [backoff_delay(failures, 1.0, 60.0) for failures in range(1, 9)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff_delay(10**9, 1.0, 60.0) == 60.0


async def test_kernels_of_an_earlier_pool_are_kept_if_they_fit(factory):
    pool = Pool(factory, logging.getLogger())
    kernels = [Kernel("py", number, factory.discarded) for number in range(3)]
    kernels[0].pool_fingerprint = "made otherwise"
    for kernel in [*kernels, Kernel("gone", 0, factory.discarded)]:
        pool.readopt(kernel)
    surplus = pool.open({"py": (1, "made so")})
    assert [kernel.label for kernel in surplus] == ["py-0", "py-2", "gone-0"]
    assert await take(pool, "py") == "py-1"
    await pool.drain()


async def test_a_pool_that_never_opened_returns_the_kernels_of_an_earlier_pool(factory):
    pool = Pool(factory, logging.getLogger())
    pool.readopt(Kernel("py", 0, factory.discarded))
    assert [kernel.label for kernel in await pool.drain()] == ["py-0"]
    assert await pool.drain() == []


async def test_drain_returns_the_waiting_kernels_and_ends_the_starts(make, factory):
    pool = make(py=2)
    await factory.waiting(pool, "py", 2)
    assert [kernel.label for kernel in await pool.drain()] == ["py-0", "py-1"]
    assert await pool.drain() == []
    assert await pool.take("py") is None
    assert len(factory.kernels) == 2
