"""Run code on a kbridge (or Jupyter) server and print its output.

    python client.py http://127.0.0.1:8888 --token TOKEN "print('hello')"
    python client.py http://127.0.0.1:8888 --token TOKEN - < script.py
    python client.py http://127.0.0.1:8888 --token TOKEN --kernel-id ID "x"   # on a running kernel

Needs the package `websockets`.
"""

import argparse
import json
import os
import struct
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

PROTOCOL = Subprotocol("v1.kernel.websocket.jupyter.org")
SESSION = uuid.uuid4().hex


def encode(channel: str, message: dict[str, Any]) -> bytes:
    """Return a v1 frame: number of offsets, offsets (little-endian u64), channel, JSON parts."""
    parts = [message[name] for name in ("header", "parent_header", "metadata", "content")]
    raw = [channel.encode(), *(json.dumps(part).encode() for part in parts)]
    offsets = [8 * (len(raw) + 2)]
    for part in raw:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(raw)


def decode(frame: bytes) -> dict[str, Any]:
    """Parse a v1 frame; ignore the buffers, which follow the content."""
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    raw = [frame[offsets[i] : offsets[i + 1]] for i in range(5)]
    header, parent, _, content = map(json.loads, raw[1:])
    return {"channel": raw[0].decode(), "header": header, "parent": parent, "content": content}


def message(
    msg_type: str, content: dict[str, Any], parent: dict[str, Any] | None = None
) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": msg_type,
        "session": SESSION,
        "username": "",
        "date": datetime.now(UTC).isoformat(),
        "version": "5.3",
    }
    return {"header": header, "parent_header": parent or {}, "metadata": {}, "content": content}


class Server:
    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Authorization": f"token {token}"} if token else {}

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers, method=method)
        with urllib.request.urlopen(request) as reply:
            answer: dict[str, Any] = json.loads(reply.read() or "{}")
        return answer

    @contextmanager
    def kernel(self, name: str | None, kernel_id: str | None) -> Iterator[str]:
        """Yield the id of a kernel; if it was started for this, shut it down afterwards."""
        if kernel_id:
            yield kernel_id
            return
        started: str = self.rest("POST", "/api/kernels", {"name": name} if name else {})["id"]
        try:
            yield started
        finally:
            self.rest("DELETE", f"/api/kernels/{quote(started)}")

    def channels(self, kernel_id: str) -> ClientConnection:
        """Open the websocket of a kernel."""
        url = f"ws{self.url.removeprefix('http')}/api/kernels/{quote(kernel_id)}/channels"
        return connect(
            f"{url}?{urlencode({'session_id': SESSION})}",
            subprotocols=[PROTOCOL],
            additional_headers=self.headers,
            max_size=None,
            proxy=None,
        )


def run(websocket: ClientConnection, code: str) -> bool:
    """Run code and print its output; return True if it raised no error."""
    request = message("execute_request", {"code": code, "silent": False, "allow_stdin": True})
    websocket.send(encode("shell", request))
    status, idle = "", False
    while not status or not idle:  # the reply and the end of the output come in either order
        msg = decode(websocket.recv(decode=False))
        if msg["parent"].get("msg_id") != request["header"]["msg_id"]:
            continue
        content = msg["content"]
        match msg["header"]["msg_type"]:
            case "stream":
                stream = sys.stderr if content["name"] == "stderr" else sys.stdout
                print(content["text"], end="", file=stream, flush=True)
            case "execute_result" | "display_data":
                print(content["data"].get("text/plain", ""), flush=True)
            case "error":
                print("\n".join(content["traceback"]), file=sys.stderr)
            case "input_request":
                reply = message("input_reply", {"value": input(content["prompt"])}, msg["header"])
                websocket.send(encode("stdin", reply))
            case "status":
                idle = content["execution_state"] == "idle"
            case "execute_reply":
                status = content["status"]
    return status == "ok"


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run code on a kernel of a kbridge or Jupyter server."
    )
    parser.add_argument("url", help="URL of the server, such as http://127.0.0.1:8888")
    parser.add_argument("code", help="the code to run; - reads it from standard input")
    parser.add_argument("--token", default=os.environ.get("JUPYTER_TOKEN", ""))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--kernel", metavar="NAME", help="name of the kernelspec to start")
    which.add_argument("--kernel-id", metavar="ID", help="id of a running kernel")
    args = parser.parse_args()
    code = sys.stdin.read() if args.code == "-" else args.code
    server = Server(args.url, args.token)
    with (
        server.kernel(args.kernel, args.kernel_id) as kernel_id,
        server.channels(kernel_id) as websocket,
    ):
        return 0 if run(websocket, code) else 1


if __name__ == "__main__":
    sys.exit(main())
