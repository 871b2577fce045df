"""A websocket client for tests, which records messages and waits for events without sleeping."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.dialects import CODECS, Codec
from tests.support.server import Server
from tests.support.waiting import TIMEOUT

__all__ = ["SLEEP", "Execution", "KernelClient", "attach", "dial", "until_connected"]

# Python code for a cell that a test interrupts. Another thread prints while the main thread sleeps,
# because ipykernel may swallow a KeyboardInterrupt during a print.
# The sleeps are short: a signal that another thread receives does not end a sleep of the main one.
SLEEP = """import threading, time
threading.Timer(0.2, print, ["asleep"]).start()
while True: time.sleep(0.1)"""


@dataclass(slots=True)
class Execution:
    """All messages of one request, in the order of arrival."""

    msg_id: str
    messages: list[dict[str, Any]] = field(default_factory=list)

    @property
    def reply(self) -> dict[str, Any]:
        """The content of the only reply."""
        (reply,) = [m for m in self.messages if m["header"]["msg_type"].endswith("_reply")]
        return dict(reply["content"])

    @property
    def iopub(self) -> list[dict[str, Any]]:
        return [m for m in self.messages if m["channel"] == "iopub"]

    @property
    def types(self) -> list[str]:
        """The message types on iopub; for a status, its state.

        Consecutive streams count as one, because ipykernel splits them by time.
        """
        kinds: list[str] = []
        for m in self.iopub:
            kind = m["header"]["msg_type"]
            if kind == "stream" and kinds[-1:] == ["stream"]:
                continue
            kinds.append(m["content"]["execution_state"] if kind == "status" else kind)
        return kinds

    def text(self, name: str = "stdout") -> str:
        """The text of one stream."""
        return "".join(
            m["content"]["text"] for m in self.of("stream") if m["content"]["name"] == name
        )

    def of(self, msg_type: str) -> list[dict[str, Any]]:
        return [m for m in self.iopub if m["header"]["msg_type"] == msg_type]


class KernelClient:
    """One websocket to one kernel.

    The client reads only in `recv` and the methods that call it: a client that does not call them
    behaves as a browser that does not read.
    """

    def __init__(self, ws: ClientConnection, codec: Codec, session: str) -> None:
        self.ws = ws
        self.codec = codec
        self.session = session
        self.seen: list[dict[str, Any]] = []

    async def send(
        self,
        msg_type: str,
        content: dict[str, Any],
        *,
        channel: str = "shell",
        parent: dict[str, Any] | None = None,
        header: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
        buffers: Sequence[bytes] = (),
    ) -> str:
        """Send a message and give its id; `header` adds to the usual fields."""
        whole = {
            "msg_id": uuid.uuid4().hex,
            "msg_type": msg_type,
            "session": self.session,
            "username": "tester",
            "date": datetime.now(UTC).isoformat(),
            "version": "5.3",
            "subshell_id": None,  # as JupyterLab sends it
            **(header or {}),
        }
        msg = {
            "channel": channel,
            "header": whole,
            "parent_header": parent or {},
            "metadata": metadata or {},
            "content": content,
            "buffers": list(buffers),
        }
        await self.ws.send(self.codec.encode(msg))
        return str(whole["msg_id"])

    async def recv(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Read the next message."""
        try:
            async with asyncio.timeout(timeout):
                frame = await self.ws.recv()
        except TimeoutError:
            raise AssertionError(f"no message in {timeout} s; before it: {self.story()}") from None
        except ConnectionClosed as closed:
            raise AssertionError(f"{closed}; before it: {self.story()}") from closed
        msg = self.codec.decode(frame)
        self.seen.append(msg)
        return msg

    def story(self, last: int = 12) -> list[str]:
        """Return a short description of the last messages."""
        return [
            f"{m['channel']}:{m['header']['msg_type']}:{str(m['content'])[:80]}"
            for m in self.seen[-last:]
        ]

    async def until(
        self, wanted: Callable[[dict[str, Any]], bool], timeout: float = TIMEOUT
    ) -> list[dict[str, Any]]:
        """Read up to and including the first message that is `wanted`."""
        came = []
        while True:
            came.append(await self.recv(timeout))
            if wanted(came[-1]):
                return came

    async def until_text(self, text: str) -> list[dict[str, Any]]:
        """Read until this text was printed; ipykernel may split it into several messages."""
        printed = ""

        def is_complete(msg: dict[str, Any]) -> bool:
            nonlocal printed
            if msg["header"]["msg_type"] == "stream":
                printed += msg["content"]["text"]
            return text in printed

        return await self.until(is_complete)

    async def execute(self, code: str, **content: Any) -> Execution:
        """Run code, and wait for its reply and its idle."""
        return await self.finish(await self.start(code, **content))

    async def start(self, code: str, **content: Any) -> str:
        """Send code; return the id of the request."""
        request = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        return await self.send("execute_request", {**request, **content})

    async def request(self, msg_type: str, content: dict[str, Any], **how: Any) -> Execution:
        """Send any request that has a reply, and wait for its reply and its idle."""
        return await self.finish(await self.send(msg_type, content, **how))

    async def finish(self, msg_id: str, *, reply: bool = True) -> Execution:
        """Read until the idle of a request and its reply, if it has one, have arrived."""
        [done] = await self.finish_all(msg_id, reply=reply)
        return done

    async def finish_all(self, *msg_ids: str, reply: bool = True) -> list[Execution]:
        """Read until that is so for several requests, whose messages may be mixed.

        A reply may arrive after the first messages of the next request.
        """
        done = {msg_id: Execution(msg_id) for msg_id in msg_ids}
        missing = {(msg_id, end) for msg_id in msg_ids for end in ("idle", "reply")[: 1 + reply]}
        while missing:
            msg = await self.recv()
            parent, kind = msg["parent_header"].get("msg_id"), msg["header"]["msg_type"]
            if parent not in done:
                continue
            done[parent].messages.append(msg)
            if kind == "status" and msg["content"]["execution_state"] == "idle":
                missing.discard((parent, "idle"))
            elif kind.endswith("_reply"):
                missing.discard((parent, "reply"))
        return list(done.values())

    async def closed(self, timeout: float = TIMEOUT) -> tuple[int, str]:
        """Read until the server closes the websocket; return code and reason."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self.seen.append(self.codec.decode(await self.ws.recv()))
        except TimeoutError:
            raise AssertionError(f"still open after {timeout} s: {self.story()}") from None
        except ConnectionClosed as end:
            received = end.rcvd
        assert received is not None, "it was cut, not closed"
        return received.code, received.reason

    def cut(self) -> None:
        """Stop without a close frame, as a laptop with a closed lid does."""
        self.ws.transport.abort()


def attach(
    server: Server,
    kernel_id: str,
    dialect: str = "v1",
    *,
    session: str | None = "",
    since: str = "",
    parents: str = "",
    **options: Any,
) -> AbstractAsyncContextManager[KernelClient]:
    """Open a websocket to a kernel of a server.

    Parameters
    ----------
    server, kernel_id
        The server and the kernel.
    dialect : str
        v1 or legacy.
    session : str, optional
        The `session_id` of the URL; empty: a new one; None: no session_id.
    since : str
        The last message that the client received, for the URL; empty: none.
    parents : str
        The requests whose messages the client receives, separated by commas; empty: all messages.
    **options
        Arguments of `dial`.
    """
    session = uuid.uuid4().hex if session == "" else session
    said = {"session_id": session, "since": since, "parents": parents}
    query = f"?{urlencode({name: value for name, value in said.items() if value})}"
    url = f"ws://127.0.0.1:{server.port}/api/kernels/{kernel_id}/channels{query}"
    headers = {"Authorization": f"token {server.token}"}
    return dial(url, dialect, session=session, additional_headers=headers, **options)


async def until_connected(server: Server, kernel_id: str) -> None:
    """Wait until a server that has just started receives the output of a kernel, which may be busy.

    A reply on control, which works during a cell, proves it. Output from before is lost.
    """
    async with attach(server, kernel_id) as ws:
        await ws.request("kernel_info_request", {}, channel="control")


@asynccontextmanager
async def dial(
    url: str, dialect: str = "v1", *, session: str | None = None, **options: Any
) -> AsyncIterator[KernelClient]:
    """Open a websocket as a page does; `options` are those of `websockets.connect`."""
    codec = CODECS[dialect]
    usual: dict[str, Any] = {
        "subprotocols": [codec.subprotocol] if codec.subprotocol else None,
        "open_timeout": TIMEOUT,
        "max_size": None,
        "ping_interval": None,
        "compression": None,
        "proxy": None,
        "user_agent_header": "Mozilla/5.0 (a test)",
    }
    async with connect(url, **{**usual, **options}) as ws:
        assert ws.subprotocol == codec.subprotocol
        yield KernelClient(ws, codec, session or uuid.uuid4().hex)
