"""A stub kernel that uses almost no CPU: it sends messages that were signed in advance.

It runs as a separate script (`python kernel.py CONNECTION_FILE`), imports little, and binds the
five sockets of its connection file. The code of an `execute_request` is a JSON object; other code
counts as an empty object. The answer to a command is that of a kernel: busy, execute_input, the
messages of the command, execute_reply, idle.

::

    {}                                       nothing else
    {"echo": TEXT}                           one stream message
    {"pid": true}                            the process id, as a stream message
    {"flood": N, "size": BYTES}              N numbered stream messages of BYTES of text
        "end": TOKEN                         ... and one more whose text is TOKEN
        "batch": M, "interval": SECONDS      ... M at a time, with pauses (default: none)
        "ids": "random"                      ... with random ids (default: with numbers)
    {"blob": BYTES, "count": N}              N display_data messages with a buffer of BYTES each
        "end": TOKEN                         ... and the stream message, as above

`execute_input` does not repeat the code, because a reader that waits for TOKEN would take it as the
end. The text of message i is `#%08d `, padding, and a newline: a reader may count lines or find
gaps.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import zmq

DELIMITER = b"<IDS|MSG>"
EMPTY = b"{}"
DATE = "2026-01-01T00:00:00.000000Z"
INFO = {
    "status": "ok",
    "protocol_version": "5.3",
    "implementation": "stub",
    "implementation_version": "1",
    "language_info": {
        "name": "json",
        "version": "1",
        "mimetype": "application/json",
        "file_extension": ".json",
    },
    "banner": "a stub",
    "help_links": [],
}
Parts = list[bytes]


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


class Stub:
    """The kernel of one connection file."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.hmac = hmac.new(info["key"].encode(), digestmod=hashlib.sha256)
        self.session = os.urandom(8).hex()
        self.sent = 0
        self.running = True
        self.context = zmq.Context()
        self.shell = self._bind(info, "shell", zmq.ROUTER)
        self.control = self._bind(info, "control", zmq.ROUTER)
        self.stdin = self._bind(info, "stdin", zmq.ROUTER)
        self.heartbeat = self._bind(info, "hb", zmq.ROUTER)
        self.iopub = self._bind(info, "iopub", zmq.PUB)

    def _bind(self, info: dict[str, Any], name: str, kind: int) -> zmq.Socket[bytes]:
        sock = self.context.socket(kind)
        sock.linger = 1000
        sock.set_hwm(0)
        separator = ":" if info["transport"] == "tcp" else "-"
        sock.bind(f"{info['transport']}://{info['ip']}{separator}{info[name + '_port']}")
        return sock

    def parts(self, msg_type: str, parent: bytes, content: bytes, msg_id: str = "") -> Parts:
        """Return delimiter, signature and the four parts of a new message."""
        self.sent += 1
        header = (
            f'{{"msg_id": "{msg_id or f"{self.session}_{self.sent}"}", "msg_type": "{msg_type}", '
            f'"username": "stub", "session": "{self.session}", "date": "{DATE}", '
            f'"version": "5.3"}}'
        ).encode()
        digest = self.hmac.copy()
        digest.update(header + parent + EMPTY + content)
        return [DELIMITER, digest.hexdigest().encode(), header, parent, EMPTY, content]

    def publish(self, msg_type: str, parent: bytes, content: bytes) -> None:
        topic = f"kernel.{self.session}.{msg_type}".encode()
        self.iopub.send_multipart([topic, *self.parts(msg_type, parent, content)])

    def stream(self, parent: bytes, text: str) -> None:
        self.publish("stream", parent, dumps({"name": "stdout", "text": text}))

    def serve(self) -> None:
        poller = zmq.Poller()
        for sock in (self.shell, self.control, self.heartbeat):
            poller.register(sock, zmq.POLLIN)
        parent = os.getppid()
        while self.running and os.getppid() == parent:
            for sock, _ in poller.poll(1000):
                self.take(sock)
        self.context.destroy(linger=1000)

    def take(self, sock: zmq.Socket[bytes]) -> None:
        """Read one message of a socket and answer it."""
        frames = sock.recv_multipart()
        if sock is self.heartbeat:
            sock.send_multipart(frames)
            return
        cut = frames.index(DELIMITER)
        idents, (header, _parent, _metadata, content) = frames[:cut], frames[cut + 2 : cut + 6]
        self.publish("status", header, b'{"execution_state": "busy"}')
        msg_type = json.loads(header)["msg_type"]
        reply = self.handle(msg_type, header, json.loads(content))
        answer = self.parts(msg_type.replace("_request", "_reply"), header, dumps(reply))
        sock.send_multipart([*idents, *answer])
        self.publish("status", header, b'{"execution_state": "idle"}')

    def handle(self, msg_type: str, header: bytes, content: dict[str, Any]) -> dict[str, Any]:
        if msg_type == "kernel_info_request":
            return INFO
        if msg_type == "shutdown_request":
            self.running = False
            return {"status": "ok", "restart": content.get("restart", False)}
        if msg_type == "execute_request":
            code = content["code"]
            self.publish("execute_input", header, b'{"code": "", "execution_count": 1}')
            self.run(header, json.loads(code) if code.startswith("{") else {})
            return {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}
        return {"status": "ok"}

    def run(self, parent: bytes, command: dict[str, Any]) -> None:
        if "echo" in command:
            self.stream(parent, command["echo"])
        if "pid" in command:
            self.stream(parent, f"pid={os.getpid()}")
        if "flood" in command:
            self.send_list(list(self.flood(parent, command)), command, self.iopub.send_multipart)
        if "blob" in command:
            ready = list(self.blobs(parent, command))
            # Buffers of this size are passed to ZeroMQ by reference, so that the kernel is not the
            # bottleneck.
            self.send_list(ready, command, lambda m: self.iopub.send_multipart(m, copy=False))
        if "end" in command:
            self.stream(parent, command["end"])

    def flood(self, parent: bytes, command: dict[str, Any]) -> Iterator[Parts]:
        padding = "x" * (command["size"] - 11)
        topic = f"kernel.{self.session}.stream".encode()
        random_ids = command.get("ids") == "random"
        for i in range(command["flood"]):
            msg_id = str(uuid.uuid4()) if random_ids else ""
            content = f'{{"name": "stdout", "text": "#{i:08d} {padding}\\n"}}'.encode()
            yield [topic, *self.parts("stream", parent, content, msg_id)]

    def blobs(self, parent: bytes, command: dict[str, Any]) -> Iterator[Parts]:
        blob = bytes(command["blob"])
        topic = f"kernel.{self.session}.display_data".encode()
        content = dumps({"data": {"text/plain": "blob"}, "metadata": {}, "transient": {}})
        for _ in range(command["count"]):
            yield [topic, *self.parts("display_data", parent, content), blob]

    def send_list(
        self, ready: list[Parts], command: dict[str, Any], send: Callable[[Parts], object]
    ) -> None:
        """Send a list of messages; read control between batches, as a busy kernel does."""
        batch = command.get("batch", 500)
        interval = command.get("interval", 0.0)
        due = time.monotonic()
        for start in range(0, len(ready), batch):
            for message in ready[start : start + batch]:
                send(message)
            due += interval
            wait = max(0.0, due - time.monotonic())
            while self.control.poll(wait * 1000):
                self.take(self.control)
                wait = max(0.0, due - time.monotonic())


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open(sys.argv[-1], encoding="utf-8") as file:  # noqa: PTH123 - pathlib would cost start-up
        info = json.load(file)
    Stub(info).serve()


if __name__ == "__main__":
    main()
