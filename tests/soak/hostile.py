"""Hostile or broken clients, which may receive errors and closed connections."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable

from tests.soak.findings import Findings
from tests.soak.fleet import Fleet, SoakKernel
from tests.soak.raw_websocket import (
    BINARY,
    PING,
    PONG,
    TEXT,
    Closed,
    RawWebsocket,
    Refused,
    frame,
    upgrade,
)

__all__ = ["Hostile"]

PATIENCE = 60.0
_TOO_MUCH = (1 << 20) + 4096  # more than `websocket_max_message_size` of the roomy server
_FRAMES = {
    "text where v1 is binary": frame(TEXT, b"{}"),
    "nothing": frame(BINARY, b""),
    "ten million offsets": frame(BINARY, struct.pack("<QQ", 10_000_000, 8)),
    "not masked": frame(BINARY, b"hello", masked=False),
    "reserved bits": frame(BINARY, b"hello", first=0xF0),
    "an opcode that is none": frame(0x3, b"hello"),
    "a ping of 200 bytes": frame(PING, b"x" * 200),
    "a continuation of nothing": frame(0x0, b"hello"),
    "half a message of noise": frame(BINARY, struct.pack("<QQ", 6, 56) + b"\xff" * 100),
}
_LIES = (b"", b"0", b"1", b"-1", b"99999999999999999999", b"\xff\xfe", b"1e3", b"x" * 125)
_QUERIES = (
    "session_id=%ff",
    "since=%00",
    "since=-1",
    "since=99999999999999999999",
    "since=nobody&session_id=" + "s" * 4000,
    "since=start&since=start",
    "session_id=" + "%F0%9F%A6%84" * 50,
)


class Hostile:
    """One hostile client.

    Parameters
    ----------
    name : str
        Which of `Hostile.KINDS`.
    """

    KINDS = ("frames", "oversize", "tokens", "half open", "noise", "liars", "queries")

    def __init__(
        self, name: str, fleet: Fleet, findings: Findings, over: asyncio.Event, seed: str
    ) -> None:
        self.name = name
        self.fleet = fleet
        self.findings = findings
        self.over = over
        self.dice = random.Random(f"{seed}/{name}")
        self._do: Callable[[SoakKernel], Awaitable[None]] = getattr(
            self, "_" + name.replace(" ", "_")
        )

    async def run(self) -> None:
        """Repeat the attack."""
        while not self.over.is_set():
            kernel = self.fleet.choose(self.dice, narrow=self.name != "oversize" and self._coin())
            try:
                await self._do(kernel)
                self.findings.add("hostile", self.name)
            except (Refused, Closed, ConnectionError):
                self.findings.add("hostile", f"{self.name}, sent away")
            await asyncio.sleep(self.dice.random() * 0.2)

    def _coin(self) -> bool:
        return self.dice.random() < 0.5

    def _path(self, kernel: SoakKernel, query: str = "") -> str:
        return f"/api/kernels/{kernel.kernel_id}/channels?{query}"

    async def _open(self, kernel: SoakKernel, query: str = "") -> RawWebsocket:
        server = kernel.server
        return await RawWebsocket.open(server.port, self._path(kernel, query), server.token)

    async def _ends(self, websocket: RawWebsocket, what: str, *codes: int) -> None:
        """Wait until the server closes the connection with an expected code."""
        try:
            async with asyncio.timeout(PATIENCE):
                await websocket.drain()
        except TimeoutError:
            self.findings.fault("hostile", f"{what}: not closed for {PATIENCE:.0f} s")
        except Closed as closed:
            if closed.code not in {0, 1001, 1012, *codes}:
                self.findings.fault("hostile", f"{what}: closed with {closed}")
        finally:
            websocket.reset()

    async def _frames(self, kernel: SoakKernel) -> None:
        what = self.dice.choice([*_FRAMES])
        websocket = await self._open(kernel)
        websocket.writer.write(_FRAMES[what])
        await self._ends(websocket, what, 1002, 1003, 1007, 1008)

    async def _oversize(self, kernel: SoakKernel) -> None:
        websocket = await self._open(kernel)
        head = frame(BINARY, bytes(_TOO_MUCH))[:14]
        websocket.writer.write(head + bytes(self.dice.choice((0, 1000, 100_000))))
        await self._ends(websocket, "a message that is too large", 1009)

    async def _tokens(self, kernel: SoakKernel) -> None:
        websocket = await RawWebsocket.dial(kernel.server.port)
        token = self.dice.choice(("", "wrong", "x" * 5000, "correct-horse"))
        websocket.writer.write(upgrade(kernel.server.port, self._path(kernel), token))
        try:
            async with asyncio.timeout(PATIENCE):
                await websocket.opened()
            self.findings.fault("hostile", f"the token {token[:20]!r} was taken")
        except TimeoutError:
            self.findings.fault("hostile", "a wrong token got no answer")
        except Refused as refused:
            if refused.status != 403:
                self.findings.fault("hostile", f"a wrong token got {refused.status}")
        finally:
            websocket.reset()

    async def _half_open(self, kernel: SoakKernel) -> None:
        """Keep a few silent connections or incomplete requests open."""
        server = kernel.server
        request = upgrade(server.port, self._path(kernel), server.token)
        held = []
        try:
            for _ in range(20):
                websocket = await RawWebsocket.dial(server.port)
                websocket.writer.write(request[: self.dice.randrange(len(request))])
                held.append(websocket)
            await asyncio.sleep(self.dice.random())
        finally:
            for websocket in held:
                self.dice.choice((websocket.reset, websocket.hang_up))()

    async def _noise(self, kernel: SoakKernel) -> None:
        websocket = await RawWebsocket.dial(kernel.server.port)
        websocket.writer.write(self.dice.randbytes(self.dice.randrange(1, 3000)) + b"\r\n\r\n")
        await self._ends(websocket, "noise")

    async def _liars(self, kernel: SoakKernel) -> None:
        """Acknowledge frames that were never sent, and stop reading."""
        websocket = await self._open(kernel, f"session_id=liar-{self.dice.randrange(3)}")
        try:
            for _ in range(self.dice.randrange(1, 20)):
                websocket.writer.write(frame(PONG, self.dice.choice(_LIES)))
                await websocket.receive(0.01)
            await asyncio.sleep(self.dice.random())
        finally:
            websocket.reset()

    async def _queries(self, kernel: SoakKernel) -> None:
        websocket = await self._open(kernel, self.dice.choice(_QUERIES))
        try:
            await websocket.receive(0.1)
        finally:
            websocket.hang_up()
