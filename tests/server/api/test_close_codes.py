"""Every close code of docs/websocket.md, provoked on a real server with a real websocket."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from kbridge.link.keepalive import Keepalive
from kbridge.wire import legacy, v1
from tests.link.peer import BINARY
from tests.server.api.test_websocket import GOOD, ID, LIMIT, TIMEOUT, Harness, ended

PAGE = Path(__file__).parents[3] / "docs" / "websocket.md"


async def the_client_closes(harness: Harness) -> int:
    async with harness.client() as ws:
        await ws.close(1000)
        assert ws.close_code is not None
        return ws.close_code


async def the_server_ends(harness: Harness) -> int:
    async with harness.client() as ws:
        await harness.hubs.aclose()
        return (await ended(ws))[0]


async def a_frame_that_is_not_masked(harness: Harness) -> int:
    async with harness.peer() as peer:
        peer.writer.write(bytes([0x80 | BINARY, 1]) + b"x")
        return (await peer.close_frame())[0]


async def text_in_the_binary_dialect(harness: Harness) -> int:
    return await close_code_after(harness, legacy.encode(GOOD))


async def a_frame_that_is_cut(harness: Harness) -> int:
    return await close_code_after(harness, v1.encode(GOOD)[:-1])


async def a_message_with_two_ids(harness: Harness) -> int:
    header = b'{"msg_id": "a", "msg_id": "b", "msg_type": "c"}'
    return await close_code_after(harness, v1.encode(GOOD._replace(header=header)))


async def a_message_beyond_the_limit(harness: Harness) -> int:
    return await close_code_after(harness, b"x" * (LIMIT + 1))


async def a_ping_without_an_answer(harness: Harness) -> int:
    async with harness.peer() as silent:
        await harness.until_connections(1)
        keepalive = Keepalive(3600)
        for websocket in harness.services.websockets:
            keepalive.add(websocket)
        keepalive.beat()
        keepalive.beat()
        await silent.frame()  # the ping
        return (await silent.close_frame())[0]


async def the_kernel_is_shut_down(harness: Harness) -> int:
    async with harness.client() as ws:
        await harness.hubs.close(ID)
        return (await ended(ws))[0]


async def close_code_after(harness: Harness, frame: str | bytes) -> int:
    async with harness.client() as ws:
        with contextlib.suppress(ConnectionClosed):  # the server's close was faster
            await ws.send(frame)
        return (await ended(ws))[0]


PROVOKED: dict[int, Callable[[Harness], Awaitable[int]]] = {
    1000: the_client_closes,
    1001: the_server_ends,
    1002: a_frame_that_is_not_masked,
    1003: text_in_the_binary_dialect,
    1007: a_frame_that_is_cut,
    1008: a_message_with_two_ids,
    1009: a_message_beyond_the_limit,
    1011: a_ping_without_an_answer,
    1012: the_kernel_is_shut_down,
}


@pytest.mark.parametrize("code", PROVOKED)
async def test_each_documented_close_code_is_sent(code: int) -> None:
    harness = Harness()
    try:
        async with asyncio.timeout(TIMEOUT):
            assert await PROVOKED[code](harness) == code
    finally:
        await harness.close()


def test_the_page_lists_these_codes_and_no_others() -> None:
    section = PAGE.read_text().partition("## Close codes")[2].partition("\n## ")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d{4}) \|", section, re.MULTILINE)]
    assert listed == list(PROVOKED)
