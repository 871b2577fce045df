"""The server on a terminal (a pty), and without any standard stream."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tests.support.waiting import TIMEOUT, eventually

COMMAND = [sys.executable, "-m", "kbridge", "--port=0"]
TOKEN = "correct-horse-battery-staple"
SPEC = {
    "argv": [sys.executable, "-c", "import signal; signal.pause()", "{connection_file}"],
    "display_name": "mute",
    "language": "python",
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "KG_"))}
    for name in ("CONFIG", "RUNTIME", "DATA"):
        found[f"JUPYTER_{name}_DIR"] = str(tmp_path / name.lower())
    spec = tmp_path / "data" / "kernels" / "mute" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(SPEC))
    return {**found, "JUPYTER_TOKEN": TOKEN, "JUPYTER_PLATFORM_DIRS": "1"}


class Terminal:
    """A server whose controlling terminal is a pty."""

    def __init__(self, *args: str, env: dict[str, str]) -> None:
        self.master, slave = pty.openpty()

        def own_the_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*COMMAND, *args],
            env=env,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=own_the_terminal,  # noqa: PLW1509 - this process has one thread
        )
        os.close(slave)
        self.said = ""

    @property
    def flags(self) -> int:
        """The status flags of the terminal, as its programs see them."""
        info = Path(f"/proc/{self.process.pid}/fdinfo/0").read_text()
        found = re.search(r"^flags:\s+(\d+)$", info, re.MULTILINE)
        assert found, info
        return int(found[1], 8)

    def until(self, pattern: str) -> re.Match[str]:
        """Read until new output arrives; discard all earlier output."""
        deadline = time.monotonic() + TIMEOUT
        while not (found := re.search(pattern, self.said)):
            assert time.monotonic() < deadline, f"not said: {pattern}\n{self.said}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.said += os.read(self.master, 1 << 16).decode()
                except OSError:  # the other end is closed
                    found = re.search(pattern, self.said)
                    assert found, f"ended without saying {pattern}\n{self.said}"
                    break
        self.said = self.said[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def ends(self) -> int:
        self.until(r"closing all connections")
        return eventually(lambda: [c for c in [self.process.poll()] if c is not None], "it ends")[0]

    def start_kernel(self, url: str) -> str:
        request = urllib.request.Request(
            url + "api/kernels",
            data=json.dumps({"name": "mute"}).encode(),
            headers={"Authorization": f"token {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            return str(json.load(reply)["id"])

    def kernels(self, url: str) -> int:
        request = urllib.request.Request(
            url + "api/kernels", headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            return len(json.load(reply))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(env: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*args: str) -> Terminal:
        started.append(Terminal(*args, env=env))
        return started[-1]

    yield start
    for one in started:
        one.close()


def _url(terminal: Terminal) -> str:
    url = terminal.until(r"(http://[^\s?]+/)\S*\s")[1]
    terminal.until(r"Press Ctrl-C to stop it")
    return url


QUESTION = r"Shut down this server and 1 kernel \(y/\[n\]\)\?"


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_ctrl_c_asks_if_kernels_would_end(
    terminal: Callable[..., Terminal], *, use_uvloop: bool
) -> None:
    console = terminal(f"--KbridgeApp.use_uvloop={use_uvloop}")
    url = _url(console)
    console.start_kernel(url)
    for answer in ("n\n", "\n"):
        console.type("\x03")
        console.until(QUESTION)
        console.type(answer)
        console.until(r"The server keeps running at http")
        assert console.kernels(url) == 1
        assert not console.flags & os.O_NONBLOCK, "the shell uses the terminal, too"
    console.type("\x03")
    console.until(QUESTION)
    console.until(r"no answer")  # after five seconds
    console.until(r"The server keeps running")
    assert console.kernels(url) == 1
    console.type("\x03")
    console.until(QUESTION)
    console.type("y\n")
    assert console.ends() == 0


def test_a_second_ctrl_c_answers_yes(terminal: Callable[..., Terminal]) -> None:
    console = terminal()
    console.start_kernel(_url(console))
    console.type("\x03")
    console.until(QUESTION)
    console.type("\x03")
    assert console.ends() == 0


@pytest.mark.parametrize(
    ("args", "kernels"),
    [([], 0), (["-y"], 1), (["--shutdown-kernels-on-exit=false"], 1)],
    ids=["no kernel", "-y", "kernels stay"],
)
def test_ctrl_c_ends_the_server_at_once_if_no_kernel_would_end(
    terminal: Callable[..., Terminal], args: list[str], kernels: int
) -> None:
    console = terminal(*args)
    url = _url(console)
    ids = [console.start_kernel(url) for _ in range(kernels)]
    console.type("\x03")
    assert console.ends() == 0
    assert "Shut down" not in console.said
    if "--shutdown-kernels-on-exit=false" in args:  # another server ends the kernel that was left
        other = terminal()
        assert other.kernels(_url(other)) == len(ids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_logs_no_warning(
    terminal: Callable[..., Terminal], number: signal.Signals
) -> None:
    console = terminal()
    _url(console)
    console.process.send_signal(number)
    console.until(rf"I KbridgeApp: {number.name}: shutting down 0 kernels")
    assert console.ends() == 0


CLOSED = [set(c) for size in range(1, 4) for c in combinations((0, 1, 2), size)]


@pytest.mark.parametrize("closed", CLOSED, ids=lambda c: "".join(map(str, sorted(c))))
def test_closed_standard_streams(env: dict[str, str], tmp_path: Path, closed: set[int]) -> None:
    shell = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    kept = [f"{number}>>{tmp_path / 'log'}" for number in {1, 2} - closed]
    process = subprocess.Popen(
        ["sh", "-c", f"exec {' '.join(COMMAND)} {shell} {' '.join(kept)}"], env=env
    )
    try:

        def running() -> str:
            assert process.poll() is None, "it ended"
            for file in (tmp_path / "runtime").glob(f"*-{process.pid}*.json"):
                if "url" in (info := json.loads(file.read_text())):
                    return str(info["url"])
            return ""

        url = eventually(running, "the server writes its runtime file")
        request = urllib.request.Request(
            f"{url}api/kernels", headers={"Authorization": f"token {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
            assert json.load(reply) == []
        for number in closed:
            assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path(os.devnull)
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0
    for file in tmp_path.glob("log"):
        assert "Traceback" not in file.read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /dev/full")
def test_a_full_stdout_does_not_end_the_server(env: dict[str, str], tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full, (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(COMMAND, env=env, stdout=full, stderr=log)
    try:
        eventually(
            lambda: list((tmp_path / "runtime").glob(f"*-{process.pid}*.json")),
            "the server runs",
        )
    finally:
        process.terminate()
        assert process.wait(TIMEOUT) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
