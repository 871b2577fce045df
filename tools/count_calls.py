"""Count the Python calls, modules and module crossings of five operations of the server.

`python tools/count_calls.py` prints one table. The operations are:

- message: a stream message of the kernel, until the client has acknowledged it;
- request: a request of a client, until the client has acknowledged the reply and the idle status;
- reconnect: a websocket with a known session, from the upgrade until the client has acknowledged
  the message that it missed;
- start: `POST /api/kernels`, until the kernel is connected and nothing more happens;
- restart: `POST /api/kernels/ID/restart` with a websocket open, until nothing more happens.

The columns count

- modules: modules of kbridge with at least one call, and how many modules there are;
- calls: calls of Python functions that kbridge defines; resumed generators are not counted again;
- crossings: calls from a function of one kbridge module to a function of another, also through
  functions of other libraries;
- both ways: pairs of modules that call each other, with at least one crossing in each direction.

The server runs unchanged in the main thread, under `sys.setprofile`. The websocket client runs in
another thread and the kernel (`tests/support/scripted_kernel.py`) in another process, so that only
the server's work is counted. `--tree PATH` counts in another checkout: only the command line, the
REST API and the websocket of that checkout are used.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KERNEL = ROOT / "tests" / "support" / "scripted_kernel.py"
TOKEN = "count-calls"
TIMEOUT = 60.0
ROUNDS = 3  # timers that happen to fire disturb the counts; the round with the fewest calls counts
# Seconds without a call after which an operation counts as finished. An idle server has two timers
# that run once per second, so there is a gap of half a second between them.
IDLE = 0.45
SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"
OPERATIONS = ("message", "request", "reconnect", "start", "restart")
COMPREHENSIONS = {"<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>"}


# The sampler of the event loop's lag runs twice per second, also in an idle server.
SAMPLER = {"metrics/loop_lag.py", "flow/histogram.py"}


@dataclass
class Counts:
    """Calls of one operation."""

    modules: set[str] = field(default_factory=set)
    calls: int = 0
    crossings: Counter[tuple[str, str]] = field(default_factory=Counter)
    steps: list[str] = field(default_factory=list)

    @property
    def both_ways(self) -> list[tuple[str, str]]:
        """Pairs of modules that call each other, in alphabetical order."""
        return sorted(p for p in self.crossings if p[0] < p[1] and p[::-1] in self.crossings)


class Profile:
    """A profile function for `sys.setprofile` that counts calls within one package.

    Parameters
    ----------
    package : Path
        Directory of the package; calls of functions in other files are ignored.
    """

    def __init__(self, package: Path) -> None:
        self._prefix = f"{package}{os.sep}"
        self._modules: dict[CodeType, str | None] = {}
        self._counts: Counts | None = None
        self.last = time.monotonic()
        self.latest = ""

    def __call__(self, frame: FrameType, event: str, _arg: object) -> None:
        """Count one call; Python calls this for each function that is entered or left."""
        if event != "call":
            return
        module = self._module(frame.f_code)
        if module is None:
            return
        self.last = time.monotonic()
        self.latest = f"{module}.{frame.f_code.co_qualname}"
        counts = self._counts
        if counts is None or _is_resumed(frame) or frame.f_code.co_name in COMPREHENSIONS:
            return
        counts.calls += 1
        counts.modules.add(module)
        caller = self._caller(frame)
        if caller is not None and caller != module:
            counts.crossings[caller, module] += 1
        depth = _depth(frame)
        counts.steps.append(f"{depth:3} {caller or '-'} -> {module}.{frame.f_code.co_qualname}")

    def begin(self) -> None:
        """Count from now on."""
        self._counts = Counts()

    def end(self) -> Counts:
        """Stop counting and return the counts since `begin`."""
        counts, self._counts = self._counts, None
        assert counts is not None, "begin() was not called"
        return counts

    def wait_idle(self, seconds: float = IDLE) -> None:
        """Wait until no function of the package was called for some time."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < self.last + seconds:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server does not become idle; last call: {self.latest}")
            time.sleep(0.05)

    def _module(self, code: CodeType) -> str | None:
        try:
            return self._modules[code]
        except KeyError:
            name = code.co_filename
            found = name.removeprefix(self._prefix) if name.startswith(self._prefix) else None
            if found in SAMPLER:
                found = None
            self._modules[code] = found
            return found

    def _caller(self, frame: FrameType) -> str | None:
        """Return the module of the nearest function of the package that led to this call."""
        above = frame.f_back
        while above is not None:
            module = self._module(above.f_code)
            if module is not None:
                return module
            above = above.f_back
        return None


def _is_resumed(frame: FrameType) -> bool:
    """Tell whether a generator or coroutine continues, by the argument of its RESUME."""
    return frame.f_lasti > 0 and frame.f_code.co_code[frame.f_lasti + 1] & 3 != 0


def _depth(frame: FrameType) -> int:
    depth = 0
    above = frame.f_back
    while above is not None:
        depth += 1
        above = above.f_back
    return depth


