"""The effect of settings on the messages of a real kernel, in both dialects."""

from __future__ import annotations

import pytest

from tests.conftest import ServerFactory
from tests.support.client import attach

pytestmark = pytest.mark.kernel

CONNECTION = "ZMQChannelsWebsocketConnection"
MANAGER = "BridgeKernelManager"


async def test_tracebacks_are_hidden(new_server: ServerFactory) -> None:
    server = new_server(
        f"--{MANAGER}.allow_tracebacks=False",
        f"--{MANAGER}.traceback_replacement_message=ask the administrator",
    )
    kernel = server.start_kernel()
    for dialect in ("v1", "legacy"):
        async with attach(server, kernel, dialect) as ws:
            done = await ws.execute("secret = 7\n1 / 0")
            (error,) = done.of("error")
            for content in (error["content"], done.reply):
                assert content["traceback"] == ["ask the administrator"]
            outputs = [m for m in done.messages if m["header"]["msg_type"] != "execute_input"]
            assert "secret" not in str([m["content"] for m in outputs])
            # Output that is not an error stays unchanged.
            assert (await ws.execute("print(secret)")).text() == "7\n"


async def test_only_allowed_messages_reach_the_kernel(new_server: ServerFactory) -> None:
    allowed = '["kernel_info_request", "complete_request"]'
    server = new_server(f"--{MANAGER}.allowed_message_types={allowed}")
    kernel = server.start_kernel()
    for dialect in ("v1", "legacy"):
        async with attach(server, kernel, dialect) as ws:
            refused = await ws.start("print('never')")
            complete = await ws.request("complete_request", {"code": "prin", "cursor_pos": 4})
            assert "print" in complete.reply["matches"]
            assert not [m for m in ws.seen if m["parent_header"].get("msg_id") == refused]


async def test_a_limited_flood_still_ends_with_its_reply(new_server: ServerFactory) -> None:
    server = new_server(
        f"--{CONNECTION}.iopub_data_rate_limit=100000", f"--{CONNECTION}.rate_limit_policy=drop"
    )
    kernel = server.start_kernel()
    for dialect in ("v1", "legacy"):
        async with attach(server, kernel, dialect) as ws:
            code = "import sys\nfor i in range(40): print('x' * 100_000, flush=True)\n6 * 7"
            done = await ws.execute(code)
            assert "iopub_data_rate_limit" in done.text("stderr")
            assert len(done.text()) < 40 * 100_000
            # Messages with state arrive all the same.
            assert done.types[0] == "busy"
            assert done.types[-1] == "idle"
            assert done.reply["status"] == "ok"
            # After a new request, output arrives again.
            assert (await ws.execute("print('again')")).text() == "again\n"
