"""Run code on a kernel over an unreliable network and print each line of its output once.

    python never_lost.py http://127.0.0.1:8888 --token TOKEN ID "for i in range(9): print(i)"

Unplug the cable, or kill and restart the server, while it runs: the program connects again, and the
server continues after the last message that was printed. Or end the program, close the laptop, and
come back later. Without code, it prints the whole output of everything that was run on the kernel,
and follows the executions that have not ended:

    python never_lost.py http://127.0.0.1:8888 --token TOKEN ID

With `--session NAME` in both commands, the second one shows the executions of the first one only.

Needs the package `websockets`.
"""

import argparse
import asyncio
import json
import os
import sys
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed


@dataclass
class Following:
    """The executions whose output is printed, and the place that was reached."""

    ids: tuple[str, ...]
    begun: set[str] = field(default_factory=set)
    left: set[str] = field(init=False)  # those that have not ended
    last: str = ""  # id of the last message that was printed

    def __post_init__(self) -> None:
        self.left = set(self.ids)


class Kernel:
    """A kernel of a kbridge server.

    Parameters
    ----------
    url : str
        The URL of the server.
    kernel_id : str
        The id of the kernel.
    token : str
        The token of the server.
    session : str
        The id of this client; its requests have it in their headers.
    """

    def __init__(self, url: str, kernel_id: str, token: str, session: str) -> None:
        self._url = f"{url.rstrip('/')}/api/kernels/{quote(kernel_id)}"
        self._headers = {"Authorization": f"token {token}"}
        self._session = session

    async def executions(self, **query: str) -> list[dict[str, Any]] | None:
        """Return the executions of the kernel, newest last; None if the server does not know it."""
        found: list[dict[str, Any]] | None = await self._get(f"/executions?{urlencode(query)}")
        return found

    async def received(self, msg_id: str) -> bool:
        """Return True if the server has received a request."""
        return await self._get(f"/executions/{quote(msg_id)}") is not None

    async def _get(self, path: str) -> Any:
        """Return the JSON of a GET request, or None for 404; wait for a server that is away."""
        request = Request(self._url + path, headers=self._headers)
        while True:
            try:
                return await asyncio.to_thread(lambda: json.load(urlopen(request, timeout=30)))
            except HTTPError as error:
                if error.code == 404:
                    return None
                if error.code not in {502, 503, 504}:
                    raise
            except (OSError, HTTPException):
                pass
            await asyncio.sleep(1)

    def websocket(self, **query: str) -> connect:
        """Return a websocket to open; `async for` opens it again and again until it succeeds."""
        url = f"ws{self._url.removeprefix('http')}/channels"
        given = urlencode({"session_id": self._session, **query})
        return connect(
            f"{url}?{given}", additional_headers=self._headers, max_size=None, proxy=None
        )

    async def run(self, code: str) -> None:
        """Run code and print its output."""
        request = execute_request(code, self._session)
        msg_id = request["header"]["msg_id"]
        following = Following((msg_id,))
        async for websocket in self.websocket():
            with suppress(ConnectionClosed):
                await websocket.send(json.dumps(request))
                await self._print(websocket, following)
            break
        if following.left and not following.last and not await self.received(msg_id):
            # Sending it again could run it twice, if the first copy is still on its way.
            sys.exit("The connection broke before the server had received the code.")
        await self.follow(following)

    async def follow(self, following: Following, *, prompts: bool = False) -> None:
        """Print the output of executions, live, until all of them have ended.

        The first websocket begins with the first message of the earliest execution; after a lost
        connection, the next one continues after the last message that was printed.
        """
        while following.left:
            if following.last:
                print(f"[lost the connection; continuing after {following.last}]", file=sys.stderr)
            since = {"since": following.last} if following.last else {}
            # While the server cannot be reached, this waits and tries again.
            async for websocket in self.websocket(parents=",".join(following.ids), **since):
                with suppress(ConnectionClosed):
                    await self._print(websocket, following, prompts=prompts)
                break

    async def _print(
        self, websocket: ClientConnection, following: Following, *, prompts: bool = False
    ) -> None:
        """Print messages from a websocket until all executions have ended."""
        async for frame in websocket:
            if isinstance(frame, bytes):  # a message with buffers; none of those is printed here
                continue
            message = json.loads(frame)
            state = message["content"].get("execution_state")
            parent = message["parent_header"].get("msg_id")
            if parent in following.left:
                show(message, prompts=prompts)
                following.begun.add(parent)
                following.last = message["header"]["msg_id"]
                if state == "idle":
                    following.left.remove(parent)
            elif not parent and state in {"starting", "restarting", "dead"}:
                # The process was replaced: no message ends the executions that it had not ended.
                for execution in await self.executions(state="aborted") or []:
                    if execution["id"] in following.begun or execution["first_seq"] is None:
                        following.left.discard(execution["id"])
            if not following.left:
                return


def execute_request(code: str, session: str) -> dict[str, Any]:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": session,
        "username": "",
        "date": datetime.now(UTC).isoformat(),
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    return {"channel": "shell", **message}


def show(message: dict[str, Any], *, prompts: bool) -> None:
    content = message["content"]
    match message["header"]["msg_type"]:
        case "execute_input" if prompts:
            print(f"In [{content['execution_count']}]: {content['code']}", flush=True)
        case "stream":
            stream = sys.stderr if content["name"] == "stderr" else sys.stdout
            print(content["text"], end="", file=stream, flush=True)
        case "execute_result" | "display_data":
            print(content["data"].get("text/plain", ""), flush=True)
        case "error":
            print("\n".join(content["traceback"]), file=sys.stderr)


async def come_back(kernel: Kernel, session: str | None) -> None:
    """Print the output of everything that was run on a kernel, by one session or by all."""
    chosen = {"session_id": session} if session else {}
    # The list comes in one request, all output over one websocket, which takes up to 100 ids.
    executions = await kernel.executions(limit="100", **chosen)
    if executions is None:
        sys.exit("The server has no such kernel, or it is not kbridge.")
    ids = [e["id"] for e in executions if e["state"] != "aborted" or e["first_seq"] is not None]
    await kernel.follow(Following(tuple(ids)), prompts=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run code on a kernel over an unreliable network.")
    parser.add_argument("url", help="URL of the server, such as http://127.0.0.1:8888")
    parser.add_argument("kernel", metavar="KERNEL_ID", help="id of a running kernel")
    parser.add_argument(
        "code", nargs="?", help="the code to run; without it, print what was run before"
    )
    parser.add_argument("--session", help="id of this client (default: a random one)")
    parser.add_argument("--token", default=os.environ.get("JUPYTER_TOKEN", ""))
    args = parser.parse_intermixed_args()
    kernel = Kernel(args.url, args.kernel, args.token, args.session or uuid.uuid4().hex)
    if args.code is None:
        asyncio.run(come_back(kernel, args.session))
    else:
        asyncio.run(kernel.run(args.code))


if __name__ == "__main__":
    main()
