"""Kernels of a real Slurm behind servers: REST, websockets, crashes, ends of jobs."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SLEEP, attach
from tests.support.require import require
from tests.support.restartable_server import RestartableServer
from tests.support.server import Server
from tests.support.slurm import Slurm, slurm
from tests.support.slurm_kernels import install
from tests.support.waiting import eventually

pytestmark = [pytest.mark.kernel, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


@pytest.fixture
def server(cluster: Slurm, tmp_path: Path) -> Iterator[RestartableServer]:
    """A server that starts kernels in the cluster; afterwards no job is left."""
    require("ipykernel")
    grace = "--BridgeKernelManager.queue_grace=0.5"
    made = RestartableServer(tmp_path, grace, env={"SLURM_CONF": str(cluster.conf)})
    try:
        yield made
    finally:
        made.kill()
        cluster.cancel_all()


def model_of(server: Server, kernel_id: str) -> dict[str, Any]:
    reply = server.request("GET", f"/api/kernels/{kernel_id}")
    assert reply.status == 200, reply.body
    return dict(reply.json())


def job_of(text: str) -> int:
    found = re.search(r"Slurm job (\d+)", text)
    assert found, text
    return int(found[1])


async def until_model(server: Server, kernel_id: str, **wanted: str) -> dict[str, Any]:
    """Wait until the model has these values, or texts that contain them."""

    def probe() -> dict[str, Any] | None:
        model = model_of(server, kernel_id)
        return model if all(text in str(model.get(n)) for n, text in wanted.items()) else None

    return await asyncio.to_thread(eventually, probe, f"the model has {wanted}")


async def value(server: Server, kernel_id: str, expression: str, dialect: str = "v1") -> str:
    async with attach(server, kernel_id, dialect) as ws:
        return (await ws.execute(f"print({expression})")).text().strip()


async def test_a_kernel_in_the_queue_and_on_its_node_survives_crashes_of_the_server(
    cluster: Slurm, server: RestartableServer
) -> None:
    install(server.home / "data", "plain")
    fillers = [cluster.fill(), cluster.fill()]
    await asyncio.to_thread(server.start)
    kernel_id = await asyncio.to_thread(server.start_kernel, "plain")
    model = await until_model(server, kernel_id, reason="Resources")
    assert model["execution_state"] == "starting"
    job = job_of(model["reason"])
    assert "waits in partition cpu: Resources" in model["reason"]
    async with attach(server, kernel_id) as ws:
        await ws.until(lambda m: "Resources" in m["content"].get("reason", ""))
    assert f"Slurm job {job} waits in partition cpu: Resources" in server.log.read_text()

    server.crash()  # while the job waits
    await asyncio.to_thread(server.start)
    model = await until_model(server, kernel_id, reason="Resources")
    assert job_of(model["reason"]) == job
    async with attach(server, kernel_id) as ws:
        execution = asyncio.create_task(ws.execute("x = 20; print(x + 1)"))
        cluster.run("scancel", *map(str, fillers))
        assert (await execution).text() == "21\n"
    assert cluster.jobs()[job] == "RUNNING"
    assert await value(server, kernel_id, "x", "legacy") == "20"

    server.crash()  # while the kernel runs
    await asyncio.to_thread(server.start)
    for dialect in ("v1", "legacy"):
        assert await value(server, kernel_id, "x", dialect) == "20"
    assert await value(server, kernel_id, "__import__('os').environ['SLURM_JOB_ID']") == str(job)

    async with attach(server, kernel_id) as ws:
        sleeping = await ws.start(SLEEP)
        await ws.until_text("asleep")
        assert (await server.call("POST", f"/api/kernels/{kernel_id}/interrupt")).status == 204
        assert (await ws.finish(sleeping)).reply["ename"] == "KeyboardInterrupt"
    reply = await server.call("POST", f"/api/kernels/{kernel_id}/restart")
    assert reply.status == 200, reply.body
    assert await value(server, kernel_id, "'x' in globals()") == "False"
    assert await value(server, kernel_id, "__import__('os').environ['SLURM_JOB_ID']") == str(job)
    assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
    await asyncio.to_thread(eventually, lambda: job not in cluster.jobs(), "the job has ended")


async def test_a_kernel_that_is_deleted_while_it_waits_leaves_no_job(
    cluster: Slurm, server: RestartableServer
) -> None:
    install(server.home / "data", "plain")
    cluster.fill()
    cluster.fill()
    await asyncio.to_thread(server.start)
    kernel_id = await asyncio.to_thread(server.start_kernel, "plain")
    job = job_of((await until_model(server, kernel_id, reason="Resources"))["reason"])
    assert (await server.call("POST", f"/api/kernels/{kernel_id}/interrupt")).status == 204
    assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
    await asyncio.to_thread(eventually, lambda: job not in cluster.jobs(), "the job has ended")


async def test_the_end_of_a_job_is_shown_with_slurms_reason(
    cluster: Slurm, server: RestartableServer
) -> None:
    """A time limit, a node that fails, preemption, and scancel by somebody else."""
    data = server.home / "data"
    install(data, "short", time=10, nodelist="n1")
    install(data, "lost", nodelist="n2")
    install(data, "cheap", nodelist="n1", cpus=3)
    install(data, "ended", nodelist="n2")
    await asyncio.to_thread(server.start)
    names = ("short", "lost", "cheap", "ended")
    started = await asyncio.gather(*(asyncio.to_thread(server.start_kernel, n) for n in names))
    kernels = dict(zip(names, started, strict=True))
    jobs = {
        name: int(await value(server, kernel_id, "__import__('os').environ['SLURM_JOB_ID']"))
        for name, kernel_id in kernels.items()
    }
    # Slurm counts time limits in minutes, and looks at them every 30 seconds.
    cluster.run("scontrol", "update", f"JobId={jobs['short']}", "TimeLimit=1")
    cluster.run("scontrol", "update", f"JobId={jobs['short']}", "EndTime=now+1")

    async with attach(server, kernels["ended"]) as ws:
        await ws.start("import time; print('begun', flush=True); time.sleep(600)")
        await ws.until_text("begun")
        await asyncio.to_thread(cluster.run, "scancel", str(jobs["ended"]))
        [*_, last] = await ws.until(lambda m: m["content"].get("execution_state") == "dead")
        assert "CANCELLED" in last["content"]["reason"]
    cluster.fill(partition="urgent", node="n1", cpus=3)
    model = await until_model(server, kernels["cheap"], execution_state="dead")
    assert f"job {jobs['cheap']} ended: PREEMPTED (a job with a higher" in model["reason"]

    await asyncio.to_thread(cluster.kill_node, "n2")
    try:
        model = await until_model(server, kernels["lost"], execution_state="dead")
        assert "NODE_FAIL (n2 failed)" in model["reason"]
        model = await until_model(server, kernels["short"], execution_state="dead")
        assert "TIMEOUT (time limit of 1:00 reached)" in model["reason"]
    finally:
        await asyncio.to_thread(cluster.start_node, "n2")
    # A restart submits another job.
    reply = await server.call("POST", f"/api/kernels/{kernels['ended']}/restart")
    assert reply.status == 200, reply.body
    again = await value(server, kernels["ended"], "__import__('os').environ['SLURM_JOB_ID']")
    assert int(again) not in jobs.values()
    for kernel_id in kernels.values():
        assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204


async def test_resources_of_a_request_and_settings_of_the_server(
    cluster: Slurm, server: RestartableServer
) -> None:
    install(server.home / "data", "choice", allow={"time": "1:00:00"})
    config = server.home / "config"
    config.mkdir(exist_ok=True)
    (config / "kbridge_config.json").write_text(
        json.dumps({"SlurmProvisioner": {"job_name": "from-the-config"}})
    )
    await asyncio.to_thread(server.start)
    body = {"name": "choice", "env": {"KERNEL_SLURM_TIME": "30"}}
    reply = await server.call("POST", "/api/kernels", body)
    assert reply.status == 201, reply.body
    kernel_id = reply.json()["id"]
    job = await value(server, kernel_id, "__import__('os').environ['SLURM_JOB_ID']")
    shown = cluster.run("scontrol", "--oneliner", "show", "job", job)
    assert "TimeLimit=00:30:00" in shown
    assert "JobName=from-the-config" in shown
    for name, number in (("TIME", "2:00:00"), ("ACCOUNT", "other")):
        body = {"name": "choice", "env": {f"KERNEL_SLURM_{name}": number}}
        reply = await server.call("POST", "/api/kernels", body)
        assert reply.status == 400, reply.body
        assert f"KERNEL_SLURM_{name}" in reply.json()["message"]
    await server.call("DELETE", f"/api/kernels/{kernel_id}")


async def test_plain_jupyter_server_starts_kernels_as_jobs(cluster: Slurm, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    off = dict.fromkeys(
        ("jupyter_lsp", "jupyterlab", "notebook", "notebook_shim", "kbridge"), False
    )
    (config / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": off}})
    )
    server = Server(
        tmp_path,
        *("--ip=127.0.0.1", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={tmp_path}",
        env={"SLURM_CONF": str(cluster.conf)},
        command=[sys.executable, "-m", "jupyter_server"],
    )
    install(tmp_path / "data", "plain")
    try:
        await asyncio.to_thread(server.start)
        kernel_id = await asyncio.to_thread(server.start_kernel, "plain")
        code = "__import__('os').environ['SLURM_JOB_ID']"
        for dialect in ("v1", "legacy"):
            job = int(await value(server, kernel_id, code, dialect))
        assert cluster.jobs() == {job: "RUNNING"}
        assert (await server.call("POST", f"/api/kernels/{kernel_id}/restart")).status == 200
        assert int(await value(server, kernel_id, code)) == job
        assert (await server.call("DELETE", f"/api/kernels/{kernel_id}")).status == 204
        await asyncio.to_thread(eventually, lambda: cluster.jobs() == {}, "the job has ended")
    finally:
        await asyncio.to_thread(server.end)
        await asyncio.to_thread(cluster.cancel_all)
