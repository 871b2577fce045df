"""The batch script, run as Slurm runs it, but without Slurm."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kbridge.slurm.callback import Callbacks, Endpoint, JobKeys
from kbridge.slurm.job import KILL, PORTS, free_ports, listeners
from kbridge.slurm.kernel_job import KernelJob
from kbridge.slurm.script import address_text, batch_script
from tests.support.waiting import TIMEOUT, eventually, until

# Binds the five ports of its connection file; ends with code 7 on SIGTERM. {0} is code.
KERNEL = """
import json, os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
info = json.load(open(sys.argv[1]))
{0}
for name, value in info.items():
    if name.endswith("_port"):
        sock = socket.create_server((info["ip"], value))
        globals()[name] = sock
print("bound", flush=True)
while True:
    signal.pause()
"""


class Bridge:
    """The bridge's side of one job, which runs on this machine."""

    def __init__(self, callbacks: Callbacks, node_ip: str, folder: Path) -> None:
        self.callbacks = callbacks
        self.node_ip = node_ip
        self.folder = folder
        self.keys = JobKeys.new()
        self.stay = 60.0
        self.job = KernelJob(7, self.keys, {}, callbacks.ip, callbacks.port)
        self.process: subprocess.Popen[bytes] | None = None

    async def answer(self, message: dict[str, Any], _peer: str) -> dict[str, Any]:
        if message["kind"] == "ended":
            return self.job.ended(message, by_itself=True, stay=self.stay, now=time.monotonic())
        return getattr(self.job, message["kind"])(message, self.node_ip)  # type: ignore[no-any-return]

    def launch(self, argv: Sequence[str] | str, **changes: Any) -> dict[str, Any]:
        """Return what the job starts; a text is code that runs before the kernel binds."""
        if isinstance(argv, str):
            argv = [sys.executable, "-c", KERNEL.format(argv), "{connection_file}"]
        return {
            "argv": list(argv),
            "env": {"KERNEL_X": "1"},
            "cwd": str(self.folder),
            "prologue": "",
            "inherit_output": False,
            "start_timeout": 600,
            "connection": {"transport": "tcp", "key": "secret"},
            **changes,
        }

    def start(self, launch: dict[str, Any], *, python: str = sys.executable, **more: Any) -> None:
        """Run the batch script."""
        self.job.launch = launch
        self.callbacks.expect("one", self.keys, self.answer)
        parameters = {
            "kernel": "one",
            "addresses": [address_text(self.callbacks.ip, self.callbacks.port)],
            "certificate": None,
            "token": self.keys.token.hex(),
            "bridge": self.keys.public.hex(),
            "patience": 600,
            **more,
        }
        script = self.folder / "slurm_script"
        script.write_bytes(batch_script(python, parameters))
        (self.folder / "tmp").mkdir(exist_ok=True)
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [python, script],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    "SLURM_JOB_ID": "7",
                    "TMPDIR": str(self.folder / "tmp"),
                    "PATH": os.environ["PATH"],
                    "HOME": "/",
                },
            )

    async def end(self) -> int:
        """Return the exit code of the job."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, TIMEOUT)


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    callbacks = await Callbacks.shared(Endpoint("127.0.0.1"), logging.getLogger("bridge"))
    made = Bridge(callbacks, "127.0.0.2", tmp_path)
    yield made
    callbacks.forget("one")
    if made.process is not None:
        made.process.kill()
        made.process.wait(TIMEOUT)


async def running(bridge: Bridge) -> None:
    await until(lambda: bridge.job.ports, "the ports of the kernel are known")


def pythons() -> list[str]:
    """Return interpreters that nodes may have, as far as this machine has them."""
    found = sorted(Path.home().glob(".pyenv/versions/3.[89]*/bin/python3"))
    return [sys.executable, *map(str, found)]


@pytest.mark.parametrize("python", pythons())
async def test_a_kernel_listens_on_the_address_of_the_node_and_nowhere_else(
    bridge: Bridge, python: str
) -> None:
    bridge.start(bridge.launch(""), python=python)
    await running(bridge)
    ports = set(bridge.job.ports.values())
    assert bridge.job.node_ip == "127.0.0.2"
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:  # noqa: ASYNC240
        address, port = line.split()[1].split(":")
        if int(port, 16) in ports and line.split()[3] == "0A":
            listening.add(address)
    assert listening == {"0200007F"}
    assert bridge.process is not None
    bridge.stay = 0
    bridge.process.send_signal(signal.SIGTERM)
    assert await bridge.end() == 7
    assert bridge.job.code == 7


async def test_the_files_of_a_kernel_are_private_and_go_with_the_job(bridge: Bridge) -> None:
    bridge.start(bridge.launch("info['mode'] = os.stat(sys.argv[1]).st_mode"))
    await running(bridge)
    [folder] = (bridge.folder / "tmp").iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    connection = json.loads((folder / "connection.json").read_text())
    assert connection["key"] == "secret"
    assert connection["ip"] == "127.0.0.2"
    command = Path(f"/proc/{bridge.process.pid}/cmdline").read_bytes()  # type: ignore[union-attr]  # noqa: ASYNC240
    environment = Path(f"/proc/{bridge.process.pid}/environ").read_bytes()  # type: ignore[union-attr]  # noqa: ASYNC240
    for secret in (b"secret", bridge.keys.token.hex().encode()):
        assert secret not in command + environment
    bridge.job.final = True
    bridge.process.send_signal(KILL)  # type: ignore[union-attr]
    assert await bridge.end() == 137
    assert list((bridge.folder / "tmp").iterdir()) == []


async def test_signals_reach_the_kernel_and_a_restart_stays_in_the_job(bridge: Bridge) -> None:
    marks = bridge.folder / "marks"
    code = f"signal.signal(signal.SIGINT, lambda *_: open({str(marks)!r}, 'a').write('x'))"
    bridge.start(bridge.launch(code))
    await running(bridge)
    assert bridge.process is not None
    bridge.process.send_signal(signal.SIGINT)
    await until(lambda: marks.exists() and marks.read_text() == "x", "the kernel was interrupted")
    bridge.process.send_signal(KILL)
    await until(lambda: bridge.job.code is not None, "the end was told")
    assert bridge.job.code == 137
    first = dict(bridge.job.ports)
    bridge.job.launch_next(bridge.launch(code))
    await running(bridge)
    assert bridge.job.ports != first
    assert bridge.process.poll() is None
    bridge.job.final = True
    bridge.process.send_signal(signal.SIGTERM)
    assert await bridge.end() == 7


async def test_a_kernel_does_not_outlive_a_script_that_is_killed(bridge: Bridge) -> None:
    pid = bridge.folder / "pid"
    bridge.start(bridge.launch(f"open({str(pid)!r}, 'w').write(str(os.getpid()))"))
    await running(bridge)
    assert bridge.process is not None
    bridge.process.kill()
    await bridge.end()
    kernel = Path("/proc") / pid.read_text()
    await until(lambda: not kernel.exists(), "the kernel has ended")


# Another program of the user has a port while this kernel lives. When the kernel cannot bind it, it
# ends only after the job has looked at its ports again.
TAKE = """
import atexit
def looks():
    text = open(f"/proc/{os.getppid()}/status").read()
    return int(text.partition("\\nvoluntary_ctxt_switches:")[2].split()[0])
