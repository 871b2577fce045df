"""Numbered messages while the connection is cut 20 times: missing and duplicate messages.

There are three passes, each with a separate kernel. The client reconnects after 50 ms with the same
session_id:

- cut by a reset, so that data in transit or in buffers is lost;
- cut by a reset, and the client names the last message that it received (`?since=<msg_id>`, which
  jupyter_server does not support);
- closed by a handshake: the client reads all data before the close frame of the server.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import time
from collections import Counter

from benchmarks.client import CLOSE, Gone, Websocket, masked
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import BASE, Figure, Row, Settings, Values
from benchmarks.tally import new_token

CUTS = 20
NUMBER = re.compile(rb"#(\d{8}) ")
AWAY = 0.05
SECONDS = 4.0
QUIET = 4.0


def message_id(payload: bytes) -> str:
    """Return the msg_id of a v1 message."""
    start, end = struct.unpack_from("<2Q", payload, 16)
    return str(json.loads(payload[start:end])["msg_id"])


class Reading:
    """The messages of a numbered flood that one client received over all its connections."""

    def __init__(self, token: str) -> None:
        self.seen: Counter[int] = Counter()
        self.newest = -1
        self.last_id = ""
        self.ended = False
        self._token = token.encode()

    def take(self, payload: bytes) -> None:
        numbers = [int(n) for n in NUMBER.findall(payload)]
        self.seen.update(numbers)
        self.newest = max(self.newest, *numbers) if numbers else self.newest
        self.last_id = message_id(payload)
        self.ended = self.ended or self._token in payload

    def leave(self, websocket: Websocket, *, handshake: bool) -> None:
        """Disconnect, with a handshake or a reset."""
        if handshake:
            websocket.sock.sendall(masked(b"\x03\xe9", CLOSE))
            with contextlib.suppress(Gone, ConnectionError, TimeoutError):
                while True:
                    self.take(websocket.payload(2))
        websocket.cut()


def broken_reading(
    server: Server, kernel_id: str, count: int, *, since: bool = False, handshake: bool = False
) -> Values:
    """Read one numbered flood with regular disconnects; count missing and duplicate messages."""
    token = new_token()
    reading = Reading(token)
    websocket = Websocket.open(server, kernel_id).ready()
    # The output must last longer than all disconnected times together.
    pace = {"batch": 100, "interval": SECONDS * 100 / count}
    websocket.execute({"flood": count, "size": 100, "end": token, **pace})
    cut_at = [count * (i + 1) // (CUTS + 1) for i in range(CUTS)]
    deadline = time.monotonic() + 60
    while not reading.ended and time.monotonic() < deadline:
        try:
            reading.take(websocket.payload(QUIET))
        except TimeoutError:
            break  # the remaining messages are missing
        if cut_at and reading.newest >= cut_at[0]:
            reading.leave(websocket, handshake=handshake)
            cut_at = [at for at in cut_at if at > reading.newest]
            time.sleep(AWAY)
            last = reading.last_id if since else ""
            websocket = _return(server, kernel_id, websocket.session_id, last)
    websocket.close()
    twice = sum(reading.seen.values()) - len(reading.seen)
    return {"missing": count - len(reading.seen), "duplicate": twice}


def _return(server: Server, kernel_id: str, session_id: str, last: str) -> Websocket:
    query = f"&since={last}" if last else ""
    try:
        return Websocket.open(server, kernel_id, session_id=session_id, query=query)
    except (Gone, TimeoutError) as error:
        raise BenchmarkError(f"the client could not reconnect: {error}") from error


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(20_000, 5_000)
    values: dict[str, float] = {}
    for suffix, how in (("", {}), ("_since", {"since": True}), ("_closed", {"handshake": True})):
        if server.name == BASE and how.get("since"):
            continue
        with server.kernel() as kernel_id:
            found = broken_reading(server, kernel_id, count, **how)
        values |= {key + suffix: value for key, value in found.items()}
    return values


ROW = Row(
    name="cuts",
    title="20,000 numbered messages, 20 cuts of the connection",
    figures=(
        Figure("missing", "missing", "messages", limit=0, info=True),
        Figure("duplicate", "duplicate", "messages", info=True),
        Figure("missing_since", "missing, with since", "messages", limit=0, info=True),
        Figure("duplicate_since", "duplicate, with since", "messages", limit=0, info=True),
        Figure("missing_closed", "missing, closed by a handshake", "messages", limit=0, info=True),
        Figure("duplicate_closed", "duplicate, closed by a handshake", "messages", info=True),
    ),
    measure=measure,
    rounds=2,
)
