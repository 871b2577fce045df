"""The floor: a bare ZeroMQ client in Python without a server in between.

Its CPU time is that of this process (all threads). It only receives messages, and does not verify,
store or forward them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from benchmarks.address import HOST, free_port
from benchmarks.measure import BenchmarkError
from benchmarks.servers import KERNEL

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
WAIT_MS = 20_000


class Bare:
    """A DEALER and a SUB socket, connected to a separate stub kernel."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.key = info["key"].encode()
        self.session = uuid.uuid4().hex
        self.sent = 0
        self.context = zmq.Context()
        self.shell = self._connect(zmq.DEALER, info["shell_port"])
        self.iopub = self._connect(zmq.SUB, info["iopub_port"])
        self.iopub.subscribe(b"")

    def _connect(self, kind: int, port: int) -> zmq.Socket[bytes]:
        sock = self.context.socket(kind)
        sock.linger = 0
        sock.set_hwm(0)
        sock.rcvtimeo = WAIT_MS
        sock.connect(f"tcp://{HOST}:{port}")
        return sock

    def request(self, msg_type: str, content: dict[str, Any]) -> bytes:
        """Send a request; return its msg_id."""
        self.sent += 1
        msg_id = f"{self.session}_{self.sent}"
        header = {"msg_id": msg_id, "msg_type": msg_type, "session": self.session}
        parts = [json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
        digest = hmac.new(self.key, b"".join(parts), hashlib.sha256).hexdigest().encode()
        self.shell.send_multipart([b"<IDS|MSG>", digest, *parts])
        return msg_id.encode()

    def execute(self, command: dict[str, Any]) -> bytes:
        """Send a command for the stub kernel; return its msg_id."""
        return self.request("execute_request", {"code": json.dumps(command)})

    def wait_done(self, msg_id: bytes) -> None:
        """Receive until the reply and the idle of a request have arrived."""
        self.shell.recv_multipart()
        while True:
            frames = self.iopub.recv_multipart()
            if b'"idle"' in frames[-1] and msg_id in frames[-3]:
                return

    def receive_until(self, token: str) -> int:
        """Receive output until the message with a token; return the number before it."""
        wanted = token.encode()
        count = 0
        recv = self.iopub.recv_multipart
        while wanted not in recv()[6]:
            count += 1
        return count

    def receive_big_until(self, token: str) -> int:
        """The same without copying; return the number of bytes."""
        wanted = token.encode()
        nbytes = 0
        while True:
            frames = self.iopub.recv_multipart(copy=False)
            if wanted in frames[6].bytes:
                return nbytes
            nbytes += sum(len(f) for f in frames[7:])


@contextmanager
def bare(home: Path) -> Iterator[Bare]:
    """Start a stub kernel and a subscribed client for a `with` block."""
    home.mkdir(parents=True, exist_ok=True)
    info: dict[str, Any] = {"ip": HOST, "transport": "tcp", "key": secrets.token_hex(16)}
    ports: set[int] = set()
    while len(ports) < len(PORTS):
        ports.add(free_port())
    info |= dict(zip(PORTS, ports, strict=True))
    path = home / "floor.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps(info))
    with subprocess.Popen([sys.executable, str(KERNEL), str(path)]) as process:
        client = Bare(info)
        try:
            _prove_subscription(client)
            yield client
        finally:
            client.context.destroy(linger=0)
            process.terminate()


def _prove_subscription(client: Bare) -> None:
    """Execute until the output arrives: a new SUB socket misses earlier messages."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        msg_id = client.request("kernel_info_request", {})
        client.shell.recv_multipart()
        while client.iopub.poll(100):
            frames = client.iopub.recv_multipart()
            if b'"idle"' in frames[-1] and msg_id in frames[-3]:
                return
    raise BenchmarkError("the bare client never saw output")
