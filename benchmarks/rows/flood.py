"""Output beyond the limits with default settings: the number of lines, and the time of the last.

The row has two parts. In the first, ipykernel runs `print` in a tight loop and flushes each line,
as progress bars do: it sends a few thousand messages per second, and the default limit is one
thousand. In the second, the stub kernel sends the same number of lines of 100 bytes at full speed.
"""

from __future__ import annotations

import itertools
import re
import time
from typing import NamedTuple

from benchmarks.client import Websocket, decode
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values

CODE = """\
import time as _time
_begin = _time.monotonic()
for _i in range({count}):
    print(_i, flush=True)
_took = _time.monotonic() - _begin
"""
NUMBER = re.compile(r"^#?(\d+)", re.MULTILINE)


class Heard(NamedTuple):
    """The result of one request: line numbers, messages of output and of notices, seconds.

    `took` is the time that the kernel reports.
    """

    numbers: list[int]
    frames: int
    notices: int
    seconds: float
    took: float

    def missing(self, count: int) -> int:
        return count - len(set(self.numbers) & set(range(count)))

    def disorder(self) -> int:
        return sum(a >= b for a, b in itertools.pairwise(self.numbers))


def hear(websocket: Websocket, asked: str, begin: float, patience: float = 60.0) -> Heard:
    """Read until the reply and the idle have arrived. Each line begins with its number."""
    text: list[str] = []
    open_ends = {"reply", "idle"}
    took = 0.0
    notices = 0
    while open_ends:
        message = decode(websocket.payload(patience))
        if message.parent_id != asked:
            continue
        if message.msg_type == "stream":
            if message.content["name"] == "stdout":
                text.append(message.content["text"])
            else:
                notices += 1
        elif message.msg_type == "execute_reply":
            open_ends.discard("reply")
            if told := message.content["user_expressions"].get("took"):
                took = float(told["data"]["text/plain"])
        elif message.content.get("execution_state") == "idle":
            open_ends.discard("idle")
    seconds = time.monotonic() - begin
    numbers = [int(number) for number in NUMBER.findall("".join(text))]
    return Heard(numbers, len(text), notices, seconds, took)


def printed(server: Server, kernel: str, count: int) -> Heard:
    """Measure `print` in a loop."""
    with server.kernel(kernel) as kernel_id, Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        begin = time.monotonic()
        asked = websocket.execute(CODE.format(count=count), user_expressions={"took": "_took"})
        return hear(websocket, asked, begin)


def flooded(server: Server, count: int) -> Heard:
    """Measure a flood of the stub kernel."""
    with server.kernel() as kernel_id, Websocket.open(server, kernel_id) as websocket:
        websocket.ready()
        begin = time.monotonic()
        return hear(websocket, websocket.execute({"flood": count, "size": 100}), begin)


def measure(server: Server, settings: Settings) -> Values:
    count = settings.count or settings.pick(20_000, 6_000)
    with server.twin(()) as twin:
        loop = printed(twin, settings.kernel or "python3", count)
        fast = flooded(twin, count)
    return {
        **timed(loop, count),
        **timed(fast, count, "_fast"),
        "notices": loop.notices,
        "loop": loop.took,
        "frames": loop.frames,
        "notices_fast": fast.notices,
        "frames_fast": fast.frames,
        "disorder": loop.disorder() + fast.disorder(),
    }


def timed(heard: Heard, count: int, suffix: str = "") -> Values:
    """Return the number of missing lines, and if it is 0, the seconds until the last line."""
    missing = heard.missing(count)
    return {f"missing{suffix}": missing} | ({} if missing else {f"seconds{suffix}": heard.seconds})


ROW = Row(
    name="flood",
    title="20,000 lines beyond the limits, default settings",
    figures=(
        Figure("missing", "print in a loop: missing", "lines", limit=0, info=True),
        Figure("notices", "print in a loop: notices", "", limit=0, info=True),
        Figure("loop", "print in a loop: time of the loop", "s", info=True),
        Figure("seconds", "print in a loop: until all lines have arrived", "s", info=True),
        Figure("frames", "print in a loop: messages", "", info=True),
        Figure("missing_fast", "at full speed: missing", "lines", limit=0, info=True),
        Figure("notices_fast", "at full speed: notices", "", limit=0, info=True),
        Figure("seconds_fast", "at full speed: until all lines have arrived", "s", info=True),
        Figure("frames_fast", "at full speed: messages", "", info=True),
        Figure("disorder", "out of order or duplicate", "lines", limit=0, info=True),
    ),
    measure=measure,
    life=Life.OWN,
    rounds=2,
)
