"""The queue of outputs: bounded in bytes."""

from __future__ import annotations

import asyncio

from kbridge.client.queue import BoundedQueue, Demand


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_producer_waits_while_the_queue_is_full() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    await queue.put("a", 100)  # one item may be larger than the limit
    producer = asyncio.create_task(queue.put("b", 1))
    await settle()
    assert not producer.done()
    assert await queue.get() == "a"
    await producer
    assert await queue.get() == "b"


async def test_a_consumer_waits_for_an_item() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    consumer = asyncio.create_task(queue.get())
    await settle()
    assert not consumer.done()
    await queue.put("a", 1)
    assert await consumer == "a"


async def test_items_before_the_end_can_be_read() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    await queue.put("a", 1)
    queue.end()
    await queue.put("ignored", 1)
    assert await queue.get() == "a"
    assert await queue.get() is None
    assert await queue.get() is None


async def test_the_end_wakes_a_consumer() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    consumer = asyncio.create_task(queue.get())
    await settle()
    queue.end()
    assert await consumer is None


async def test_discarding_frees_the_producer() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    await queue.put("a", 10)
    producer = asyncio.create_task(queue.put("b", 1))
    await settle()
    queue.discard()
    await producer
    assert await queue.get() is None


async def test_a_cancelled_consumer_loses_nothing() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    consumer = asyncio.create_task(queue.get())
    await settle()
    consumer.cancel()
    await asyncio.wait([consumer])
    await queue.put("a", 1)
    assert await queue.get() == "a"


async def test_a_full_queue_does_not_stop_a_producer_that_others_wait_for() -> None:
    demand = Demand(patience=0.0)
    full: BoundedQueue[str] = BoundedQueue(10, demand)
    other: BoundedQueue[str] = BoundedQueue(10, demand)
    await full.put("a", 10)
    producer = asyncio.create_task(full.put("b", 10))
    await settle()
    assert not producer.done()  # nobody waits for it
    consumer = asyncio.create_task(other.get())
    await producer
    await full.put("c", 10)
    await other.put("d", 1)
    assert await consumer == "d"
    assert [await full.get() for _ in "abc"] == ["a", "b", "c"]


async def test_a_queue_that_exceeded_its_limit_has_it_again() -> None:
    demand = Demand(patience=0.0)
    queue: BoundedQueue[str] = BoundedQueue(10, demand)
    await queue.put("a", 10)
    with demand.wait():
        await queue.put("b", 10)
    producer = asyncio.create_task(queue.put("c", 1))
    await settle()
    assert not producer.done()
    await queue.get()
    await settle()
    assert not producer.done()
    await queue.get()
    await producer


async def test_items_that_are_put_back_come_first() -> None:
    queue: BoundedQueue[str] = BoundedQueue(10)
    await queue.put("c", 1)
    queue.put_back(["a", "b"])
    assert [await queue.get() for _ in "abc"] == ["a", "b", "c"]
