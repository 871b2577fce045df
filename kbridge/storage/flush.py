"""The queue of work for the writing thread: few jobs, each for all kernels with new frames.

Invariants:

- one job is under way at a time. The clients are asked for their tasks, which then run in the
  thread, in order; at last their results are taken on the event loop, in the same order;
- the event loop asks clients and takes results for about `TURN` at once;
- a job ends with the task that reaches `JOB_SIZE`; the other clients take part in the next one;
- a job begins `FLUSH_DELAY` after the first change or after the end of the previous job, or at once
  if `hurry` is called. If all clients that wait have more time, it begins later.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import Final

from kbridge.storage.disk import Disk
from kbridge.storage.workers import Workers

__all__ = [
    "FLUSH_DELAY",
    "JOB_SIZE",
    "LATE_DELAY",
    "TURN",
    "Client",
    "FlushQueue",
    "Overseer",
    "Task",
]

FLUSH_DELAY: Final = 0.01
"""Seconds; changes of this time are lost if the process is killed, unless others keep them."""

LATE_DELAY: Final = 0.1
"""Seconds, for changes that others keep. A job costs as much as some round trips."""

TURN: Final = 0.0005
"""Seconds of work on the event loop, after which everything else that waits comes first."""

JOB_SIZE: Final = 32 * 1024 * 1024
"""Bytes to write in one job, so that a slow disk ends a job in less time than one that hangs."""


class Task(ABC):
    """Work on the files of one kernel."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        """The bytes to write, about."""
        return 0

    @abstractmethod
    def run(self, disk: Disk) -> None:
        """Do the work, in the thread, and store the result; errors go to `done`."""

    @abstractmethod
    def done(self, error: BaseException | None) -> None:
        """Take the result, on the event loop; `error` is the one that `run` raised."""


class Client(ABC):
    """An object that has work from time to time."""

    __slots__ = ()

    def prepare(self) -> bool:
        """Do a short part of the preparations for `next_task`; return True if none is left."""
        return True

    @abstractmethod
    def next_task(self) -> Task | None:
        """Return the work to do now, if there is some."""

    @abstractmethod
    def failed(self, error: Exception) -> None:
        """Note that `prepare` or `next_task` raised an error, which nobody else reports."""


class Overseer(Client):
    """The client that is asked first, at the beginning of each job."""

    __slots__ = ()

    @property
    @abstractmethod
    def waits(self) -> bool:
        """True if the next job must begin at once, to do the work of this client."""

    @abstractmethod
    def on_job_done(self) -> None:
        """Note that the disk has done a job."""


_ASKING, _RUNNING, _ENDING = range(3)


class _Job:
    """Tasks that run together, with their errors."""

    __slots__ = ("clock", "disk", "errors", "nbytes", "progress", "state", "taken", "tasks")

    def __init__(self, disk: Disk, tasks: list[Task]) -> None:
        self.disk = disk
        self.tasks = tasks
        self.nbytes = 0  # to write for the clients, about
        self.state = _ASKING
        self.errors: list[BaseException | None] = []
        self.taken = 0  # the number of tasks whose results were taken
        self.clock = asyncio.get_running_loop().time
        self.progress = self.clock()  # when the last task ended

    def run(self) -> None:
        for task in self.tasks:
            error = None
            try:
                task.run(self.disk)
            except Exception as raised:  # noqa: BLE001 - one kernel's failure is not another's
                error = raised
            self.errors.append(error)
            self.progress = self.clock()


class FlushQueue:
    """The work that waits, and the job under way.

    Parameters
    ----------
    disk : Disk
    overseer : Overseer
    """

    __slots__ = (
        *("_asked", "_clients", "_closed", "_delay", "_disk", "_due", "_hurried", "_job", "_left"),
        *("_overseer", "_tasks", "_timer", "_waiters", "_worker"),
    )

    def __init__(self, disk: Disk, overseer: Overseer) -> None:
        self._disk = disk
        self._overseer = overseer
        self._worker = Workers(1, "kbridge-journal-writer")
        self._clients: dict[Client, None] = {}  # in order
        self._asked: dict[Client, None] = {}  # for the job under way, the last one first
        self._tasks: list[Task] = []
        self._job: _Job | None = None
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # when the timer ends
        self._delay = LATE_DELAY  # from the end of the job under way to the next one
        self._hurried = False
        self._closed = False
        self._left = False  # the next job begins at the end of the one under way
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def has_work(self) -> bool:
        """True if a client or a task waits, or a job is under way."""
        return bool(self._clients or self._tasks or self._job or self._hurried)

    def age(self) -> float:
        """Return the seconds since the job under way made progress; 0 if there is none."""
        return asyncio.get_running_loop().time() - self._job.progress if self._job else 0.0

    def add(self, client: Client, delay: float = FLUSH_DELAY) -> None:
        """Ask a client for its work, with the next job.

        Parameters
        ----------
        client : Client
        delay : float
            Seconds until then, at most; the client may be added again with another delay.
        """
        if self._closed or client in self._asked:
            return
        self._clients[client] = None
        if self._job is not None:
            self._delay = min(self._delay, delay)
        elif not self._hurried:
            self._wait(delay)

    def _wait(self, delay: float) -> None:
        """Begin the next job after so many seconds, unless it begins earlier."""
        loop = asyncio.get_running_loop()
        due = loop.time() + delay
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = loop.call_later(delay, self._start)

    def put(self, task: Task) -> None:
        """Do a task, with the next job; a closed queue ends it at once."""
        if self._closed:
            task.done(RuntimeError("the queue is closed"))
            return
        self._tasks.append(task)
        self.hurry()

    def hurry(self) -> None:
        """Begin the next job as soon as possible."""
        if self._job is not None:
            self._left = self._left or self._job.state == _ENDING
        elif not self._hurried and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_soon(self._start)
            self._hurried = True

    async def job_done(self) -> None:
        """Wait for the end of the job under way, or of the next one."""
        future = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future

    def close(self) -> None:
        """End the thread after the job under way and the tasks; the clients are not asked."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hurried = False
        self._clients.clear()
        self._asked.clear()
        if self._job is not None and self._job.state == _ASKING:
            self._begin(self._job)
        if self._tasks:  # the disk does not answer: nobody waits for the result
            job = _Job(self._disk, [*self._tasks])
            self._tasks.clear()
            self._worker.submit(job.run, _ignore)
        self._worker.close()

    def _start(self) -> None:
        tasks = [*self._ask(self._overseer), *self._tasks]
        self._tasks.clear()
        self._asked, self._clients = dict(reversed(self._clients.items())), {}
        self._left = False
        # Only now: a client that is added above takes part in this job.
        self._timer = None
        self._hurried = False
        self._job = _Job(self._disk, tasks)
        self._go_on(self._job)

    def _go_on(self, job: _Job) -> None:
        """Ask clients for a turn; run the job after the last one."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + TURN
        while self._asked:
            if job.nbytes >= JOB_SIZE:
                self._clients = dict(reversed(self._asked.items())) | self._clients
                self._asked = {}
                self._left = True
                break
            client, _ = self._asked.popitem()
            for task in self._ask(client):
                job.tasks.append(task)
                job.nbytes += task.nbytes
            if self._asked and loop.time() >= end:
                loop.call_soon(self._go_on, job)
                return
        self._begin(job)

    def _begin(self, job: _Job) -> None:
        """Run the tasks of a job in the thread."""
        if not job.tasks:
            self._end()
            return
        job.state = _RUNNING
        job.progress = job.clock()
        self._worker.submit(job.run, partial(self._done, job))

    def _ask(self, client: Client) -> list[Task]:
        """Return the task of a client; its errors do not harm the other clients.

        A client that has more to prepare is asked again.
        """
        try:
            if not client.prepare():
                self._asked[client] = None
                return []
            task = client.next_task()
        except Exception as error:  # noqa: BLE001 - the client reports it
            try:
                client.failed(error)
            except Exception as other:  # noqa: BLE001 - the other clients go on
                _report("A journal on disk failed, and so did its report", other)
            return []
        return [] if task is None else [task]

    def _done(self, job: _Job, failure: BaseException | None) -> None:
        """Take the results of a job for a turn, and the rest in later ones."""
        job.state = _ENDING
        errors = job.errors or [failure]
        loop = asyncio.get_running_loop()
        end = loop.time() + TURN
        while job.taken < len(job.tasks):
            at = job.taken
            job.taken += 1
            try:
                job.tasks[at].done(errors[at] if at < len(errors) else failure)
            except Exception as error:  # noqa: BLE001 - the other kernels go on
                _report("The result of a write to a journal on disk could not be taken", error)
            if job.taken < len(job.tasks) and loop.time() >= end:
                loop.call_soon(self._done, job, failure)
                return
        try:
            self._overseer.on_job_done()
        finally:  # otherwise nothing would ever be written again
            self._end()

    def _end(self) -> None:
        """End the job under way, and plan the next one."""
        self._job = None
        self.wake()
        if self._closed:
            return
        delay, self._delay = self._delay, LATE_DELAY
        if self._tasks or self._left or self._overseer.waits:
            self.hurry()
        elif self._clients and not self._hurried:
            self._wait(delay)

    def wake(self) -> None:
        """End all calls of `job_done`, although the job under way has not ended."""
        for future in self._waiters:
            if not future.done():
                future.set_result(None)
        self._waiters.clear()


def _report(message: str, error: Exception) -> None:
    context = {"message": message, "exception": error}
    asyncio.get_running_loop().call_exception_handler(context)


def _ignore(error: BaseException | None) -> None:
    """Take no result."""