class Websocket:
    """A blocking websocket client that answers pings only when it is told to.

    Parameters
    ----------
    port : int
        Port of the server on 127.0.0.1.
    kernel_id : str
        The kernel whose channels are opened.
    session : str
        The client's `session_id`.
    """

    def __init__(self, port: int, kernel_id: str, session: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._file = self._socket.makefile("rb")
        self._pings: list[bytes] = []
        lines = [
            f"GET /api/kernels/{kernel_id}/channels?session_id={session} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            f"Authorization: token {TOKEN}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}",
        ]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        status = self._file.readline()
        assert b" 101 " in status, status
        while self._file.readline() != b"\r\n":
            pass

    def send(self, msg_type: str, content: dict[str, Any]) -> None:
        """Send a request on the shell channel."""
        header = {
            "msg_id": os.urandom(8).hex(),
            "msg_type": msg_type,
            "session": "count-calls",
            "username": "",
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.3",
        }
        parts = [b"shell", *(json.dumps(part).encode() for part in (header, {}, {}, content))]
        offsets = [8 * (len(parts) + 2)]
        for part in parts:
            offsets.append(offsets[-1] + len(part))
        head = struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets)
        self._frame(0x2, head + b"".join(parts))

    def read_until(self, *texts: str) -> None:
        """Read until each text was in a frame, in any order; pings are kept for `pong`."""
        missing = {text.encode() for text in texts}
        while missing:
            opcode, payload = self._read()
            if opcode == 0x9:
                self._pings.append(payload)
            assert opcode != 0x8, f"the server closed the websocket: {payload!r}"
            missing = {text for text in missing if text not in payload}

    def pong(self) -> None:
        """Answer all pings that have arrived until now, and those that arrive within 0.5 s."""
        self._socket.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                for payload in self._pings:
                    self._frame(0xA, payload)
                self._pings.clear()
                opcode, payload = self._read()
                if opcode == 0x9:
                    self._pings.append(payload)
        # A buffered reader refuses to read again after a timeout.
        self._socket.settimeout(TIMEOUT)
        self._file = self._socket.makefile("rb")

    def reset(self) -> None:
        """Break the connection with an RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._file.close()
        self._socket.close()

    def _frame(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        else:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        self._socket.sendall(head + bytes(4) + payload)

    def _read(self) -> tuple[int, bytes]:
        first, size = self._file.read(2)
        if size == 126:
            (size,) = struct.unpack("!H", self._file.read(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._file.read(8))
        return first & 0xF, self._file.read(size)


class KernelControl:
    """Runs code in the kernel, past the server, while one of its requests is being executed."""

    def __init__(self, websocket: Websocket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(TIMEOUT)
            code = (
                "import json, socket\n"
                f"with socket.create_connection(('127.0.0.1', {listener.getsockname()[1]})) as s:\n"
                "    for line in s.makefile():\n"
                "        exec(json.loads(line), {'k': k, 'parent': parent})\n"
                "        s.sendall(b'.')\n"
            )
            websocket.send("execute_request", {"code": code})
            self._socket, _ = listener.accept()
        self._socket.settimeout(TIMEOUT)

    def run(self, code: str) -> None:
        """Run code in the kernel; `k` is the scripted kernel, `parent` the request's header."""
        self._socket.sendall(json.dumps(code).encode() + b"\n")
        assert self._socket.recv(1) == b".", "the kernel could not run the code"

    def close(self) -> None:
        """Let the request end."""
        self._socket.close()


class Driver:
    """Performs the operations against the server in this process.

    Parameters
    ----------
    port : int
        Where the server listens.
    profile : Profile
        Counts the server's calls.
    rounds : int
        Rounds of each operation.
    """

    def __init__(self, port: int, profile: Profile, rounds: int) -> None:
        self._port = port
        self._profile = profile
        self._rounds = rounds
        self._marks = 0
        self.counts: dict[str, Counts] = {}

    def run(self) -> None:
        """Perform all operations and fill `counts`."""
        self._wait_for_port()
        self._end_kernel(self._start_kernel())  # the first start imports modules
        for _ in range(self._rounds):
            with self._counting("start"):
                kernel_id = self._start_kernel()
            self._use(kernel_id)
            self._end_kernel(kernel_id)

    def _use(self, kernel_id: str) -> None:
        """Perform all operations on a kernel that was just started."""
        websocket = Websocket(self._port, kernel_id, "s1")
        websocket.send("kernel_info_request", {})
        websocket.read_until("kernel_info_reply", '"idle"')
        control = KernelControl(websocket)
        self._message(websocket, control)
        with self._counting("message"):
            self._message(websocket, control)
        websocket = self._reconnect(websocket, control, kernel_id)
        control.close()
        websocket.read_until("execute_reply", '"idle"')
        websocket.pong()
        self._request(websocket)
        with self._counting("request"):
            self._request(websocket)
        with self._counting("restart"):
            self._post(f"/api/kernels/{kernel_id}/restart")
        websocket.reset()

    @contextlib.contextmanager
    def _counting(self, name: str) -> Iterator[None]:
        """Count until the server is idle again; keep the round with the fewest calls."""
        self._profile.wait_idle()
        self._profile.begin()
        yield
        self._profile.wait_idle()
        found = self._profile.end()
        if name not in self.counts or found.calls < self.counts[name].calls:
            self.counts[name] = found

    def _message(self, websocket: Websocket, control: KernelControl) -> None:
        mark = self._mark()
        control.run(f"k.stream({mark!r}, parent)")
        websocket.read_until(mark)
        websocket.pong()

    def _request(self, websocket: Websocket) -> None:
        websocket.send("comm_info_request", {})
        websocket.read_until("comm_info_reply", '"idle"')
        websocket.pong()

    def _reconnect(self, websocket: Websocket, control: KernelControl, kernel_id: str) -> Websocket:
        websocket.reset()
        mark = self._mark()
        control.run(f"k.stream({mark!r}, parent)")
        with self._counting("reconnect"):
            websocket = Websocket(self._port, kernel_id, "s1")
            websocket.read_until(mark)
            websocket.pong()
        return websocket

    def _mark(self) -> str:
        self._marks += 1
        return f"<mark {self._marks}>"

    def _start_kernel(self) -> str:
        return str(self._post("/api/kernels", {"name": "scripted"})["id"])

    def _end_kernel(self, kernel_id: str) -> None:
        self._call("DELETE", f"/api/kernels/{kernel_id}")

    def _post(self, path: str, body: Any = None) -> Any:
        return json.loads(self._call("POST", path, body))

    def _call(self, method: str, path: str, body: Any = None) -> bytes:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        headers = {"Authorization": f"token {TOKEN}", "Connection": "close"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        assert response.status < 300, f"{method} {path}: {response.status} {data!r}"
        return data

    def _wait_for_port(self) -> None:
        deadline = time.monotonic() + TIMEOUT
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)


