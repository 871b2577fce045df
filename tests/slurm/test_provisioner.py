"""Kernels as jobs of a real Slurm, under plain jupyter_client."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from jupyter_client.manager import AsyncKernelManager

from kbridge.errors import InvalidRequest, KernelStartError, SetupError
from kbridge.kernels.lifecycle.queued import JobEnd
from kbridge.slurm import SlurmProvisioner, endings
from kbridge.slurm.job import PORTS
from tests.support.certificate import self_signed
from tests.support.require import require
from tests.support.slurm import Slurm, slurm
from tests.support.slurm_kernels import connected, install, job_of, managed, run
from tests.support.waiting import eventually, until

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

SECRET = "a-secret-of-a-user"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


@pytest.fixture
def specs(cluster: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for kernelspecs; afterwards no job is left."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    yield tmp_path
    eventually(lambda: cluster.jobs() == {}, "no job is left")


def provisioner_of(manager: AsyncKernelManager) -> SlurmProvisioner:
    assert isinstance(manager.provisioner, SlurmProvisioner)
    return manager.provisioner


def listeners(ports: set[int]) -> set[str]:
    """Return the local addresses (hexadecimal, as Linux shows them) that listen on ports."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        address, port = line.split()[1].split(":")
        if line.split()[3] == "0A" and int(port, 16) in ports:
            found.add(address)
    return found


async def test_a_kernel_runs_with_its_resources_on_the_address_of_its_node_only(
    cluster: Slurm, specs: Path
) -> None:
    resources = {"partition": "cpu", "time": "1:30:00", "memory": "500M", "cpus": 2}
    install(
        specs,
        "big",
        **resources,
        gpus="a100:1",
        account="physics",
        nodelist="n2",
        kernel_address="node",
        prologue="export FROM_PROLOGUE=yes",
    )
    async with managed("big", specs, cwd=str(specs)) as manager, connected(manager) as client:
        shown = json.loads(
            await run(
                client,
                "import os, json; print(json.dumps(dict(os.environ, CWD=os.getcwd())))",
            )
        )
        assert shown["SLURM_JOB_ID"] == str(job_of(manager))
        assert shown["SLURM_CPUS_PER_TASK"] == "2"
        assert shown["SLURM_JOB_GPUS"] == "0"
        assert (shown["FROM_PROLOGUE"], shown["CWD"]) == ("yes", str(specs))
        job = cluster.run("scontrol", "--oneliner", "show", "job", shown["SLURM_JOB_ID"])
        for part in ("Account=physics", "TimeLimit=01:30:00", "mem=500M", "BatchHost=n2"):
            assert part in job
        info = manager.get_connection_info()
        assert info["ip"] == "127.0.0.1"
        assert info["curve_publickey"], "the traffic is not encrypted"
        assert listeners({info[name] for name in PORTS}) == {"0100007F"}


async def test_slurm_sees_neither_the_keys_nor_the_command_nor_the_variables(
    cluster: Slurm, specs: Path
) -> None:
    install(specs, "plain", env={"OF_THE_SPEC": "spec-value"})
    env = {"PATH": "/usr/bin:/bin", "KERNEL_SECRET": SECRET}
    async with managed("plain", specs, env=env) as manager, connected(manager) as client:
        code = "import os; print(os.environ['KERNEL_SECRET'], os.environ['OF_THE_SPEC'])"
        assert await run(client, code) == f"{SECRET} spec-value"
        job = str(job_of(manager))
        script = cluster.run("scontrol", "write", "batch_script", job, "-")
        shown = cluster.run("scontrol", "--oneliner", "show", "job", job)
        info = manager.get_connection_info()
        command_lines = await asyncio.to_thread(subprocess.check_output, ["ps", "-eo", "args"])
        assert b"ipykernel_launcher" in command_lines
        for text in (script, shown, command_lines.decode()):
            for secret in (SECRET, info["key"].decode(), info["curve_secretkey"], "spec-value"):
                assert secret not in text
        assert "ipykernel_launcher" not in script


