"""Runs the kernel of one Slurm job; the batch script consists of this file and `sealed`.

It runs on a compute node with the standard library of Python 3.8 or newer. Nothing of kbridge need
be installed there, and no file system need be shared.

The job calls the bridge back; the bridge never connects to the job, only to the kernel:

- `hello` asks for the command, the environment and the keys. It is repeated until it is answered,
  because the bridge may be restarting;
- `ready` tells the ports when all of them are bound. It is repeated after `REPEAT`
  seconds: the bridge may have been killed before it could record them;
- `ended` tells the exit code of the kernel. The job then stays for some seconds, so that a restart
  of the kernel needs neither the queue nor another node.

Signals that Slurm sends to the batch script go on to the process group of the kernel. SIGURG, which
nothing else uses, kills the kernel only and leaves the job.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from kbridge.slurm.sealed import Seals, proof, public_key

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
KILL = getattr(signal, "SIGURG", signal.SIGTERM)
# A server on Windows imports this file, too, and has fewer signals.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
FORWARDED = (*(getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)), KILL)
REPEAT = 60.0  # seconds between two `ready`
PORT_ATTEMPTS = 5
UNSURE = 5.0  # seconds in which a kernel ends that did not get its ports
PATIENCE = 10.0  # seconds that one call may take
MOST = 4 << 20  # bytes of an answer
LOG_LIMIT = 2 << 20
TAIL = 4096  # bytes of the log that `ended` has
_TAKEN = ("address already in use", "address in use", "eaddrinuse")
_PR_SET_PDEATHSIG = 1


class Caller:
    """Calls the bridge.

    Parameters
    ----------
    parameters : dict
        The values in the batch script: see `kbridge.slurm.script`.
    job : int
        The id of the Slurm job.
    """

    def __init__(self, parameters: dict[str, Any], job: int) -> None:
        token = bytes.fromhex(parameters["token"])
        secret = os.urandom(32)
        public = public_key(secret)
        self._seals = Seals(token, secret, bytes.fromhex(parameters["bridge"]), public)
        self._envelope = {
            "kernel": parameters["kernel"],
            "public": public.hex(),
            "proof": proof(token, public),
        }
        self._addresses: list[str] = parameters["addresses"]
        self._certificate: str | None = parameters["certificate"]
        self._job = job
        self._count = 0

    def call(self, kind: str, **content: Any) -> dict[str, Any]:
        """Send one message, to one address after the other, until one answers.

        Raises
        ------
        ConnectionError
            If no address answers; the text has the last reason.
        """
        self._count += 1
        content.update(kind=kind, job=self._job, count=self._count)
        line = json.dumps({**self._envelope, "sealed": self._seals.seal("job", content)}).encode()
        reason = "no address"
        for address in self._addresses:
            try:
                answer = self._exchange(address, line + b"\n")
            except (OSError, ValueError) as error:  # noqa: PERF203
                reason = f"{address}: {error}"
            else:
                return answer
        raise ConnectionError(reason)

    def _exchange(self, address: str, line: bytes) -> dict[str, Any]:
        host, port = address.rsplit(":", 1)
        host = host.strip("[]")
        deadline = time.monotonic() + PATIENCE
        with socket.create_connection((host, int(port)), PATIENCE) as plain:
            with self._secured(plain, host) as connection:
                connection.sendall(line)
                data = b""
                while not data.endswith(b"\n"):
                    connection.settimeout(max(0.1, deadline - time.monotonic()))
                    received = connection.recv(65536)
                    if not received or len(data) > MOST:
                        raise OSError("the bridge ended the connection")
                    data += received
        answer = json.loads(data.decode())
        if "sealed" not in answer:
            raise OSError(str(answer.get("error", "not an answer"))[:200])
        content: dict[str, Any] = self._seals.open("bridge", answer["sealed"])
        if content.get("count") != self._count:
            raise ValueError("an answer to another message")
        return content

    def _secured(self, plain: socket.socket, host: str) -> socket.socket:
        if self._certificate is None:
            return plain
        # The certificates of the machine do not count: only the one that the bridge named.
        context = ssl.create_default_context(cadata=self._certificate)
        return context.wrap_socket(plain, server_hostname=host)


class Job:
    """Runs the kernel, and the kernels that replace it in the same job.

    Parameters
    ----------
    parameters : dict
        As for `Caller`.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._caller = Caller(parameters, int(os.environ["SLURM_JOB_ID"]))
        self._process: subprocess.Popen[bytes] | None = None
        self._wake, end = os.pipe()
        for descriptor in (self._wake, end):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in FORWARDED:
            signal.signal(number, self._forward)
        self._umask = os.umask(0o077)  # kernels get the one of the user
        self._directory = ""
        self._failure = ""
        self._unwanted = False

    def run(self) -> int:
        """Run kernels until the bridge wants no more; return the exit code of the last one."""
        code, generation = 1, 1
        patience = float(self._parameters["patience"])
        try:
            while True:
                answer = self._launch(generation, patience)
                if answer is None:
                    return code
                try:
                    code, bound = self._run_kernel(generation, answer)
                except OSError as error:
                    # A full disk, or an address that is not one of this node.
                    self._failure = f"On {socket.gethostname()}: {error}"
                    say(self._failure)
                    self._kill()
                    code, bound = 1, False
                if self._unwanted:
                    return code
                patience = self._report_end(generation, code, bound)
                if patience <= 0:
                    return code
                generation += 1
        finally:
            if self._directory:
                shutil.rmtree(self._directory, ignore_errors=True)

    # -- messages -------------------------------------------------------------------------------

    def _launch(self, generation: int, patience: float) -> dict[str, Any] | None:
        """Ask what to start, for at most `patience` seconds; None if there is nothing."""
        deadline = time.monotonic() + patience
        reason = ""
        while time.monotonic() < deadline:
            try:
                answer = self._caller.call("hello", generation=generation)
            except ConnectionError as error:
                if reason != str(error):
                    reason = str(error)
                    say("The bridge has not answered yet: " + reason)
            else:
                if "launch" in answer:
                    return answer
                if answer.get("end"):
                    return None
            self._pause(1.0)
        say("Nothing to start. " + reason)
        return None

    def _report_end(self, generation: int, code: int, bound: bool) -> float:
        """Tell the end of the kernel; return for how many seconds the job stays."""
        tail = (self._tail() + self._failure)[-TAIL:]
        deadline = time.monotonic() + PATIENCE * 3
        while time.monotonic() < deadline:
            try:
                answer = self._caller.call(
                    "ended", generation=generation, code=code, bound=bound, tail=tail
                )
                return float(answer.get("stay", 0))
            except ConnectionError:  # noqa: PERF203
                self._pause(1.0)
        return 0.0

    # -- the kernel -----------------------------------------------------------------------------

    def _run_kernel(self, generation: int, answer: dict[str, Any]) -> tuple[int, bool]:
        """Run one kernel to its end; return its exit code, and True if its ports were bound."""
        launch, ip = answer["launch"], answer["ip"]
        self._failure = ""
        if not self._directory:
            self._directory = tempfile.mkdtemp(prefix="kernel-")
        for attempt in range(PORT_ATTEMPTS):
            ports = free_ports(ip)
            self._start(launch, ip, ports)
            if self._wait_bound(ip, ports, launch["start_timeout"]):
                self._serve(generation, ip, ports)
                return self._code(), True
            self._code()
            text = self._tail().lower()
            if not any(words in text for words in _TAKEN):
                break
            say(f"Another process took a port; attempt {attempt + 2}")
        return self._code(), False

    def _start(self, launch: dict[str, Any], ip: str, ports: dict[str, int]) -> None:
        path = os.path.join(self._directory, "connection.json")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump({**launch["connection"], "ip": ip, **ports}, file)
        argv = [part.replace("{connection_file}", path) for part in launch["argv"]]
        if launch["prologue"]:
            argv = ["/bin/bash", "-c", launch["prologue"] + '\nexec "$@"', "kernel", *argv]
        env = {**os.environ, **launch["env"]}
        env.pop("SLURM_JWT", None)  # the server's right to submit jobs
        umask = self._umask

        def prepare() -> None:
            _prepare_child(umask)

        places = [launch["cwd"], env.get("HOME", ""), "/"]
        output = sys.stdout.fileno() if launch["inherit_output"] else self._log()
        try:
            self._process = subprocess.Popen(
                argv,
                env=env,
                cwd=next(place for place in places if os.path.isdir(place)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare,
            )
        except OSError as error:
            # As a shell would: the bridge shows the text as the kernel's own.
            command = "printf '%s\\n' \"$1\"; exit 127"
            reason = f"The kernel cannot be started on {socket.gethostname()}: {error}"
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", command, "sh", reason], stdout=output, preexec_fn=prepare
            )
        finally:
            if not launch["inherit_output"]:
                os.close(output)

    def _wait_bound(self, ip: str, ports: dict[str, int], seconds: float) -> bool:
        """Return True when the kernel has bound all ports; False if it ended before.

        Another process of this user, such as the kernel of another job, may have taken a port. The
        kernel then ends, but its other ports are bound until then. Sockets outside its process
        group may also be its own: those of a kernelspec that calls `srun`. So they count after
        `UNSURE` seconds.
        """
        deadline = time.monotonic() + seconds
        bound = 0.0
        while self._code_or_none() is None:
            sockets, now = listeners(ip, set(ports.values())), time.monotonic()
            bound = (bound or now) if sockets else 0.0
            if sockets and (now - bound > UNSURE or sockets <= self._sockets()):
                return True
            if now > deadline and not sockets:
                self._failure = f"The kernel did not listen on {ip} within {seconds:.0f} s."
                self._kill()
                return False
            self._pause(0.05)
        return False

    def _serve(self, generation: int, ip: str, ports: dict[str, int]) -> None:
        """Return when the kernel has ended; tell its ports until then."""
        known = False
        while self._code_or_none() is None:
            try:
                answer = self._caller.call("ready", generation=generation, ip=ip, ports=ports)
                known = True
                if answer.get("end"):
                    self._unwanted = True
                    self._end()
                    return
            except ConnectionError as error:
                say(f"The bridge does not answer: {error}")
            self._trim()
            self._pause(REPEAT if known else 1.0, until=lambda: self._code_or_none() is not None)

    def _sockets(self) -> set[str]:
        """Return the inodes of the sockets of the kernel's process group."""
        found = set()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if self._process is None or os.getpgid(int(pid)) != self._process.pid:
                    continue
                for name in os.listdir(f"/proc/{pid}/fd"):
                    found.add(os.readlink(f"/proc/{pid}/fd/{name}")[len("socket:[") : -1])
            except OSError:
                pass  # it has ended or closed the file
        return found

    def _code_or_none(self) -> int | None:
        return None if self._process is None else self._process.poll()

    def _code(self) -> int:
        """Return the exit code, when nothing of the kernel is left."""
        if self._process is None:
            return 1
        code = self._process.wait()
        try:
            # Its children may hold a GPU that the next kernel needs.
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        return code if code >= 0 else 128 - code

    def _end(self) -> None:
        """Ask the kernel to end, and kill it if it does not."""
        self._forward(signal.SIGTERM, None)
        self._pause(PATIENCE, until=lambda: self._code_or_none() is not None)
        self._kill()

    def _kill(self) -> None:
        if self._code_or_none() is None and self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)

    def _forward(self, number: int, _frame: Any) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL if number == KILL else number)
        elif number == signal.SIGTERM:
            raise SystemExit(128 + number)

    def _pause(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Wait, at most until a signal arrives; the end of the kernel is one."""
        deadline = time.monotonic() + seconds
        while not until():
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._wake], [], [], left)[0]:
                return
            os.read(self._wake, 4096)

    # -- the log --------------------------------------------------------------------------------

    def _log(self) -> int:
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND
        return os.open(os.path.join(self._directory, "kernel.log"), flags, 0o600)

    def _tail(self, size: int = TAIL) -> str:
        try:
            with open(os.path.join(self._directory, "kernel.log"), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read(size).decode(errors="replace")
        except OSError:
            return ""  # the output goes to Slurm's file

    def _trim(self) -> None:
        path = os.path.join(self._directory, "kernel.log")
        if os.path.exists(path) and os.path.getsize(path) > LOG_LIMIT:
            tail = self._tail(LOG_LIMIT // 2).encode()
            os.truncate(path, 0)  # the kernel appends, so it goes on after these lines
            with open(path, "ab") as file:
                file.write(tail)


def say(text: str) -> None:
    """Write a line to the output of the job."""
    print(text, file=sys.stderr, flush=True)


def free_ports(ip: str) -> dict[str, int]:
    """Return five free ports of an address, by the names of a connection file."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sockets = []
    try:
        for _ in PORTS:
            sockets.append(socket.socket(family, socket.SOCK_STREAM))
            sockets[-1].bind((ip, 0))
        return {name: sock.getsockname()[1] for name, sock in zip(PORTS, sockets)}
    finally:
        for sock in sockets:
            sock.close()


def listeners(ip: str, ports: set[int]) -> set[str]:
    """Return the inodes of this user's sockets that listen on ports of an address.

    It is empty if one of the ports has no such socket. Connecting would also find the socket of
    another user, who was faster than the kernel.
    """
    v6 = ":" in ip
    packed = socket.inet_pton(socket.AF_INET6 if v6 else socket.AF_INET, ip)
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    address = b"".join(words).hex().upper()
    found, inodes = set(), set()
    with open("/proc/net/tcp6" if v6 else "/proc/net/tcp") as file:
        for line in file:
            part = line.split()
            # local address, state 0A: LISTEN, user
            if (
                part[1].startswith(address + ":")
                and part[3] == "0A"
                and part[7] == str(os.getuid())
            ):
                port = int(part[1].split(":")[1], 16)
                if port in ports:
                    found.add(port)
                    inodes.add(part[9])
    return inodes if ports == found else set()


def _prepare_child(umask: int) -> None:
    """Give the kernel a process group, and let it end with this process whatever happens."""
    os.umask(umask)
    os.setpgid(0, 0)
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        pass  # Slurm ends the processes of the job, too


def main(parameters: dict[str, Any]) -> int:
    """Run the job."""
    return Job(parameters).run()
