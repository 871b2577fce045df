"""A cell executed right after `POST /restart` has answered, with ipykernel: is its output lost?"""

from __future__ import annotations

import time

from benchmarks.client import Gone, Websocket, decode
from benchmarks.servers import Server
from benchmarks.table import Figure, Row, Settings, Values

PATIENCE = 20.0
AFTER_REPLY = 3.0


def output_came(websocket: Websocket, code: str, text: str) -> bool:
    """Execute and wait for the output, which may arrive shortly after the reply."""
    msg_id = websocket.execute(code)
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = decode(websocket.payload(left))
        except (TimeoutError, Gone):
            return False
        if message.parent_id == msg_id:
            if text in message.content.get("text", ""):
                return True
            if message.msg_type == "execute_reply":
                deadline = min(deadline, time.monotonic() + AFTER_REPLY)
    return False


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(8, 2)
    spec = settings.kernel or "python3"
    lost = 0
    seconds = 0.0
    with server.kernel(spec) as kernel_id:
        for i in range(count):
            with Websocket.open(server, kernel_id) as websocket:
                websocket.ready()
                begin = time.monotonic()
                server.request("POST", f"/api/kernels/{kernel_id}/restart")
                text = f"restart-{i}-"
                code = f'{{"echo": "{text}"}}' if spec == "stub" else f"print('{text}')"
                if output_came(websocket, code, text):
                    seconds += time.monotonic() - begin
                else:
                    lost += 1
    values: dict[str, float] = {"restarts": count, "lost": lost}
    if lost < count:
        values["seconds"] = seconds / (count - lost)
    return values


ROW = Row(
    name="restart",
    title="A cell right after a restart",
    figures=(
        Figure("restarts", "restarts", "", info=True),
        Figure("lost", "restarts whose next cell lost its output", "", limit=0, info=True),
        Figure("seconds", "restart to output", "s"),
    ),
    measure=measure,
    rounds=1,
)
