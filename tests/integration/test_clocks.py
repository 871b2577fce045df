"""A real server whose wall clock is changed while it runs: no timeout may be affected."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.frames import Opcode

from tests.conftest import ServerFactory
from tests.support.client import attach
from tests.support.hostile import RawConnection
from tests.support.require import require
from tests.support.server import PEER, Server
from tests.support.waiting import TIMEOUT, eventually

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(PEER, reason="Jupyter Server waits by the wall clock"),
]

HOUR = 3600


class Clock:
    """The wall clock of a process under libfaketime; its monotonic clock is the real one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(0)
        preload = subprocess.run(
            [require("faketime"), "-f", "+0", "printenv", "LD_PRELOAD"],
            check=True,
            capture_output=True,
            text=True,
        )
        self.environment = {
            # The variant for programs with threads.
            "LD_PRELOAD": preload.stdout.strip().replace("faketime.so", "faketimeMT.so"),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # its fix makes threads hang with this glibc
        }

    def set(self, seconds: int) -> None:
        """Move the clock forward, or back if negative."""
        beside = self.file.with_suffix(".new")
        beside.write_text(f"{seconds:+d}\n")
        beside.replace(self.file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def server(new_server: ServerFactory, clock: Clock) -> Iterator[Server]:
    return new_server(
        "--KbridgeApp.ws_ping_interval=0.5",
        "--KbridgeApp.request_timeout=1",
        "--BridgeKernelManager.cull_idle_timeout=2",
        "--BridgeKernelManager.cull_interval=1",
        env=clock.environment,
    )


class Pinged(ClientConnection):
    """A websocket that counts pings."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pings: asyncio.Queue[None] = asyncio.Queue()

    def process_event(self, event: Any) -> None:
        if getattr(event, "opcode", None) is Opcode.PING and not event.data:
            self.pings.put_nowait(None)
        super().process_event(event)


def _server_date(server: Server) -> float:
    """Return the wall clock of the server, from the Date header of a reply."""
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(server.request("GET", "/api").headers["Date"]).timestamp()


@pytest.mark.parametrize("jump", [-HOUR, HOUR], ids=["back", "forward"])
async def test_setting_the_clock_stops_nothing(server: Server, clock: Clock, jump: int) -> None:
    kernel = server.start_kernel("mute")
    unused = server.start_kernel("mute")
    await asyncio.to_thread(server.request, "GET", "/api")
    async with attach(server, kernel, create_connection=Pinged) as client:
        assert isinstance(client.ws, Pinged)
        async with asyncio.timeout(TIMEOUT):
            await client.ws.pings.get()
        clock.set(jump)

        def jumped() -> bool:  # libfaketime reads its file once per second
            return abs(_server_date(server) - time.time() - jump) < HOUR / 2

        await asyncio.to_thread(eventually, jumped, "the server sees the clock jump")
        for token, status in ((None, 403), ("wrong", 403), (server.token, 200)) * 3:
            reply = await asyncio.to_thread(server.request, "GET", "/api/kernels", token=token)
            assert reply.status == status
        async with await RawConnection.dial(server) as silent:
            assert await silent.until_end() == b""  # request_timeout has ended it
        while not client.ws.pings.empty():
            client.ws.pings.get_nowait()
        async with asyncio.timeout(TIMEOUT):
            for _ in range(3):
                await client.ws.pings.get()

        def culled() -> bool:
            listed = server.request("GET", "/api/kernels").json()
            return unused not in {model["id"] for model in listed}

        await asyncio.to_thread(eventually, culled, "an unused kernel is culled")
        assert kernel in {m["id"] for m in server.request("GET", "/api/kernels").json()}
