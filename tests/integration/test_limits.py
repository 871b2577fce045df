"""Hostile, broken or slow clients do not affect other clients."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid

import pytest

from tests.conftest import ServerFactory
from tests.support.client import attach
from tests.support.dialects import CODECS
from tests.support.server import TOKEN, Server, gone
from tests.support.waiting import TIMEOUT, eventually

pytestmark = pytest.mark.kernel

MIB = 1 << 20
CONNECTION = "ZMQChannelsWebsocketConnection"


def v1(**changes: object) -> bytes:
    """Encode a v1 frame whose parts are valid except for `changes`."""
    header = {"msg_id": "1", "msg_type": "kernel_info_request", "session": "s", "version": "5.3"}
    parts: dict[str, object] = {
        "channel": b"shell",
        "header": json.dumps(header).encode(),
        "parent_header": b"{}",
        "metadata": b"{}",
        "content": b"{}",
        **changes,
    }
    raw = [p for p in parts.values() if isinstance(p, bytes)]
    offsets = [8 * (len(raw) + 2)]
    for part in raw:
        offsets.append(offsets[-1] + len(part))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(raw)


def legacy(**changes: object) -> str:
    header = {"msg_id": "1", "msg_type": "kernel_info_request", "session": "s", "version": "5.3"}
    msg = {
        "channel": "shell",
        "header": header,
        "parent_header": {},
        "metadata": {},
        "content": {},
        **changes,
    }
    return json.dumps(msg)


MALFORMED: dict[str, tuple[str, str | bytes, int]] = {
    "text where v1 is binary": ("v1", legacy(), 1003),
    "an empty v1 frame": ("v1", b"", 1007),
    "a count beyond the frame": ("v1", struct.pack("<Q", 10_000_000) + v1()[8:], 1007),
    "a count beyond all frames": ("v1", struct.pack("<Q", 2**64 - 1) + v1()[8:], 1007),
    "no count at all": ("v1", b"\x01\x02\x03", 1007),
    "offsets that fall": ("v1", v1()[:16] + struct.pack("<Q", 1) + v1()[24:], 1007),
    "a truncated frame": ("v1", v1()[:-1], 1007),
    "a header that is not UTF-8": ("v1", v1(header=b'{"msg_id": "\xff\xfe"}'), 1007),
    "a header with two ids": ("v1", v1(header=b'{"msg_id":1,"msg_id":2,"msg_type":"a"}'), 1008),
    "text that is not JSON": ("legacy", "{", 1007),
    "JSON that is no object": ("legacy", "[1]", 1008),
    "no header": ("legacy", json.dumps({"channel": "shell"}), 1008),
    "buffers in text": ("legacy", legacy(buffers=["AA=="]), 1008),
    "binary with a count beyond it": ("legacy", struct.pack(">III", 2**32 - 1, 1, 2), 1007),
    "binary with offsets outside": ("legacy", struct.pack(">III", 2, 12, 999), 1007),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_frame_closes_only_its_websocket(
    server: Server, kernel: str, case: str
) -> None:
    dialect, frame, code = MALFORMED[case]
    async with (
        attach(server, kernel, dialect) as bystander,
        attach(server, kernel, dialect) as culprit,
    ):
        await culprit.ws.send(frame)
        closed, reason = await culprit.closed()
        assert (closed, bool(reason)) == (code, True), reason
        assert (await bystander.execute("print('unharmed')")).text() == "unharmed\n"


async def test_a_frame_above_the_limit_closes_the_websocket(new_server: ServerFactory) -> None:
    server = new_server("--KbridgeApp.websocket_max_message_size=1048576")
    kernel = server.start_kernel()
    async with attach(server, kernel) as bystander, attach(server, kernel) as culprit:
        big = {**CODECS["v1"].decode(v1()), "content": {"code": "#" * 2 * MIB}}
        await culprit.ws.send(CODECS["v1"].encode(big))
        assert (await culprit.closed())[0] == 1009
        assert (await bystander.execute("print('unharmed')")).text() == "unharmed\n"


@pytest.mark.slow
@pytest.mark.parametrize("on_disk", [True, False], ids=["disk", "memory"])
async def test_a_browser_that_stops_reading_uses_no_more_memory_than_the_journal(
    new_server: ServerFactory, dialect: str, on_disk: bool
) -> None:
    """With a journal on disk it receives everything later, otherwise a notice."""
    limit, size, rounds = 8 * MIB, 4 * MIB, 50
    server = new_server(
        f"--{CONNECTION}.journal_limit={limit}",
        f"--{CONNECTION}.limit_rate=False",
        *([] if on_disk else [f"--{CONNECTION}.journal_dir="]),
    )
    kernel = server.start_kernel()
    async with (
        attach(server, kernel) as honest,
        attach(server, kernel, dialect, max_queue=1) as stalled,
    ):
        await stalled.request("kernel_info_request", {})
        show = "from IPython.display import display\n"
        show += f"display({{'text/plain': 'x' * {size}}}, raw=True)"
        for _ in range(5):  # until all buffers have their final size
            await honest.execute(show)
        before = server.rss()
        peak = 0
        for i in range(rounds):
            done = await honest.execute(show)
            assert done.types == ["busy", "execute_input", "display_data", "idle"], i
            peak = max(peak, server.rss())
        # 200 MiB were sent. Buffers for messages in transit are not part of the journal. While more
        # than half of the limit waits for the disk, the journal may grow by 32 MiB at a time.
        allowed = limit + 3 * size + (32 * MIB + 2 * size if on_disk else 0)
        assert peak - before < allowed, f"grew by {(peak - before) / MIB:.0f} MiB"
        # It reads again: it receives all messages, or a marker and the remaining ones.
        last = await honest.execute("print('the end')")
        rest = await stalled.finish(last.msg_id, reply=False)
        assert rest.text() == "the end\n"
        markers = [m for m in stalled.seen if "[kbridge: " in m["content"].get("text", "")]
        shown = [m for m in stalled.seen if m["header"]["msg_type"] == "display_data"]
        if on_disk:
            assert markers == []
            assert len(shown) == 5 + rounds
        else:
            assert markers, "it missed frames without a notice"
            assert len(shown) < rounds


async def test_ten_thousand_upgrades_to_an_unknown_kernel_leak_no_memory(
    new_server: ServerFactory,
) -> None:
    server = new_server()

    async def upgrade(times: int) -> None:
        reader: asyncio.StreamReader | None = None
        for _ in range(times):
            if reader is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                f"GET /api/kernels/{uuid.uuid4()}/channels?session_id={uuid.uuid4()} HTTP/1.1\r\n"
                f"Host: 127.0.0.1:{server.port}\r\nAuthorization: token {TOKEN}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), TIMEOUT)
            assert head.startswith(b"HTTP/1.1 404"), head
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields[b"Content-Length"]))
            if fields.get(b"Connection") == b"close":
                writer.close()
                await writer.wait_closed()
                reader = None
        if reader is not None:
            writer.close()
            await writer.wait_closed()

    async def crowd(times: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(upgrade(times // 10))

    await crowd(2_000)
    before = server.rss()
    await crowd(10_000)
    grown = server.rss() - before
    assert grown < 2 * MIB, f"grew by {grown / 10_000:.0f} bytes an upgrade"


@pytest.mark.parametrize("sign", ["SIGTERM", "SIGINT"])
async def test_the_server_ends_on_a_signal(new_server: ServerFactory, sign: str) -> None:
    import signal

    server = new_server()
    kernels = [await asyncio.to_thread(server.start_kernel) for _ in range(2)]
    async with (
        attach(server, kernels[0], "v1") as one,
        attach(server, kernels[0], "legacy") as two,
        attach(server, kernels[1], "v1") as three,
    ):
        pids = [
            int((await ws.execute("import os; print(os.getpid())")).text()) for ws in (one, three)
        ]
        await three.start("import time\nwhile True: time.sleep(0.1)")
        server.process.send_signal(getattr(signal, sign))
        codes = [(await ws.closed())[0] for ws in (one, two, three)]
    assert codes == [1001, 1001, 1001]
    assert await asyncio.to_thread(server.process.wait, TIMEOUT) == 0, server.tail()
    eventually(lambda: all(map(gone, pids)), "the kernels are gone")
    assert not list((server.home / "runtime").glob("kernel-*.json")), "connection files stay behind"
    server.assert_clean_log()
