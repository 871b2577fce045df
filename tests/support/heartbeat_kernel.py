"""The heartbeat port of a kernel, which a test can stop."""

from __future__ import annotations

import asyncio

import zmq
import zmq.asyncio

__all__ = ["HeartbeatKernel"]


class HeartbeatKernel:
    """Answers pings until a test stops it."""

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:*",
        kind: int = zmq.ROUTER,
        curve: tuple[bytes, bytes] | None = None,
        answers: int = 1,
    ) -> None:
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger = 0
        if ":" in address.removeprefix("tcp:"):
            self.socket.ipv6 = "[" in address
        if curve is not None:
            self.socket.curve_publickey, self.socket.curve_secretkey = curve
            self.socket.curve_server = True
        self.socket.bind(address)
        self.address = self.socket.last_endpoint.rstrip(b"\0").decode()
        self.answers = answers
        self.asked = 0
        self.connections: set[bytes] = set()  # identities of the peers, as a ROUTER sees them
        self._beating = asyncio.Event()
        self._beating.set()
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            await self._beating.wait()
            ping = await self.socket.recv_multipart()
            await self._beating.wait()
            self.asked += 1
            self.connections.add(ping[0])
            for _ in range(self.answers):
                await self.socket.send_multipart(ping)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def stop(self) -> None:
        self._beating.clear()

    def go_on(self) -> None:
        self._beating.set()

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.socket.close(0)
        self.context.term()