async def test_interrupt_and_restarts_within_one_job(cluster: Slurm, specs: Path) -> None:
    install(specs, "plain")
    async with managed("plain", specs) as manager:
        job = job_of(manager)
        async with connected(manager) as client:
            client.execute("print('begun', flush=True)\nimport time; time.sleep(600)")
            while (await client.get_iopub_msg(timeout=60))["msg_type"] != "stream":
                pass
            await manager.interrupt_kernel()
            reply = await client.get_shell_msg(timeout=60)
            assert reply["content"]["ename"] == "KeyboardInterrupt"
        key = manager.session.key
        for now in (False, True):
            await manager.restart_kernel(now=now)
            assert job_of(manager) == job
            assert manager.session.key == key
            async with connected(manager) as client:
                assert await run(client, "print(1 + 1)") == "2"
        await manager.signal_kernel(signal.SIGKILL)  # as a crash
        await until_ended(manager)
        assert provisioner_of(manager).end_kind is JobEnd.CRASH
        assert "exit code 137" in provisioner_of(manager).end_text
        await manager.restart_kernel(now=True)
        assert job_of(manager) == job
        assert cluster.jobs() == {job: "RUNNING"}
        await manager.shutdown_kernel()


async def test_kernels_side_by_side_start_again_as_new_jobs(cluster: Slurm, specs: Path) -> None:
    """They share a socket, on a port that the first one has found free."""
    install(specs, "plain", restart_grace=0)
    async with managed("plain", specs) as one, managed("plain", specs) as two:
        first = job_of(two)
        await two.restart_kernel(now=True)
        assert job_of(two) != first
        async with connected(two) as client:
            assert await run(client, "print(1 + 1)") == "2"
        assert await one.is_alive()


async def test_a_kernel_that_ends_while_another_is_submitted(
    cluster: Slurm, specs: Path, tmp_path: Path
) -> None:
    """The socket stays open for the job that sbatch is about to make."""
    slow = tmp_path / "bin"
    slow.mkdir()
    for name in ("squeue", "scancel", "scontrol"):
        (slow / name).symlink_to(require(name))
    (slow / "sbatch").write_text(
        f"#!/bin/sh\nif [ -e {tmp_path}/slow ]; then touch {tmp_path}/begun;"
        f' while [ -e {tmp_path}/slow ]; do sleep 0.1; done; fi\nexec {require("sbatch")} "$@"\n'
    )
    (slow / "sbatch").chmod(0o755)
    install(specs, "plain", commands_dir=str(slow))
    one = AsyncKernelManager(kernel_name="plain")
    await one.start_kernel()
    (tmp_path / "slow").touch()
    two = AsyncKernelManager(kernel_name="plain")
    start = asyncio.create_task(two.start_kernel())
    await until((tmp_path / "begun").exists, "sbatch runs")
    await one.shutdown_kernel(now=True)
    (tmp_path / "slow").unlink()
    await start
    assert await two.is_alive()
    await two.shutdown_kernel(now=True)


async def test_a_kernel_is_ended_although_slurm_does_not_answer(
    cluster: Slurm, specs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "_INTERVAL", 0.5)
    install(specs, "plain", command_timeout=2)
    manager = AsyncKernelManager(kernel_name="plain")
    await manager.start_kernel()
    with cluster.silent_controller():
        await manager.shutdown_kernel()
        assert not await manager.is_alive()
    await until(lambda: "RUNNING" not in cluster.jobs().values(), "the job has ended")


async def until_ended(manager: AsyncKernelManager) -> None:
    while await manager.is_alive():  # noqa: ASYNC110 - the provisioner has no event
        await asyncio.sleep(0.05)


async def test_a_kernel_waits_for_its_turn_and_says_why(cluster: Slurm, specs: Path) -> None:
    fillers = [cluster.fill(), cluster.fill()]
    install(specs, "plain")
    manager = AsyncKernelManager(kernel_name="plain")
    start = asyncio.create_task(manager.start_kernel())
    try:
        await until(lambda: manager.provisioner, "there is a provisioner")
        provisioner = provisioner_of(manager)
        changes: list[str] = []
        provisioner.on_change = lambda: changes.append(provisioner.queue_text)
        await until(lambda: "Resources" in provisioner.queue_text, "the reason is shown")
        assert provisioner.queue_text.startswith(
            f"Slurm job {job_of(manager)} waits in partition cpu"
        )
        assert provisioner.waiting
        assert await provisioner.poll() is None
        await provisioner.send_signal(signal.SIGINT)
        cluster.run("scancel", str(fillers[0]))
        await start
        assert not provisioner.waiting
        assert provisioner.queue_text == ""
        assert any("the kernel starts" in text for text in changes)
        assert await manager.is_alive()
    finally:
        cluster.run("scancel", *map(str, fillers))
        await manager.shutdown_kernel(now=True)


