"""Provisioners whose kernels wait in a queue, as plain jupyter_client calls them."""

from __future__ import annotations

import asyncio

import pytest

from kbridge.errors import KernelStartError
from tests.kernels.scripted_queue import ScriptedProvisioner


@pytest.fixture(autouse=True)
def scheduler() -> None:
    ScriptedProvisioner.reset()


async def test_a_launch_submits_and_waits_until_the_kernel_runs() -> None:
    provisioner = ScriptedProvisioner(kernel_id="k")
    launch = asyncio.create_task(provisioner.launch_kernel(["program"], env={}))
    await provisioner.submitted.wait()
    assert provisioner.waiting
    assert await provisioner.poll() is None
    provisioner.run()
    assert (await launch)["ip"] == "127.0.0.1"
    assert not provisioner.waiting


async def test_a_launch_that_is_cancelled_ends_its_job() -> None:
    provisioner = ScriptedProvisioner(kernel_id="k")
    launch = asyncio.create_task(provisioner.launch_kernel(["program"], env={}))
    await provisioner.submitted.wait()
    launch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launch
    assert await provisioner.poll() is not None


async def test_a_job_that_ends_in_the_queue_fails_the_launch_with_its_reason() -> None:
    provisioner = ScriptedProvisioner(kernel_id="k")
    launch = asyncio.create_task(provisioner.launch_kernel(["program"], env={}))
    await provisioner.submitted.wait()
    provisioner.end("job 1 ended: CANCELLED")
    with pytest.raises(KernelStartError, match="job 1 ended: CANCELLED"):
        await launch


async def test_a_server_hears_of_each_change_of_the_reason() -> None:
    provisioner = ScriptedProvisioner(kernel_id="k")
    heard: list[str] = []
    provisioner.on_change = lambda: heard.append(provisioner.queue_text)
    await provisioner.submit(["program"], env={})
    provisioner.wait_because("Priority")
    provisioner.wait_because("Resources")
    assert heard == ["job 1 waits: Priority", "job 1 waits: Resources"]
