"""A real Slurm on loopback addresses: munge, slurmctld and two slurmd, ended by their process ids.

`python -m tests.support.slurm` starts one, and ends it when its input ends. The partition `urgent`
takes resources from jobs of the partition `cpu`. If the process that started it is killed, a
watcher ends the daemons and the jobs, and removes the files.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.require import require
from tests.support.server import free_port
from tests.support.waiting import TIMEOUT, eventually

__all__ = ["NODES", "Slurm", "slurm"]

NODES = ("n1", "n2")
CPUS = 4  # of each node, whatever the machine has
_CONF = """
ClusterName=kbridge
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool-%n
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd-%n.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
GresTypes=gpu
KillWait=3
MessageTimeout=5
SlurmdTimeout=15
"""
_NODE = """
NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=4000 \\
    Gres=gpu:a100:1
"""
_PARTITIONS = """
PartitionName=cpu Nodes=ALL Default=YES DefMemPerCPU=100 MaxTime=2-0 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL DefMemPerCPU=100 MaxTime=2-0 State=UP PriorityTier=10
"""
# As in tests/support/postgresql.py: input that ends with the process that started it.
_WATCH = """
trap '' INT TERM HUP
read -r _
scancel --quiet --state=PENDING --state=RUNNING --user="$(id -un)"
sleep 1
for name in slurmd-n1 slurmd-n2 slurmctld munge; do
    kill -KILL "$(cat "$1/$name.pid" 2>/dev/null)" 2>/dev/null
done
rm -rf -- "$1"
"""


class Slurm:
    """A cluster of two nodes on this machine."""

    def __init__(self) -> None:
        programs = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
        self._programs = {name: require(name) for name in programs}
        # Not pytest's directory: munge wants directories above its socket that all may enter.
        self.home = Path(tempfile.mkdtemp(prefix="kbridge-slurm-"))
        self.home.chmod(0o755)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._watcher: subprocess.Popen[bytes] | None = None
        self.conf = self.home / "slurm.conf"
        self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
        self._write_conf()

    def _write_conf(self) -> None:
        host = socket.gethostname().split(".")[0]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout
        text = _CONF.format(home=self.home, host=host, port=free_port(), user=user.strip())
        for name in NODES:
            text += _NODE.format(name=name, host=host, port=free_port(), cpus=CPUS)
        self.conf.write_text(text + _PARTITIONS)
        (self.home / "gres.conf").write_text("Name=gpu Type=a100 File=/dev/zero\n")
        (self.home / "state").mkdir()
        key = self.home / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def __enter__(self) -> Self:
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self.home)],
            cwd="/",
            env=self.env,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        munge = [
            f"--{name}={self.home}/munge.{name}" for name in ("socket", "pid-file", "seed-file")
        ]
        munge += [f"--key-file={self.home}/munge.key", f"--log-file={self.home}/munge.log"]
        munge[1] = f"--pid-file={self.home}/munge.pid"
        self._spawn("munged", ["--foreground", "--force", *munge])
        eventually((self.home / "munge.socket").exists, "munge listens")
        self._spawn("slurmctld", ["-D", "-f", str(self.conf)])
        for name in NODES:
            self.start_node(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.kill()
            watcher.communicate()
        self.cancel_all()
        for process in reversed(self._daemons.values()):
            process.send_signal(signal.SIGTERM)
        for process in self._daemons.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:  # a slurmd that waits for a node that was lost
                process.kill()
                process.wait(TIMEOUT)
        shutil.rmtree(self.home, ignore_errors=True)

    def _spawn(self, name: str, arguments: list[str]) -> None:
        program = self._programs[name.partition("-")[0]]
        self._daemons[name] = subprocess.Popen(
            [program, *arguments],
            cwd="/",
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node, and wait until the node takes jobs."""
        self._spawn(f"slurmd-{name}", ["-D", "-N", name, "-f", str(self.conf)])
        eventually(lambda: self.node_state(name) == "idle", f"node {name} takes jobs")

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node, as a power failure does."""
        process = self._daemons.pop(f"slurmd-{name}")
        process.kill()
        process.wait(TIMEOUT)
        spool = str(self.home / f"spool-{name}")
        for step in psutil.process_iter(["name", "cwd"]):
            if step.info["name"] == "slurmstepd" and step.info["cwd"] == spool:
                for part in (step, *step.children(recursive=True)):
                    part.kill()

    @contextmanager
    def silent_controller(self) -> Iterator[None]:
        """Stop the process of the controller, so that Slurm's commands do not get an answer."""
        process = self._daemons["slurmctld"]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def node_state(self, name: str) -> str:
        """Return Slurm's state of a node; empty if the controller does not answer."""
        done = self._run("sinfo", "--noheader", f"--nodes={name}", "--format=%T")
        return done.stdout.split("\n")[0].strip()

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands; return its output."""
        done = self._run(*command)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.env, cwd="/", capture_output=True, text=True, timeout=TIMEOUT
        )

    def jobs(self) -> dict[int, str]:
        """Return the states of the jobs that wait or run."""
        lines = self.run("squeue", "--noheader", "--format=%i %T").splitlines()
        return {int(line.split()[0]): line.split()[1] for line in lines}

    def fill(self, *, partition: str = "cpu", cpus: int = CPUS, node: str = "") -> int:
        """Submit a job that takes the CPUs of a node until it is cancelled; return its id."""
        options = [f"--partition={partition}", f"--cpus-per-task={cpus}", "--output=/dev/null"]
        options += [f"--nodelist={node}"] if node else []
        done = self.run("sbatch", "--parsable", "--no-requeue", *options, "--wrap=sleep 600")
        return int(done)

    def cancel_all(self) -> None:
        """End all jobs, and wait until nothing of them is left."""

        def gone() -> bool:
            jobs = self.jobs()
            if jobs:
                self._run("scancel", "--quiet", *map(str, jobs))
            return not jobs

        eventually(gone, "all jobs have ended")


@contextmanager
def slurm() -> Iterator[Slurm]:
    """Start a cluster, for the duration of a context."""
    with Slurm() as cluster:
        yield cluster


def main() -> None:
    """Run a cluster until the input ends."""
    with slurm() as cluster:
        print(f"export SLURM_CONF={cluster.conf}", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
