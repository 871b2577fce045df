"""A replica without a server, to be killed: `python replica.py DATABASE CONNECTION_FILE`.

It serves one kernel under the id `k`, with one client that acknowledges what it receives, under the
session `s`. Each line of its input is the code of a cell. It prints JSON lines: `["ready"]`,
`["sent", msg_id]`, and for each message to the client `["got", KIND, msg_id, text]`: KIND is the
type of the message, or the name of the stream.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Any

from kbridge.cluster.state_writer import StateWriter
from kbridge.hub.hub import Hub
from kbridge.hub.table import HubTable
from kbridge.kernels.registry.cluster_store import ClusterStore
from kbridge.kernels.registry.models import KernelRow, Replica, encode
from kbridge.kernels.registry.registry import Registry
from kbridge.wire import v1
from kbridge.wire.build import build
from kbridge.wire.connection_info import parse_connection_file
from kbridge.wire.dialects import V1
from kbridge.wire.frames import PING, each
from kbridge.wire.message import Channel

_BINARY = 2


def store_of(path: str, name: str) -> ClusterStore:
    """Return the database as a replica with that name uses it."""
    registry = Registry(f"sqlite:///{path}")
    registry.prepare()
    store = ClusterStore(registry, Replica(name, "c", "http://there", "here", 7, "start", "1.0"))
    store.join(600.0)
    return store


def row_of(info: dict[str, Any]) -> KernelRow:
    """Return the row of the kernel."""
    details = encode({"connection": info, "identities": []})
    return KernelRow("k", "python3", "used", 7, "b", "/l", details)


class Client:
    """A websocket that prints its messages, and answers pings."""

    def __init__(self) -> None:
        self.closed = False
        self.on_writable = lambda: None
        self.pong: Any = lambda payload: None

    def write(self, data: bytes) -> bool:
        pings = []
        for opcode, payload in each(data):
            if opcode == PING:
                pings.append(payload)
            elif opcode == _BINARY:
                msg = v1.decode(payload)
                content = json.loads(msg.content)
                kind = content["name"] if msg.msg_type == "stream" else msg.msg_type
                print(json.dumps(["got", kind, msg.msg_id, content.get("text", "")]))
        sys.stdout.flush()
        for payload in pings:
            asyncio.get_running_loop().call_soon(self.pong, payload)
        return True

    def close(self, _code: int, _reason: str) -> None:
        self.closed = True


async def serve(database: str, info: dict[str, Any]) -> None:
    store = store_of(database, "a")
    store.write({("kernel", "k"): row_of(info)})
    hubs = HubTable()
    writer = StateWriter(store, hubs, logging.getLogger("replica"))
    writer.open()
    hub: Hub = hubs.open("k", info)
    await hub.wait_ready()
    client = Client()
    cursor = hub.attach(client, V1, "s")
    client.pong = lambda payload: hub.on_pong(cursor, payload)
    print('["ready"]', flush=True)
    while code := await asyncio.to_thread(sys.stdin.readline):
        content = {"code": json.loads(code), "allow_stdin": True, "store_history": True}
        msg = build(Channel.SHELL, "execute_request", content, session="s", date="2026-01-01")
        hub.submit(cursor, msg)
        print(json.dumps(["sent", msg.msg_id]), flush=True)


if __name__ == "__main__":
    path, file = sys.argv[1:]
    asyncio.run(serve(path, parse_connection_file(Path(file).read_bytes(), file)))
