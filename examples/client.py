"""Run code on a kbridge (or Jupyter) server and print what comes of it.

    python client.py http://127.0.0.1:8888 --token TOKEN "print('hello')"
    python client.py http://127.0.0.1:8888 --token TOKEN - < script.py
    python client.py http://127.0.0.1:8888 --token TOKEN --kernel-id ID "x"   # a kernel that runs

Needs the package `websockets`, and nothing else beside Python.
"""

import argparse
import json
import os
import struct
import sys
import urllib.request
import uuid
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

from websockets.sync.client import connect

PROTOCOL = "v1.kernel.websocket.jupyter.org"
SESSION = uuid.uuid4().hex


def encode(channel: str, message: dict) -> bytes:
    """Make a v1 frame: a count, that many offsets (little-endian u64), channel, four JSON parts."""
    parts = [message[name] for name in ("header", "parent_header", "metadata", "content")]
    raw = [channel.encode(), *(json.dumps(part).encode() for part in parts)]
    offsets = [8 * (len(raw) + 2)]
    for part in raw:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(raw)


def decode(frame: bytes) -> dict:
    """Read a v1 frame; buffers, which follow the content, are left out."""
    (count,) = struct.unpack_from("<Q", frame)
    offsets = struct.unpack_from(f"<{count}Q", frame, 8)
    raw = [frame[offsets[i] : offsets[i + 1]] for i in range(5)]
    header, parent, _, content = map(json.loads, raw[1:])
    return {"channel": raw[0].decode(), "header": header, "parent": parent, "content": content}


def message(msg_type: str, content: dict, parent: dict | None = None) -> dict:
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

    def rest(self, method: str, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self.headers, method=method)
        with urllib.request.urlopen(request) as reply:
            return json.loads(reply.read() or "{}")

    @contextmanager
    def kernel(self, name: str | None, kernel_id: str | None):
        """Give the id of a kernel; one that was started for this is shut down after."""
        if kernel_id:
            yield kernel_id
            return
        kernel_id = self.rest("POST", "/api/kernels", {"name": name} if name else {})["id"]
        try:
            yield kernel_id
        finally:
            self.rest("DELETE", f"/api/kernels/{quote(kernel_id)}")

    def channels(self, kernel_id: str):
        """Open a kernel's websocket."""
        url = f"ws{self.url.removeprefix('http')}/api/kernels/{quote(kernel_id)}/channels"
        return connect(
            f"{url}?{urlencode({'session_id': SESSION})}",
            subprotocols=[PROTOCOL],
            additional_headers=self.headers,
            max_size=None,
            proxy=None,
        )


def run(websocket, code: str) -> bool:
    """Run code, and show its output as it comes; tell whether it ended well."""
    request = message("execute_request", {"code": code, "silent": False, "allow_stdin": True})
    websocket.send(encode("shell", request))
    status, idle = None, False
    while status is None or not idle:  # the reply and the end of the output, in either order
        msg = decode(websocket.recv())
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
    parser = argparse.ArgumentParser(description="Run code on a Jupyter kernel somewhere else.")
    parser.add_argument("url", help="the server's, as http://127.0.0.1:8888")
    parser.add_argument("code", help="what to run; - reads standard input")
    parser.add_argument("--token", default=os.environ.get("JUPYTER_TOKEN", ""))
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--kernel", metavar="NAME", help="kernelspec to start")
    which.add_argument("--kernel-id", metavar="ID", help="a kernel that runs already")
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