def seen_by_the_job():
    before = looks()
    while looks() < before + 4:
        time.sleep(0.01)
atexit.register(seen_by_the_job)
lives, end = os.pipe()
taken = socket.create_server((info["ip"], info["hb_port"]))
if os.fork() == 0:
    os.setsid()
    os.close(end)
    os.read(lives, 1)
    os._exit(0)
taken.close()
"""


async def test_another_program_took_a_port(bridge: Bridge) -> None:
    """The kernel is started again on other ports, and the taken one is never told."""
    mark = bridge.folder / "mark"
    first = f"if not os.path.exists({str(mark)!r}):\n    open({str(mark)!r}, 'w').close()\n"
    bridge.start(bridge.launch(first + textwrap.indent(TAKE, "    ")))
    await running(bridge)
    assert "Another process took a port" in (bridge.folder / "output").read_text()


async def test_a_kernel_may_listen_in_another_process_group(bridge: Bridge) -> None:
    """As a kernelspec with `srun` does: the sockets are not those of the kernel's group."""
    code = "if os.fork(): signal.pause()\nos.setsid(); import ctypes; ctypes.CDLL(None).prctl(1, 9)"
    bridge.start(bridge.launch(code))  # 1 is PR_SET_PDEATHSIG: it ends with the kernel
    await running(bridge)


