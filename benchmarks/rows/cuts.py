"""Numbered messages while the connection is cut 20 times: how many are missing or come twice.

Each cut is a reset without a closing handshake; the client comes back 50 ms later with the same
session_id. A second pass also says `?since=<msg_id>`: the last message that it saw.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections import Counter

from benchmarks.client import Gone, Websocket
from benchmarks.measure import BenchmarkError
from benchmarks.servers import Server
from benchmarks.table import Figure, Row, Settings, Values
from benchmarks.tally import new_token

CUTS = 20
NUMBER = re.compile(rb"#(\d{8}) ")
AWAY = 0.05
QUIET = 4.0


def message_id(payload: bytes) -> str:
    """msg_id of a v1 message."""
    start, end = struct.unpack_from("<2Q", payload, 16)
    return str(json.loads(payload[start:end])["msg_id"])


def broken_reading(server: Server, kernel_id: str, count: int, since: bool) -> Values:
    """Read one numbered flood, with cuts at even distances; count gaps and repeats."""
    token = new_token().encode()
    seen: Counter[int] = Counter()
    websocket = Websocket.open(server, kernel_id).ready()
    # 5,000 a second: the output lasts longer than all the absences together.
    websocket.execute(
        {"flood": count, "size": 100, "end": token.decode(), "batch": 100, "interval": 0.02}
    )
    cut_at = [count * (i + 1) // (CUTS + 1) for i in range(CUTS)]
    last = ""
    ended = False
    deadline = time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        try:
            payload = websocket.payload(QUIET)
        except TimeoutError:
            break  # what has not come by now is missing
        numbers = [int(n) for n in NUMBER.findall(payload)]
        seen.update(numbers)
        ended = token in payload
        last = message_id(payload)
        if numbers and cut_at and numbers[-1] >= cut_at[0]:
            cut_at = [at for at in cut_at if at > numbers[-1]]
            websocket.cut()
            time.sleep(AWAY)
            websocket = _return(server, kernel_id, websocket.session_id, last if since else "")
    websocket.close()
    return {"missing": count - len(seen), "twice": sum(n - 1 for n in seen.values())}


def _return(server: Server, kernel_id: str, session_id: str, last: str) -> Websocket:
    query = f"&since={last}" if last else ""
    try:
        return Websocket.open(server, kernel_id, session_id=session_id, query=query)
    except (Gone, TimeoutError) as error:
        raise BenchmarkError(f"the client could not come back: {error}") from error


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(20_000, 5_000)
    with server.kernel() as kernel_id:
        plain = broken_reading(server, kernel_id, count, since=False)
    with server.kernel() as kernel_id:
        since = broken_reading(server, kernel_id, count, since=True)
    return {
        **plain,
        "missing_since": since["missing"],
        "twice_since": since["twice"],
    }


ROW = Row(
    name="cuts",
    title="20,000 numbered messages, the connection cut 20 times",
    figures=(
        Figure("missing", "missing", "messages", limit=0, info=True),
        Figure("twice", "twice", "messages", info=True),
        Figure("missing_since", "missing, with since", "messages", limit=0, info=True),
        Figure("twice_since", "twice, with since", "messages", limit=0, info=True),
    ),
    measure=measure,
    rounds=2,
)
