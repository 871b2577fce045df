"""Start and stop the servers under test.

There are three servers: plain jupyter_server; jupyter_server with the kbridge extension, which
differs in one word of the command line; and kbridge, the standalone server. All have the same
options: high limits (except in rows about limits), a token, and verified signatures (keys of
kernels are random by default in all of them). Each has separate configuration, data and runtime
directories, so that extensions and settings of the user or the environment have no effect. The
command line enables the extension, and the log is checked for it. Each server is ended by its
process id.

Others are variants of the standalone server: another checkout, such as the baseline, or other
options.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks import measure
from benchmarks.address import HOST, Address, Transport
from benchmarks.measure import BenchmarkError

BASE, EXTENSION, OURS = NAMES = ("jupyter_server", "extension", "kbridge")
REFERENCE = "baseline"  # the standalone server of the baseline
LOADED = "kbridge | kernel websockets go over kbridge"
KERNEL = Path(__file__).with_name("kernel.py")
CONNECTION = "--ZMQChannelsWebsocketConnection."
HIGH_LIMITS = (
    f"{CONNECTION}iopub_msg_rate_limit=1000000000000",
    f"{CONNECTION}iopub_data_rate_limit=1000000000000",
    f"{CONNECTION}limit_rate=True",
)


def write_kernelspec(home: Path) -> None:
    """Write the kernelspec of the stub kernel to `home`/data, where `JUPYTER_PATH` will point."""
    folder = home / "data" / "kernels" / "stub"
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "argv": [sys.executable, str(KERNEL), "{connection_file}"],
        "display_name": "Stub",
        "language": "json",
    }
    (folder / "kernel.json").write_text(json.dumps(spec))


@dataclass(frozen=True, slots=True)
class Variant:
    """The checkout and the options of a server with kbridge.

    Parameters
    ----------
    tree : Path | None
        The checkout whose package `kbridge` runs; None: this one.
    options : tuple of str
        Additional command-line arguments.
    selected : bool
        True if only the rows that are compared with a baseline measure it.
    """

    tree: Path | None = None
    options: tuple[str, ...] = ()
    selected: bool = False


class Server:
    """One server process.

    Parameters
    ----------
    name : str
        One of `NAMES`, or the name of a variant of the standalone server.
    home : Path
        A separate directory for all its files.
    profile : Path | None
        Run under cProfile and write the statistics to this file.
    options : sequence of str
        More command-line arguments.
    variant : Variant
        The checkout and more options, which twins have, too.
    transport : Transport
        The transport between clients and the server.
    """

    def __init__(
        self,
        name: str,
        home: Path,
        profile: Path | None = None,
        options: Sequence[str] = HIGH_LIMITS,
        variant: Variant = Variant(),
        transport: Transport = Transport.TCP,
    ) -> None:
        self.name = name
        self.variant = variant
        self.address = Address(transport, home)
        self.home = home
        self.profile = profile
        self.options = tuple(options)
        self.token = secrets.token_hex(16)
        self.listening_after = 0.0
        self.rss_then = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._twins = itertools.count()

    def twin(self, options: Sequence[str], transport: Transport = Transport.TCP) -> Server:
        """Return a server of the same kind with other options; it is not started."""
        label = f"twin-{next(self._twins)}"
        profile = self.profile and self.profile.with_stem(f"{self.profile.stem}-{label}")
        return Server(self.name, self.home / label, profile, options, self.variant, transport)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        if self._process is None:
            raise BenchmarkError(f"{self.name} is not running")
        return self._process.pid

    @property
    def port(self) -> int:
        """The TCP port."""
        return self.address.port

    @property
    def standalone(self) -> bool:
        """True for the standalone server and its variants."""
        return self.name not in {BASE, EXTENSION}

    def argv(self) -> list[str]:
        profiled = ["-m", "cProfile", "-o", str(self.profile)] if self.profile else []
        argv = [sys.executable, *profiled, "-m", OURS if self.standalone else BASE]
        argv += [*self.address.options(), *self.options, *self.variant.options]
        if self.standalone:
            return [*argv, f"--token={self.token}"]
        return [
            *argv,
            f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={self.home}",
            f"--ServerApp.jpserver_extensions=kbridge={self.name == EXTENSION}",
            "--allow-root",
            "--no-browser",
        ]

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_", "KG_"))}
        if self.variant.tree:
            kept["PYTHONPATH"] = str(self.variant.tree)
        return {
            **kept,
            "HOME": str(self.home),
            "IPYTHONDIR": str(self.home / "ipython"),
            "JUPYTER_PATH": str(self.home / "data"),
            "JUPYTER_DATA_DIR": str(self.home / "user"),
            "JUPYTER_CONFIG_DIR": str(self.home / "config"),
            "JUPYTER_RUNTIME_DIR": str(self.home / "runtime"),
            "JUPYTER_NO_CONFIG": "1",
        }

    def start(self) -> None:
        """Start, and return when a request is answered; measure the time until then.

        Raises
        ------
        BenchmarkError
            If the process ends or does not listen within 60 s, or if the extension is on by
            mistake; the message has the end of the log.
        """
        self.home.mkdir(parents=True, exist_ok=True)
        write_kernelspec(self.home)
        self.address.prepare()
        with (self.home / "server.log").open("ab") as log:
            begin = time.monotonic()
            self._process = subprocess.Popen(
                self.argv(),
                env=self.environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            while not self._answers(begin):
                if self._process.poll() is not None or time.monotonic() > begin + 60:
                    raise BenchmarkError(f"{self.name} does not listen:\n{self.log_tail()}")
                time.sleep(0.002)
            self._prove_what_it_is()
        except BaseException:  # also if this program is terminated
            self.stop()
            raise

    def _prove_what_it_is(self) -> None:
        """Check that the extension was loaded if it should be, and only then.

        jupyter_server continues without an extension that fails; the figures would then be
        meaningless.
        """
        loaded = LOADED in self.log_text()
        if loaded is not (self.name == EXTENSION):
            told = (
                "loaded the kbridge extension" if loaded else "runs without the kbridge extension"
            )
            raise BenchmarkError(f"{self.name} {told}:\n{self.log_tail()}")

    def _answers(self, begin: float) -> bool:
        """Connect, measure time and memory, and return whether a request on that connection is
        answered.

        An accepted connection is not enough: jupyter_server listens briefly to check whether the
        port is free, long before it serves requests.
        """
        try:
            sock = self.address.connect(10)
        except OSError:
            return False
        with sock:
            self.listening_after = time.monotonic() - begin
            self.rss_then = measure.rss(self.pid)
            try:
                sock.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return sock.recv(1000).startswith(b"HTTP/1.1 ")
            except ConnectionError:
                return False

    def log_text(self) -> str:
        return (self.home / "server.log").read_text(errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.log_text().splitlines()[-15:])

    def stop(self) -> None:
        """End the process and its remaining kernels; may be called twice."""
        process, self._process = self._process, None
        if process is None:
            return
        kernels = measure.children(process.pid) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(6)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        for pid in kernels:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it ended with its server, as expected

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send a REST request; return the parsed reply, or None if it has no body.

        Raises
        ------
        BenchmarkError
            If the status is not 2xx.
        """
        connection = http.client.HTTPConnection(HOST)
        connection.sock = self.address.connect(60)
        headers = {"Authorization": f"token {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, data, headers)
            reply = connection.getresponse()
            text = reply.read()
        finally:
            connection.close()
        if not 200 <= reply.status < 300:
            raise BenchmarkError(f"{self.name}: {method} {path}: {reply.status} {text[:300]!r}")
        return json.loads(text) if text else None

    @contextmanager
    def kernel(self, spec: str = "stub") -> Iterator[str]:
        """Start a kernel for a `with` block; yields its id."""
        kernel_id: str = self.request("POST", "/api/kernels", {"name": spec})["id"]
        try:
            yield kernel_id
        finally:
            self.request("DELETE", f"/api/kernels/{kernel_id}")