async def test_the_output_of_a_kernel_that_fails_is_told(bridge: Bridge) -> None:
    bridge.start(bridge.launch("print('no numpy'); sys.exit(3)"))
    assert await bridge.end() == 3
    assert (bridge.job.code, bridge.job.tail) == (3, "no numpy\n")


async def test_a_command_that_does_not_exist(bridge: Bridge) -> None:
    bridge.start(bridge.launch(["/no/such/program", "{connection_file}"]))
    assert await bridge.end() == 127
    assert "cannot be started" in bridge.job.tail
    assert "/no/such/program" in bridge.job.tail


async def test_the_prologue_runs_in_the_shell_of_the_kernel(bridge: Bridge) -> None:
    code = "print(os.environ['FROM'], os.environ['KERNEL_X'], os.getcwd()); sys.exit(3)"
    bridge.start(bridge.launch(code, prologue="export FROM=prologue"))
    await bridge.end()
    assert bridge.job.tail == f"prologue 1 {bridge.folder}\n"


async def test_the_log_stays_bounded_and_the_output_may_go_to_slurms_file(bridge: Bridge) -> None:
    flood = "os.write(1, b'x' * 6_000_000)"
    bridge.start(bridge.launch(flood))
    await running(bridge)
    [folder] = (bridge.folder / "tmp").iterdir()
    await until(lambda: (folder / "kernel.log").stat().st_size <= 2 << 20, "the log was cut")
    bridge.job.final = True
    bridge.process.send_signal(KILL)  # type: ignore[union-attr]
    await bridge.end()


async def test_slurms_file_gets_the_output_if_the_kernelspec_names_one(bridge: Bridge) -> None:
    bridge.start(bridge.launch("print('for slurm')", inherit_output=True))
    await running(bridge)
    eventually(lambda: "for slurm" in (bridge.folder / "output").read_text(), "the output is there")
    assert bridge.job.tail == ""


async def test_a_job_waits_for_a_bridge_that_is_not_there(bridge: Bridge) -> None:
    bridge.start(bridge.launch(""))
    bridge.callbacks.forget("one")  # closes the socket
    output = bridge.folder / "output"
    await until(lambda: "has not answered yet" in output.read_text(), "the job waits")
    assert bridge.process is not None
    assert bridge.process.poll() is None
    port = bridge.job.port
    again = await Callbacks.shared(Endpoint("127.0.0.1", port), logging.getLogger("bridge"))
    again.expect("one", bridge.keys, bridge.answer)
    await running(bridge)
    again.forget("one")


async def test_a_job_whose_bridge_never_answers_ends(bridge: Bridge) -> None:
    bridge.start(bridge.launch(""), patience=2, token=os.urandom(32).hex())
    assert await bridge.end() == 1
    assert "does not have the token" in (bridge.folder / "output").read_text()


def test_the_script_has_no_options_for_sbatch() -> None:
    parameters = {"kernel": "x\n#SBATCH --uid=0\n", "text": "'\"\\\n#SBATCH -A x"}
    script = batch_script("/usr/bin/python3 -I", parameters).decode()
    assert script.startswith("#!/usr/bin/python3 -I\n")
    assert not [line for line in script.splitlines() if line.startswith("#SBATCH")]
    compile(script, "script", "exec")
    assert "kbridge.slurm.sealed" not in script.replace("`kbridge.slurm.sealed`", "")


def test_a_socket_of_another_user_does_not_count() -> None:
    ports = set(free_ports("127.0.0.1").values())
    assert len(ports) == len(PORTS)
    assert not listeners("127.0.0.1", ports)
    import socket

    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        assert listeners("127.0.0.1", {port})
        assert not listeners("127.0.0.2", {port})
        if os.geteuid() == 0:
            code = (
                "import os, sys; sys.path.insert(0, '.'); from kbridge.slurm.job import listeners;"
                f"os.setuid(65534); print(listeners('127.0.0.1', {{{port}}}))"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.stdout == "set()\n", done.stderr
