"""The queue of the writing thread: the event loop does its part in short turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kbridge.storage import flush
from kbridge.storage.disk import Disk
from kbridge.storage.flush import Client, FlushQueue, Overseer, Task
from tests.storage.harness import until

LATER = 3600.0


class Nobody(Overseer):
    """An overseer without work."""

    jobs = 0
    waits = False

    def next_task(self) -> None:
        return None

    def failed(self, error: Exception) -> None:
        raise error

    def on_job_done(self) -> None:
        self.jobs += 1


class Job(Task):
    def __init__(self, client: Writer) -> None:
        self.client = client

    def run(self, disk: Disk) -> None:
        self.client.run += 1

    def done(self, error: BaseException | None) -> None:
        assert error is None
        self.client.notes.append(f"{self.client.name} done")
        self.client.on_done()


class Writer(Client):
    """A client that prepares its task in some parts."""

    def __init__(self, name: str, notes: list[str], parts: int = 0) -> None:
        self.name = name
        self.notes = notes
        self.parts = parts
        self.run = 0
        self.errors: list[Exception] = []
        self.breaks = False

    def prepare(self) -> bool:
        if self.breaks:
            raise ValueError(self.name)
        if not self.parts:
            return True
        self.parts -= 1
        self.notes.append(f"{self.name} prepares")
        return False

    def next_task(self) -> Task:
        self.notes.append(f"{self.name} asked")
        return Job(self)

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def on_done(self) -> None:
        """Do nothing; tests replace it."""


class Turns:
    """Counts the notes of each turn of the event loop.

    Attributes
    ----------
    most : int
        The largest number.
    """

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.most = self.seen = 0
        self.next = asyncio.get_running_loop().call_soon(self.turn)

    def turn(self) -> None:
        self.most = max(self.most, len(self.notes) - self.seen)
        self.seen = len(self.notes)
        self.next = asyncio.get_running_loop().call_soon(self.turn)


@pytest.fixture
async def queue() -> AsyncIterator[FlushQueue]:
    made = FlushQueue(Disk(), Nobody())
    yield made
    made.close()


@pytest.fixture(params=["short", "long"])
def turn(request, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(flush, "TURN", 0.0 if request.param == "short" else LATER)
    return request.param


async def test_the_loop_does_other_work_between_the_parts_of_a_job(queue, turn) -> None:
    notes: list[str] = []
    writers = [Writer(name, notes, parts) for name, parts in (("a", 0), ("b", 3), ("c", 1))]
    for writer in writers:
        queue.add(writer, LATER)
    turns = Turns(notes)
    queue.hurry()
    await until(lambda: not queue.has_work)
    turns.next.cancel()
    assert turns.most == (1 if turn == "short" else 7)
    assert notes == [
        *("a asked", "b prepares", "b prepares", "b prepares", "b asked", "c prepares", "c asked"),
        *("a done", "b done", "c done"),
    ]
    assert [writer.run for writer in writers] == [1, 1, 1]


async def test_an_error_of_one_client_harms_no_other(queue, turn) -> None:
    notes: list[str] = []
    writers = [Writer(name, notes) for name in "abc"]
    writers[1].breaks = True
    for writer in writers:
        queue.add(writer)
    await until(lambda: not queue.has_work)
    assert notes == ["a asked", "c asked", "a done", "c done"]
    assert [len(writer.errors) for writer in writers] == [0, 1, 0]


async def test_an_error_of_a_report_or_of_the_overseer_stops_nothing(monkeypatch) -> None:
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
    overseer = Nobody()
    queue = FlushQueue(Disk(), overseer)
    first, second, third = (Writer(name, []) for name in "abc")

    def fail(*_: object) -> None:
        raise RuntimeError

    first.breaks = True
    monkeypatch.setattr(first, "failed", fail)
    queue.add(first)
    queue.add(second)
    await until(lambda: second.run == 1)
    await until(lambda: not queue.has_work)
    assert reported == ["A journal on disk failed, and so did its report"]
    monkeypatch.setattr(overseer, "on_job_done", fail)
    queue.add(second)
    await until(lambda: len(reported) == 2)
    monkeypatch.undo()
    queue.add(third)
    await until(lambda: third.run == 1)
    queue.close()


async def test_clients_that_are_added_while_others_are_asked(queue, monkeypatch) -> None:
    monkeypatch.setattr(flush, "TURN", 0.0)
    notes: list[str] = []
    first, second = Writer("a", notes), Writer("b", notes, parts=5)
    queue.add(first)
    queue.add(second)
    queue.hurry()
    await until(lambda: "b prepares" in notes)
    queue.add(first, LATER)  # it was asked: this is for the next job
    queue.add(second, LATER)  # it will be asked anyway
    queue.hurry()
    await until(lambda: second.run)
    assert (first.run, second.run) == (1, 1)
    await until(lambda: "b done" in notes)
    assert queue.has_work, "the first one waits"
    queue.hurry()
    await until(lambda: not queue.has_work)
    assert (first.run, second.run) == (2, 1)


async def test_a_task_that_is_put_while_clients_are_asked_runs_after_them(
    queue, monkeypatch
) -> None:
    monkeypatch.setattr(flush, "TURN", 0.0)
    notes: list[str] = []
    slow, other = Writer("a", notes, parts=5), Writer("b", notes)
    queue.add(slow)
    queue.hurry()
    await until(lambda: notes)
    queue.put(Job(other))
    await until(lambda: not queue.has_work)
    assert [note for note in notes if "done" in note] == ["a done", "b done"]


async def test_a_task_that_is_put_runs_although_no_client_has_work(queue, monkeypatch) -> None:
    monkeypatch.setattr(flush, "TURN", 0.0)
    notes: list[str] = []
    slow, other = Writer("a", notes, parts=5), Writer("b", notes)
    monkeypatch.setattr(slow, "next_task", lambda: None)
    queue.add(slow)
    queue.hurry()
    await until(lambda: notes)
    queue.put(Job(other))
    await until(lambda: not queue.has_work)
    assert (slow.run, other.run) == (0, 1)


async def test_a_job_that_is_wanted_while_results_are_taken_begins_after_them(queue, turn) -> None:
    notes: list[str] = []
    first, second = Writer("a", notes), Writer("b", notes)

    def again() -> None:
        if first.run == 1:
            queue.add(first, LATER)
            queue.hurry()

    first.on_done = again
    queue.add(first)
    queue.add(second)
    await until(lambda: not queue.has_work)
    assert notes == [
        *("a asked", "b asked", "a done", "b done"),
        *("a asked", "a done"),
    ]


async def test_a_queue_that_is_closed_does_the_tasks_that_it_has(queue, monkeypatch) -> None:
    monkeypatch.setattr(flush, "TURN", 0.0)
    notes: list[str] = []
    writers = [Writer("a", notes), Writer("b", notes, parts=9), Writer("c", notes)]
    for writer in writers:
        queue.add(writer)
    queue.hurry()
    await until(lambda: "b prepares" in notes)
    queue.close()
    await until(lambda: not queue.has_work)
    assert [writer.run for writer in writers] == [1, 0, 0]
    assert notes[-1] == "a done"


async def test_a_queue_that_is_closed_before_it_has_a_task_ends(queue, monkeypatch) -> None:
    monkeypatch.setattr(flush, "TURN", 0.0)
    notes: list[str] = []
    queue.add(Writer("a", notes, parts=9))
    queue.hurry()
    await until(lambda: notes)
    waits = asyncio.ensure_future(queue.job_done())
    await asyncio.sleep(0)
    queue.close()
    await waits
    assert not queue.has_work
