"""A whole server with a listener for metrics."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient

from kbridge.errors import ListenError
from kbridge.server.cli.app import KbridgeApp
from kbridge.server.server import Server
from tests.support.server import free_port

TOKEN = "token-of-this-test"


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Any]:
    """Start a server with settings; return it."""
    made: list[Server] = []

    async def run(**settings: Any) -> Server:
        app = KbridgeApp(
            log=logging.getLogger("kbridge.test.metrics"),
            runtime_dir=str(tmp_path / "runtime"),
            token=TOKEN,
            port=0,
            **settings,
        )
        server = Server(app.configuration(), app.log)
        made.append(server)
        await server.open()
        server.accept()
        return server

    yield run
    for server in made:
        await server.aclose()


async def status(url: str, **headers: str) -> int:
    client = AsyncHTTPClient(force_instance=True)
    try:
        return int((await client.fetch(url, headers=headers, raise_error=False)).code)
    finally:
        client.close()


async def test_the_listener_serves_metrics_and_nothing_else(start: Any) -> None:
    port = free_port()
    await start(metrics_port=port)
    here = f"http://127.0.0.1:{port}"
    assert await status(f"{here}/metrics") == 200
    for path in ("/", "/api", "/api/kernels", "/login"):
        assert await status(here + path, Authorization=f"token {TOKEN}") == 404, path
    assert await status(f"{here}/metrics", Host="evil.example") == 403


async def test_the_listener_asks_for_the_token_of_the_metrics(start: Any) -> None:
    port = free_port()
    server = await start(metrics_port=port, metrics_token="watch")
    here = f"http://127.0.0.1:{port}/metrics"
    assert await status(here) == 403
    assert await status(here, Authorization=f"Bearer {TOKEN}") == 403
    assert await status(here, Authorization="Bearer watch") == 200
    assert await status(f"{here}?token=watch") == 200
    assert await status(f"{server.url}metrics", Authorization="Bearer watch") == 200


async def test_the_port_is_free_after_the_end(start: Any) -> None:
    port = free_port()
    server = await start(metrics_port=port)
    with pytest.raises(ListenError, match=f"metrics_port {port}"):
        await start(metrics_port=port)
    await server.aclose()
    await start(metrics_port=port)
    assert await status(f"http://127.0.0.1:{port}/metrics") == 200


async def test_without_a_port_there_is_no_listener_and_the_lag_is_measured(start: Any) -> None:
    server = await start()
    assert await status(f"{server.url}metrics") == 403
    assert await status(f"{server.url}metrics", Authorization=f"token {TOKEN}") == 200
