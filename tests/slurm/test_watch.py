"""Many kernels ask for the states of their jobs, and Slurm is asked once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kbridge.errors import KernelError
from kbridge.slurm.commands import SlurmCommands
from kbridge.slurm.status import JobStatus
from kbridge.slurm.watch import JobWatch


class Scripted(SlurmCommands):
    """Answers with `states`; counts the questions."""

    def __init__(self, states: dict[int, str]) -> None:
        super().__init__()
        self.states = states
        self.asked: list[list[int]] = []
        self.down = False
        self.answer = asyncio.Event()
        self.answer.set()

    async def statuses(self, job_ids: Sequence[int]) -> dict[int, JobStatus]:
        self.asked.append(list(job_ids))
        await self.answer.wait()
        if self.down:
            raise KernelError("squeue failed: down")
        return {n: JobStatus(n, self.states[n]) for n in job_ids if n in self.states}

    async def past_status(self, job_id: int) -> JobStatus:
        return JobStatus(job_id, "TIMEOUT")


async def test_a_thousand_kernels_cost_one_question() -> None:
    commands = Scripted(dict.fromkeys(range(1000), "RUNNING"))
    watch = JobWatch(commands)
    for number in range(1000):
        watch.add(number)
    found = await asyncio.gather(*(watch.status(number, 60.0) for number in range(1000)))
    assert {job.state for job in found if job is not None} == {"RUNNING"}
    assert len(commands.asked) == 1
    assert len(commands.asked[0]) == 1000
    await asyncio.gather(*(watch.status(number, 60.0) for number in range(1000)))
    assert len(commands.asked) == 1


async def test_questions_after_an_event_are_asked_again() -> None:
    commands = Scripted({1: "PENDING", 2: "PENDING"})
    watch = JobWatch(commands)
    watch.add(1)
    watch.add(2)
    await watch.status(1, 60.0)
    commands.states[1] = "RUNNING"
    job = await watch.status(1, 0)
    assert job is not None
    assert job.state == "RUNNING"


async def test_a_question_on_its_way_is_too_old_for_an_event_that_follows_it() -> None:
    commands = Scripted({1: "RUNNING"})
    watch = JobWatch(commands)
    watch.add(1)
    commands.answer.clear()
    first = asyncio.create_task(watch.status(1, 60.0))
    await asyncio.sleep(0)
    second = asyncio.create_task(watch.status(1, 0))
    third = asyncio.create_task(watch.status(1, 0))
    await asyncio.sleep(0)
    commands.answer.set()
    await asyncio.gather(first, second, third)
    assert len(commands.asked) == 2  # the second and the third share one


async def test_a_slurm_that_does_not_answer_ends_no_kernel() -> None:
    commands = Scripted({1: "RUNNING"})
    watch = JobWatch(commands)
    watch.add(1)
    await watch.status(1, 60.0)
    commands.down = True
    job = await watch.status(1, 0)
    assert job is not None
    assert job.state == "RUNNING"
    assert "down" in watch.error
    commands.down = False
    await watch.status(1, 0)
    assert watch.error == ""


async def test_a_job_that_squeue_does_not_list_is_looked_up_and_not_asked_for_again() -> None:
    commands = Scripted({1: "RUNNING"})
    watch = JobWatch(commands)
    watch.add(1)
    watch.add(2)
    job = await watch.status(2, 0)
    assert job is not None
    assert job.state == "TIMEOUT"
    await watch.status(1, 0)
    assert commands.asked[-1] == [1]


async def test_jobs_that_are_over_are_not_asked_for() -> None:
    commands = Scripted({1: "RUNNING", 2: "RUNNING"})
    watch = JobWatch(commands)
    watch.add(1)
    watch.add(2)
    watch.discard(2)
    await watch.status(1, 0)
    assert commands.asked == [[1]]


async def test_kernels_with_the_same_commands_share_a_watch() -> None:
    assert JobWatch.shared("", 30) is JobWatch.shared("", 30)
    assert JobWatch.shared("", 30) is not JobWatch.shared("/opt/slurm/bin", 30)
