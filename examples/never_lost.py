"""Run code on a kernel over an unreliable network and print each line of its output once.

    python never_lost.py http://127.0.0.1:8888 --token TOKEN ID "for i in range(9): print(i)"

Unplug the cable, or kill and restart the server, while it runs. The program connects again, and
the URL parameter `since` names the last message that was printed: the server continues after it.

Needs the package `websockets`.
"""

import argparse
import asyncio
import json
import os
import sys
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

SESSION = uuid.uuid4().hex


def execute_request(code: str) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": SESSION,
        "username": "",
        "date": datetime.now(UTC).isoformat(),
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    return {"channel": "shell", **message}


def show(message: dict[str, Any]) -> None:
    content = message["content"]
    match message["header"]["msg_type"]:
        case "stream":
            stream = sys.stderr if content["name"] == "stderr" else sys.stdout
            print(content["text"], end="", file=stream, flush=True)
        case "execute_result" | "display_data":
            print(content["data"].get("text/plain", ""), flush=True)
        case "error":
            print("\n".join(content["traceback"]), file=sys.stderr)


async def run(url: str, token: str, code: str) -> None:
    request, last = execute_request(code), ""
    headers = {"Authorization": f"token {token}"}
    while True:
        query = {"session_id": SESSION} | ({"since": last} if last else {})
        # While the server cannot be reached, `connect` waits and tries again.
        async for websocket in connect(
            f"{url}?{urlencode(query)}", additional_headers=headers, max_size=None, proxy=None
        ):
            try:
                if not last:
                    await websocket.send(json.dumps(request))
                async for frame in websocket:
                    if isinstance(
                        frame, bytes
                    ):  # a message with buffers; none of those is printed here
                        continue
                    message = json.loads(frame)
                    if message["parent_header"].get("msg_id") != request["header"]["msg_id"]:
                        continue
                    show(message)
                    last = message["header"]["msg_id"]
                    if message["content"].get("execution_state") == "idle":
                        return
            except ConnectionClosed:
                pass
            break  # connect again, with `since`
        if not last:
            sys.exit("The connection broke before the kernel answered; the code may not have run.")
        print(f"[lost the connection; continuing after {last}]", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run code on a kernel over an unreliable network.")
    parser.add_argument("url", help="URL of the server, such as http://127.0.0.1:8888")
    parser.add_argument("kernel", metavar="KERNEL_ID", help="id of a running kernel")
    parser.add_argument("code", help="the code to run")
    parser.add_argument("--token", default=os.environ.get("JUPYTER_TOKEN", ""))
    args = parser.parse_args()
    url = f"ws{args.url.rstrip('/').removeprefix('http')}/api/kernels/{quote(args.kernel)}/channels"
    asyncio.run(run(url, args.token, args.code))


if __name__ == "__main__":
    main()