def count(tree: Path, home: Path, rounds: int = ROUNDS) -> dict[str, Counts]:
    """Run the server of a checkout in this process and count its calls, by operation.

    Parameters
    ----------
    tree : Path
        The checkout: a directory with the package `kbridge` in it.
    home : Path
        An empty directory for everything that the server writes.
    rounds : int
        Rounds of each operation.
    """
    spec = home / "data" / "kernels" / "scripted" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, str(KERNEL), "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "scripted", "language": "python"}))
    for name in [name for name in os.environ if name.startswith(("JUPYTER", "KG_"))]:
        del os.environ[name]
    os.environ |= {
        "JUPYTER_TOKEN": TOKEN,
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    sys.path[0] = str(tree)  # in the place of this script's directory
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    profile = Profile(tree / "kbridge")
    driver = Driver(port, profile, rounds)
    failures: list[str] = []

    def drive() -> None:
        try:
            driver.run()
        except Exception:  # noqa: BLE001 - told by the main thread
            failures.append(traceback.format_exc())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=drive, daemon=True)
    sys.argv = ["kbridge", "--ip=127.0.0.1", f"--port={port}", "--log-level=WARN"]
    thread.start()
    sys.setprofile(profile)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_module("kbridge", run_name="__main__")
    except SystemExit as end:
        if end.code:
            failures.append(f"the server ended with {end.code}")
    finally:
        sys.setprofile(None)
    thread.join(TIMEOUT)
    if failures:
        raise RuntimeError("\n".join(failures))
    return driver.counts


def table(counts: dict[str, Counts], total: int) -> str:
    """Return the counts as text, a line for each operation."""
    lines = [f"{'operation':<10} {'modules':>14} {'calls':>7} {'crossings':>10} {'both ways':>10}"]
    for name in OPERATIONS:
        one = counts[name]
        lines.append(
            f"{name:<10} {f'{len(one.modules)} of {total}':>14} {one.calls:>7}"
            f" {one.crossings.total():>10} {len(one.both_ways):>10}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--tree", type=Path, default=ROOT, help="another checkout to count in")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="rounds of each operation (default: %(default)s)"
    )
    parser.add_argument("--calls", choices=OPERATIONS, help="list each call of one operation")
    parser.add_argument("--pairs", action="store_true", help="list the crossings of all operations")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    options = parser.parse_args(argv)
    tree = options.tree.resolve()
    with tempfile.TemporaryDirectory(prefix="kbridge-count-") as home:
        counts = count(tree, Path(home), options.rounds)
    modules = [path for path in (tree / "kbridge").rglob("*.py") if path.name != "__init__.py"]
    if options.calls:
        print("\n".join(counts[options.calls].steps))
    if options.pairs:
        for name in OPERATIONS:
            one = counts[name]
            print(f"\n{name}")
            for (caller, callee), times in one.crossings.most_common():
                mark = " <->" if (callee, caller) in one.crossings else ""
                print(f"{times:5} {caller} -> {callee}{mark}")
    if options.json:
        found = {
            name: {
                "modules": len(counts[name].modules),
                "calls": counts[name].calls,
                "crossings": counts[name].crossings.total(),
                "both_ways": counts[name].both_ways,
            }
            for name in OPERATIONS
        }
        print(json.dumps({"modules": len(modules), "operations": found}, indent=2))
    elif not options.calls and not options.pairs:
        print(table(counts, len(modules)))


if __name__ == "__main__":
    main()
