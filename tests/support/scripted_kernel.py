"""A kernel that sends what a test tells it to send: `python scripted_kernel.py CONNECTION_FILE`.

It runs the code of each `execute_request` in its own process, with the kernel as `k` and the
request's header as `parent`, so that each test contains its fault. Two environment variables set
faults that must exist before the first request:

- KERNEL_SCRIPT_PROTOCOL: the protocol version in kernel_info_reply, as JSON; `null` leaves it out
- KERNEL_SCRIPT_MUTE: `all`: the kernel answers nothing; any other value: it does not answer
  kernel_info_request
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import zmq

_PARTS = 4  # header, parent header, metadata, content


class ScriptedKernel:
    """The sockets of a kernel, and their operations."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.key = info["key"].encode()
        self.session = uuid.uuid4().hex
        self.context = zmq.Context()
        self.idents: list[bytes] = []  # the sender of the current request
        self.beats = 0
        kinds = {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER}
        kinds |= {"hb": zmq.ROUTER, "iopub": zmq.XPUB}
        self.sockets = {}
        for name, kind in kinds.items():
            socket = self.sockets[name] = self.context.socket(kind)
            socket.sndhwm = 0
            socket.bind(f"tcp://{info['ip']}:{info[f'{name}_port']}")

    # -- what tests call ------------------------------------------------------------------------

    def parts(self, msg_type: str, content: Any, parent: Any = None, **header: Any) -> list[bytes]:
        """Return the four parts of a valid message, except for the fields that `header` changes."""
        header = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": self.session,
            "username": "scripted",
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.3",
            **header,
        }
        return [json.dumps(part).encode() for part in (header, parent or {}, {}, content)]

    def sign(self, parts: list[bytes]) -> bytes:
        mac = hmac.new(self.key, b"".join(parts[:_PARTS]), hashlib.sha256)
        return mac.hexdigest().encode()

    def send(self, parts: list[bytes], signature: bytes | None = None, channel: str = "") -> None:
        """Send four parts and buffers, on iopub or to the sender of the current request."""
        signature = self.sign(parts) if signature is None else signature
        self.send_raw([b"<IDS|MSG>", signature, *parts], channel)

    def send_raw(self, frames: list[bytes], channel: str = "") -> None:
        head = self.idents if channel else [b"topic"]
        self.sockets[channel or "iopub"].send_multipart([*head, *frames])

    def say(self, msg_type: str, content: Any, parent: Any = None, **header: Any) -> None:
        self.send(self.parts(msg_type, content, parent, **header))

    def stream(self, text: str, parent: Any = None) -> None:
        self.say("stream", {"name": "stdout", "text": text}, parent)

    def flush(self) -> None:
        """Flush all messages and close the sockets."""
        for socket in self.sockets.values():
            socket.close(linger=-1)
        self.context.term()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    # -- its life -------------------------------------------------------------------------------

    def run(self) -> None:
        poller = zmq.Poller()
        for socket in self.sockets.values():
            poller.register(socket, zmq.POLLIN)
        names = {socket: name for name, socket in self.sockets.items()}
        while True:
            for socket, _ in poller.poll():
                frames = socket.recv_multipart()
                name = names[socket]
                if name == "hb":
                    socket.send_multipart(frames)
                    self.beats += 1
                elif name in ("shell", "control"):
                    self.answer(name, frames)

    def answer(self, channel: str, frames: list[bytes]) -> None:
        at = frames.index(b"<IDS|MSG>")
        self.idents = frames[:at]
        parent, content = json.loads(frames[at + 2]), json.loads(frames[at + 5])
        request = parent["msg_type"]
        mute = os.environ.get("KERNEL_SCRIPT_MUTE", "")
        if mute == "all" or (mute and request == "kernel_info_request"):
            return
        self.say("status", {"execution_state": "busy"}, parent)
        reply: dict[str, Any] = {"status": "ok"}
        if request == "kernel_info_request":
            reply |= protocol()
        elif request == "execute_request":
            exec(content["code"], {"k": self, "parent": parent, "os": os})
        self.send(self.parts(request.replace("_request", "_reply"), reply, parent), channel=channel)
        self.say("status", {"execution_state": "idle"}, parent)
        if request == "shutdown_request":
            self.flush()
            sys.exit()


def protocol() -> dict[str, Any]:
    said = json.loads(os.environ.get("KERNEL_SCRIPT_PROTOCOL", '"5.3"'))
    return {} if said is None else {"protocol_version": said}


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as idle kernels do
    ScriptedKernel(json.loads(Path(sys.argv[1]).read_text())).run()
