"""The queue of outputs: bounded in bytes."""

from __future__ import annotations

import asyncio

from kbridge.client.queue import BoundedQueue


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
