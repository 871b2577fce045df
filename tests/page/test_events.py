"""Server-sent events over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tornado import web
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from kbridge.page.events import stream
from tests.support.waiting import TIMEOUT, until


@asynccontextmanager
async def serving(
    site: Any, patience: float = TIMEOUT, quiet: float = TIMEOUT
) -> AsyncIterator[int]:
    """Serve the samples of a site; give the port."""

    class Handler(web.RequestHandler):
        async def get(self) -> None:
            await stream(self, site.sampler.watch(), patience, quiet)

    sock, port = bind_unused_port()
    server = HTTPServer(web.Application([("/", Handler)]))
    server.add_socket(sock)
    try:
        yield port
    finally:
        server.stop()
        await server.close_all_connections()


@asynccontextmanager
async def watching(port: int) -> AsyncIterator[tuple[dict[str, str], asyncio.StreamReader]]:
    """Ask for the samples; give the headers of the reply, and the rest of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=64 << 20)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert head[0].split()[1] == "200"
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        yield {name.lower(): value for name, value in pairs}, reader
    finally:
        writer.close()


async def read_event(reader: asyncio.StreamReader) -> Any:
    event = await asyncio.wait_for(reader.readuntil(b"\n\n"), TIMEOUT)
    assert event.startswith(b"data: ")
    return json.loads(event.removeprefix(b"data: "))


async def test_each_sample_is_one_event_until_the_browser_goes(site: Any) -> None:
    async with serving(site) as port, watching(port) as (headers, reader):
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-store"
        assert (await read_event(reader))["kernels"][0]["id"] == "a-kernel"
        site.go_on()
        assert (await read_event(reader))["now"] == site.clock.wall()

    def left() -> bool:
        site.go_on()  # noticed with the next sample
        return not site.sampler.running

    await until(left, "the browser has left")


async def test_browsers_that_go_while_samples_fail_are_noticed(site: Any) -> None:
    site.source.fails = True
    async with serving(site, quiet=0.01) as port:
        async with watching(port) as (_, reader):
            comment = await asyncio.wait_for(reader.readuntil(b"\n\n"), TIMEOUT)
            assert comment == b":\n\n"
        await until(lambda: not site.sampler.running, "the browser has left")
    assert site.sampler.watchers == 0


async def test_browsers_share_the_sampler(site: Any) -> None:
    async with serving(site) as port, watching(port) as (_, one), watching(port) as (_, two):
        await read_event(one)
        await read_event(two)
        assert site.sampler.watchers == 2
        assert site.sampler.number == 1


async def test_the_stream_ends_when_the_sampler_is_closed(site: Any) -> None:
    async with serving(site) as port, watching(port) as (_, reader):
        await read_event(reader)
        await site.sampler.aclose()
        assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
    assert site.sampler.watchers == 0


async def test_a_browser_that_reads_nothing_is_cut_off(site: Any) -> None:
    site.source.more = {"filler": "x" * (32 << 20)}  # more than sockets buffer
    async with serving(site, patience=0.05) as port:
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET / HTTP/1.0\r\n\r\n")
            await until(lambda: site.pauses, "the first sample was made")
            await until(lambda: not site.sampler.running, "the browser was cut off")
    assert site.sampler.watchers == 0
