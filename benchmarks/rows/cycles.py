"""Connect, execute, read the output and disconnect, repeatedly: no output may be lost.

A cycle is lost if the stream message or the idle of its request does not arrive. The full test is
`python -m benchmarks cycles --count 10000`.
"""

from __future__ import annotations

import time

from benchmarks.client import Gone, Websocket, decode
from benchmarks.servers import Server
from benchmarks.table import Figure, Row, Settings, Values

PATIENCE = 5.0


def cycle(server: Server, kernel_id: str, code: str, text: str) -> bool:
    """Run one cycle; return True if all output arrived."""
    with Websocket.open(server, kernel_id) as websocket:
        msg_id = websocket.execute(code)
        stream = idle = False
        deadline = time.monotonic() + PATIENCE
        while not (stream and idle):
            try:
                message = decode(websocket.payload(max(0.001, deadline - time.monotonic())))
            except (TimeoutError, Gone):
                return False
            if message.parent_id == msg_id:
                stream = stream or text in message.content.get("text", "")
                idle = idle or message.content.get("execution_state") == "idle"
    return True


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(1_000, 20)
    spec = settings.kernel or "stub"
    stop = time.monotonic() + settings.pick(8.0, 5.0)
    lost = done = 0
    with server.kernel(spec) as kernel_id:
        with Websocket.open(server, kernel_id) as websocket:
            websocket.ready()
        begin = time.monotonic()
        # A count from the command line is completed; the default stops after a time limit.
        while done < count and (settings.count or time.monotonic() < stop):
            text = f"cycle-{done}-"
            code = f'{{"echo": "{text}"}}' if spec == "stub" else f"print('{text}')"
            lost += not cycle(server, kernel_id, code, text)
            done += 1
        passed = time.monotonic() - begin
    return {"lost": lost, "cycles": done, "rate": done / passed}


ROW = Row(
    name="cycles",
    title="Connect, execute, disconnect",
    figures=(
        Figure("cycles", "cycles done", "", info=True),
        Figure("lost", "cycles that lost output", "", limit=0, info=True),
        Figure("rate", "cycles per second", "1/s", more_is_better=True),
    ),
    measure=measure,
    rounds=2,
)