async def test_a_job_that_is_cancelled_while_it_waits(cluster: Slurm, specs: Path) -> None:
    fillers = [cluster.fill(), cluster.fill()]
    install(specs, "plain")
    manager = AsyncKernelManager(kernel_name="plain")
    start = asyncio.create_task(manager.start_kernel())
    try:
        await until(lambda: manager.provisioner, "there is a provisioner")
        provisioner = provisioner_of(manager)
        await until(lambda: "waits" in provisioner.queue_text, "the job waits")
        cluster.run("scancel", str(job_of(manager)))
        with pytest.raises(KernelStartError, match="CANCELLED"):
            await start
        assert provisioner.end_kind is JobEnd.CANCELLED
        assert not provisioner.waiting
    finally:
        cluster.run("scancel", *map(str, fillers))


async def test_a_start_that_is_given_up_ends_the_job(cluster: Slurm, specs: Path) -> None:
    fillers = [cluster.fill(), cluster.fill()]
    install(specs, "plain")
    manager = AsyncKernelManager(kernel_name="plain")
    start = asyncio.create_task(manager.start_kernel())
    try:
        await until(lambda: manager.provisioner, "there is a provisioner")
        provisioner = provisioner_of(manager)
        await until(lambda: "waits" in provisioner.queue_text, "the job waits")
        job = job_of(manager)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        await until(lambda: job not in cluster.jobs(), "the job was ended")
    finally:
        cluster.run("scancel", *map(str, fillers))


async def test_slurms_reasons_for_the_end_of_a_kernel(cluster: Slurm, specs: Path) -> None:
    """Preemption, and scancel by somebody else; integration/test_slurm.py has the slow ones."""
    install(specs, "cheap", nodelist="n1", cpus=3)
    install(specs, "ended", nodelist="n2")
    managers = {name: AsyncKernelManager(kernel_name=name) for name in ("cheap", "ended")}
    await asyncio.gather(*(manager.start_kernel() for manager in managers.values()))
    cluster.run("scancel", str(job_of(managers["ended"])))
    urgent = cluster.fill(partition="urgent", node="n1", cpus=3)
    await asyncio.gather(*(until_ended(manager) for manager in managers.values()))
    cluster.run("scancel", str(urgent))
    provisioners = {name: provisioner_of(manager) for name, manager in managers.items()}
    kinds = {name: one.end_kind for name, one in provisioners.items()}
    assert kinds == {"cheap": JobEnd.PREEMPTION, "ended": JobEnd.CANCELLED}
    assert "PREEMPTED (a job with a higher priority" in provisioners["cheap"].end_text
    assert "CANCELLED" in provisioners["ended"].end_text
    # jupyter_client's restarter would submit the same job again and again.
    with pytest.raises(KernelStartError, match="PREEMPTED"):
        await managers["cheap"].restart_kernel(now=True)
    await managers["cheap"].restart_kernel()  # as a user does
    for manager in managers.values():
        await manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("waits", [True, False])
