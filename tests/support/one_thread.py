"""A kernel with a single thread: `python one_thread.py CONNECTION_FILE`.

It reads its shell and control sockets only between two requests, and stdin only while it waits for
an answer, as many kernels of other languages do. Its ROUTER sockets have the default behaviour of
libzmq: they ignore a second peer with an identity that they still know.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import zmq

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.scripted_kernel import ScriptedKernel, protocol


class Stdout(io.TextIOBase):
    """Publishes written text immediately."""

    def __init__(self, kernel: OneThread) -> None:
        self.kernel = kernel

    def write(self, text: str) -> int:
        self.kernel.stream(text, self.kernel.parent)
        return len(text)


class OneThread(ScriptedKernel):
    """Runs Python, one request at a time."""

    def __init__(self, info: dict[str, Any]) -> None:
        super().__init__(info)
        self.parent: dict[str, Any] = {}
        self.count = 0
        self.leaves_out_idle = False  # for the next request
        self.names: dict[str, Any] = {"input": self.ask, "kernel": self}

    def run(self) -> None:
        poller = zmq.Poller()
        for name in ("shell", "control", "hb"):
            poller.register(self.sockets[name], zmq.POLLIN)
        names = {socket: name for name, socket in self.sockets.items()}
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                for socket, _ in poller.poll():
                    frames = socket.recv_multipart()
                    if names[socket] == "hb":
                        socket.send_multipart(frames)
                    else:
                        self.answer(names[socket], frames)

    def answer(self, channel: str, frames: list[bytes]) -> None:
        at = frames.index(b"<IDS|MSG>")
        self.idents = frames[:at]
        self.parent, content = json.loads(frames[at + 2]), json.loads(frames[at + 5])
        request = self.parent["msg_type"]
        self.say("status", {"execution_state": "busy"}, self.parent)
        reply: dict[str, Any] = {"status": "ok"}
        if request == "kernel_info_request":
            reply |= protocol()
        elif request == "execute_request":
            reply = self.execute(content)
        kind = request.replace("_request", "_reply")
        self.send(self.parts(kind, reply, self.parent), channel=channel)
        if self.leaves_out_idle:
            self.leaves_out_idle = False
        else:
            self.say("status", {"execution_state": "idle"}, self.parent)
        if request == "shutdown_request":
            self.flush()
            sys.exit()

    def execute(self, content: dict[str, Any]) -> dict[str, Any]:
        if content.get("store_history"):
            self.count += 1
        made = {"code": content["code"], "execution_count": self.count}
        self.say("execute_input", made, self.parent)
        out = Stdout(self)
        try:
            code = compile(ast.parse(content["code"]), "<cell>", "exec")
            with contextlib.redirect_stdout(out):  # type: ignore[type-var]
                exec(code, self.names)
        except BaseException as error:  # noqa: BLE001 - KeyboardInterrupt, too
            said = {
                "ename": type(error).__name__,
                "evalue": str(error),
                "traceback": traceback.format_exc().splitlines(),
            }
            self.say("error", said, self.parent)
            return {"status": "error", "execution_count": self.count, **said}
        return {"status": "ok", "execution_count": self.count, "user_expressions": {}}

    def ask(self, prompt: str = "") -> str:
        asked = self.parts("input_request", {"prompt": prompt, "password": False}, self.parent)
        self.send(asked, channel="stdin")
        frames = self.sockets["stdin"].recv_multipart()
        return str(json.loads(frames[-1])["value"])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    OneThread(json.loads(Path(sys.argv[1]).read_text())).run()
