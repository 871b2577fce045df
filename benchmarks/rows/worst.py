"""The time for which one large frame of a client delays another client.

A client with the token sends one frame of a megabyte to one kernel; another client makes round
trips on another kernel. The result is the longest round trip while the frame is handled, minus the
median before: the milliseconds for which a megabyte delays other clients. Each shape of frame is
the worst case of some parser.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import struct
import threading
import time
from collections.abc import Callable

from benchmarks import measure as proc
from benchmarks.client import BINARY, DATE, TEXT, Websocket, encode, masked
from benchmarks.rows.roundtrip import round_trips
from benchmarks.servers import Server
from benchmarks.table import Figure, Life, Row, Settings, Values

SIZE = 1 << 20
WATCHED = 0.25  # minimum seconds of round trips around each frame


def header() -> bytes:
    """A header for a request that the stub kernel answers without reading its content."""
    fields = {"msg_id": "worst", "msg_type": "worst_request", "session": "worst"}
    return json.dumps({**fields, "username": "bench", "date": DATE, "version": "5.3"}).encode()


def legacy(content: str, more: str = "") -> bytes:
    head = header().decode()
    return masked(
        f'{{"channel": "shell", "header": {head}, {more}"content": {content}}}'.encode(), TEXT
    )


def v1(content: str, *buffers: bytes) -> bytes:
    return masked(encode("shell", header(), b"{}", b"{}", content.encode(), *buffers), BINARY)


def legacy_offsets(size: int) -> bytes:
    """Empty buffers, one for each offset."""
    text = f'{{"channel": "shell", "header": {header().decode()}, "content": {{}}}}'.encode()
    count = size // 4
    start = 4 * (count + 2)
    offsets = struct.pack(f"!{count + 2}I", count + 1, start, *[start + len(text)] * count)
    return masked(offsets + text, BINARY)


def fragments(size: int) -> bytes:
    """A fragmented message; all fragments except two are empty, with six bytes each."""
    mask = bytes(4)
    empty = b"\x00\x80" + mask
    return b"\x01\x81" + mask + b"{" + empty * (size // len(empty)) + b"\x80\x81" + mask + b"}"


def numbers(size: int) -> str:
    return f'{{"a": [{"1," * (size // 2)}1]}}'


def keys(size: int) -> str:
    return "{" + ",".join(f'"{i:06}":1' for i in range(size // 11)) + "}"


# The name of each shape, and a function that returns a frame of a given size.
SHAPES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "text": ("legacy, one long string", lambda n: legacy(f'{{"code": "{"x" * n}"}}')),
    "keys": ("legacy, keys of the content", lambda n: legacy(keys(n))),
    "members": ("legacy, keys of the message", lambda n: legacy("{}", keys(n)[1:-1] + ", ")),
    "numbers": ("legacy, small numbers", lambda n: legacy(numbers(n))),
    "lists": ("legacy, lists in lists", lambda n: legacy(f'{{"a": [{"[[]]," * (n // 5)}1]}}')),
    "offsets": ("legacy, offsets", legacy_offsets),
    "v1_numbers": ("v1, small numbers", lambda n: v1(numbers(n))),
    "v1_offsets": ("v1, offsets", lambda n: v1("{}", *[b""] * (n // 8))),
    "fragments": ("empty fragments", fragments),
}


def harm(server: Server, kernel: str, honest: Websocket, frame: bytes, *, is_v1: bool) -> float:
    """Return the longest round trip in seconds while one frame is sent and handled."""
    with Websocket.open(server, kernel, offers_v1=is_v1) as sender:
        sender.sock.settimeout(30)

        def send() -> None:
            with contextlib.suppress(OSError):  # the server may refuse the frame and close
                sender.sock.sendall(frame)

        thread = threading.Thread(target=send)
        longest, stop = 0.0, time.monotonic() + WATCHED
        thread.start()
        while time.monotonic() < stop or thread.is_alive():
            begin = time.perf_counter()
            honest.wait_done(honest.execute({}), timeout=60)
            longest = max(longest, time.perf_counter() - begin)
        thread.join()
    return longest


def measure(server: Server, settings: Settings) -> Values:
    size = settings.count or settings.pick(SIZE, SIZE // 16)
    values: dict[str, float] = {}
    with server.kernel() as kernel, server.kernel() as own, Websocket.open(server, own) as honest:
        honest.ready()
        with Websocket.open(server, kernel) as first:
            first.ready()
        proc.settle(server.pid)
        usual = round_trips(honest, 500, settings.pick(2.0, 0.3))["p50"]
        for name, (_, shape) in SHAPES.items():
            frame = shape(size)
            is_v1 = name.startswith("v1")
            longest = [
                harm(server, kernel, honest, frame, is_v1=is_v1) for _ in range(settings.pick(5, 1))
            ]
            proc.settle(server.pid, timeout=20)
            waited = max(0.0, statistics.median(longest) * 1e3 - usual)
            values[name] = waited * SIZE / size
    values["worst"] = max(values.values())
    return values


ROW = Row(
    name="worst",
    title="One client waits while another one sends a frame of 1 MB",
    figures=(
        Figure("worst", "worst shape", "ms", limit=15),
        *(Figure(name, label, "ms", info=True) for name, (label, _) in SHAPES.items()),
    ),
    measure=measure,
    life=Life.ROUND,
    rounds=2,
)
