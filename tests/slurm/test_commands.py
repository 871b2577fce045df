"""Slurm's commands, with programs that behave as Slurm's do when something is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kbridge.errors import KernelError
from kbridge.slurm.commands import SlurmCommands
from tests.support.waiting import until


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path) -> SlurmCommands:
    return SlurmCommands(str(tmp_path), timeout=60)


async def test_sbatch_gets_the_script_and_the_options_as_they_are(
    commands: SlurmCommands, tmp_path: Path
) -> None:
    program(
        tmp_path, "sbatch", f"cat >{tmp_path}/in; printf '%s\\n' \"$@\" >{tmp_path}/args; echo 42"
    )
    assert await commands.submit(["--time=1", "--comment=a b;c"], b"#!/bin/sh\n\xff") == 42
    assert (tmp_path / "in").read_bytes() == b"#!/bin/sh\n\xff"
    assert (tmp_path / "args").read_text().splitlines() == [
        *("--parsable", "--time=1", "--comment=a b;c")
    ]


async def test_the_id_of_a_job_of_a_federation(commands: SlurmCommands, tmp_path: Path) -> None:
    program(tmp_path, "sbatch", "echo '42;cluster'")
    assert await commands.submit([], b"") == 42


async def test_slurms_commands_get_few_variables_of_the_server(
    commands: SlurmCommands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SBATCH_PARTITION", "SLURM_JOB_ID", "JUPYTER_TOKEN", "KERNEL_SECRET"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/other.conf")
    program(tmp_path, "sbatch", f"env -0 >{tmp_path}/env; echo 1")
    await commands.submit([], b"")
    seen = dict(part.split("=", 1) for part in (tmp_path / "env").read_text().split("\0") if part)
    assert seen["SLURM_CONF"] == "/etc/slurm/other.conf"
    assert seen["PATH"] == os.environ["PATH"]
    assert not {"SBATCH_PARTITION", "SLURM_JOB_ID", "JUPYTER_TOKEN", "KERNEL_SECRET"} & seen.keys()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'sbatch: error: invalid partition' >&2; exit 1", "invalid partition"),
        ("exit 3", "sbatch failed: 3"),
        ("echo hello", "no job id: hello"),
    ],
)
async def test_a_failure_is_an_error_with_slurms_words(
    commands: SlurmCommands, tmp_path: Path, script: str, reason: str
) -> None:
    program(tmp_path, "sbatch", script)
    with pytest.raises(KernelError, match=reason):
        await commands.submit([], b"")


async def test_a_missing_program_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="commands_dir"):
        await SlurmCommands(str(tmp_path)).submit([], b"")


async def test_a_command_that_does_not_end_is_ended(tmp_path: Path) -> None:
    program(tmp_path, "squeue", f"echo $$ >{tmp_path}/pid; exec sleep 600")
    with pytest.raises(KernelError, match="command_timeout"):
        await SlurmCommands(str(tmp_path), timeout=1).statuses([1])
    pid = (tmp_path / "pid").read_text().strip()
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the process is gone")


async def test_one_call_asks_for_all_jobs(commands: SlurmCommands, tmp_path: Path) -> None:
    program(tmp_path, "squeue", f"echo \"$@\" >>{tmp_path}/calls; echo '2|RUNNING|cpu|n1|1|None'")
    assert list(await commands.statuses([1, 2, 3])) == [2]
    [call] = (tmp_path / "calls").read_text().splitlines()
    assert "--jobs=1,2,3" in call
    assert "--states=all" in call


async def test_jobs_that_slurm_does_not_know(commands: SlurmCommands, tmp_path: Path) -> None:
    unknown = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    program(tmp_path, "squeue", unknown)
    program(tmp_path, "scontrol", unknown)
    assert await commands.statuses([1]) == {}
    program(tmp_path, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert (await commands.past_status(1)).state == "FORGOTTEN"
    program(tmp_path, "sacct", "echo '1|TIMEOUT|cpu|n1|01:00:00'")
    assert (await commands.past_status(1)).state == "TIMEOUT"
    program(tmp_path, "scontrol", "echo 'JobId=1 JobState=PREEMPTED Partition=cpu'")
    assert (await commands.past_status(1)).state == "PREEMPTED"


async def test_a_controller_that_is_down_is_not_a_job_that_is_gone(
    commands: SlurmCommands, tmp_path: Path
) -> None:
    down = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    for name in ("squeue", "scontrol"):
        program(tmp_path, name, down)
    with pytest.raises(KernelError, match="Unable to contact"):
        await commands.statuses([1])
    with pytest.raises(KernelError, match="Unable to contact"):
        await commands.past_status(1)


async def test_signals_go_to_the_batch_script(commands: SlurmCommands, tmp_path: Path) -> None:
    program(tmp_path, "scancel", f"printf '%s ' \"$@\" >>{tmp_path}/calls; echo >>{tmp_path}/calls")
    await commands.signal(7, 2)
    await commands.cancel(7)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "--quiet --batch --signal=2 7 ",
        "--quiet 7 ",
    ]


async def test_the_address_of_a_node(commands: SlurmCommands, tmp_path: Path) -> None:
    program(tmp_path, "scontrol", "echo 'NodeName=n1 Arch=x NodeAddr=10.1.2.3 NodeHostName=n1'")
    assert await commands.node_address("n1") == "10.1.2.3"