async def test_another_process_goes_on_with_a_job(cluster: Slurm, specs: Path, waits: bool) -> None:
    fillers = [cluster.fill(), cluster.fill()] if waits else []
    install(specs, "plain")
    first = AsyncKernelManager(kernel_name="plain", kernel_id="one")
    command = await first.pre_start_kernel(kernel_id="one", env={"KERNEL_X": "of-a-user"})
    before = provisioner_of(first)
    await before.submit(command[0], **command[1])
    if not waits:
        await before.wait_running()
    info = json.loads(json.dumps(await before.get_provisioner_info(), default=bytes.decode))
    before.release()  # as if its process had been killed

    second = AsyncKernelManager(kernel_name="plain", kernel_id="one")
    second.session.key = first.session.key
    after = SlurmProvisioner(
        kernel_id="one",
        kernel_spec=second.kernel_spec,
        parent=second,
        callback_ip="127.0.0.1",
        poll_interval=0.5,
    )
    second.provisioner = after
    await after.load_provisioner_info(info)
    assert after.has_process
    assert await after.poll() is None
    assert after.waiting is waits
    for job in fillers:
        cluster.run("scancel", str(job))
    second.load_connection_info(await after.wait_running())
    async with connected(second) as client:
        assert await run(client, "import os; print(os.environ['KERNEL_X'])") == "of-a-user"
    await second.shutdown_kernel()


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (("/no/such/program", "{connection_file}"), "cannot be started on"),
        (("sh", "-c", "echo No module named numpy >&2; exit 3"), "No module named numpy"),
    ],
)
async def test_a_kernel_that_does_not_start_is_reported_with_its_output(
    cluster: Slurm, specs: Path, argv: tuple[str, ...], reason: str
) -> None:
    install(specs, "broken", argv)
    manager = AsyncKernelManager(kernel_name="broken")
    with pytest.raises(KernelStartError, match="exit code") as failed:
        await manager.start_kernel()
    assert reason in str(failed.value)


async def test_requests_get_what_the_kernelspec_allows(cluster: Slurm, specs: Path) -> None:
    install(specs, "choice", time=60, allow={"partition": ["cpu", "urgent"], "time": "2:00:00"})
    env = {"PATH": "/usr/bin:/bin", "KERNEL_SLURM_PARTITION": "urgent", "KERNEL_SLURM_TIME": "30"}
    env["KERNEL_MEMORY_LIMIT"] = "256Mi"
    async with managed("choice", specs, env=env) as manager:
        job = cluster.run("scontrol", "--oneliner", "show", "job", str(job_of(manager)))
        assert "Partition=urgent" in job
        assert "TimeLimit=00:30:00" in job
        assert "mem=256M" in job
    for variable, value in (("PARTITION", "other"), ("TIME", "3:00:00"), ("ACCOUNT", "x")):
        manager = AsyncKernelManager(kernel_name="choice")
        with pytest.raises(InvalidRequest, match=f"KERNEL_SLURM_{variable}"):
            await manager.start_kernel(env={f"KERNEL_SLURM_{variable}": value})
    assert "RUNNING" not in cluster.jobs().values()


async def test_what_slurm_refuses_is_an_error_with_its_reason(cluster: Slurm, specs: Path) -> None:
    install(specs, "nowhere", partition="nowhere")
    with pytest.raises(KernelStartError, match="invalid partition"):
        await AsyncKernelManager(kernel_name="nowhere").start_kernel()
    install(specs, "wrong", partitoin="cpu")
    with pytest.raises(SetupError, match="partitoin"):
        await AsyncKernelManager(kernel_name="wrong").start_kernel()


async def test_a_job_calls_back_with_tls(cluster: Slurm, specs: Path, tmp_path: Path) -> None:
    made = self_signed(tmp_path)
    install(
        specs,
        "tls",
        callback_certfile=str(made.cert),
        callback_keyfile=str(made.key),
    )
    async with managed("tls", specs) as manager, connected(manager) as client:
        script = cluster.run("scontrol", "write", "batch_script", str(job_of(manager)), "-")
        assert "BEGIN CERTIFICATE" in script
        assert "PRIVATE KEY" not in script
        assert await run(client, "print(6 * 7)") == "42"


async def test_a_controller_that_does_not_answer_ends_no_kernel(
    cluster: Slurm, specs: Path
) -> None:
    install(specs, "plain", command_timeout=2)
    async with managed("plain", specs) as manager, connected(manager) as client:
        provisioner = provisioner_of(manager)
        with cluster.silent_controller():
            assert await provisioner.poll() is None
            assert await run(client, "print(6 * 7)") == "42"
            other = AsyncKernelManager(kernel_name="plain")
            with pytest.raises(KernelStartError, match="sbatch"):
                await other.start_kernel()
        assert await provisioner.poll() is None
