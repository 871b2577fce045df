"""The sockets of a kernel, and a recorder of the events of a link, for tests of links."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import zmq
import zmq.asyncio

from kbridge.link.endpoints import Endpoints
from kbridge.wire.message import Channel
from kbridge.wire.zmq import DELIMITER
from tests.support.waiting import TIMEOUT

TYPES = {
    Channel.IOPUB: zmq.PUB,
    Channel.SHELL: zmq.ROUTER,
    Channel.CONTROL: zmq.ROUTER,
    Channel.STDIN: zmq.ROUTER,
}


class Side:
    """The kernel's sockets."""

    def __init__(
        self,
        ports: dict[Channel, int] | None = None,
        curve: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.context = zmq.asyncio.Context()
        self.curve = curve
        self.sockets = {}
        self.ports = {}
        for channel, kind in TYPES.items():
            socket = self.context.socket(kind)
            socket.linger = 0
            # A PUB drops messages beyond its limit, which a test that sends until something arrives
            # reaches if the I/O thread gets no time.
            socket.sndhwm = 0
            if curve is not None:
                socket.curve_publickey, socket.curve_secretkey = curve
                socket.curve_server = True
            if ports is None:
                self.ports[channel] = socket.bind_to_random_port("tcp://127.0.0.1")
            else:
                self.ports[channel] = ports[channel]
                socket.bind(f"tcp://127.0.0.1:{ports[channel]}")
            self.sockets[channel] = socket

    @property
    def endpoints(self) -> Endpoints:
        return Endpoints("tcp", "127.0.0.1", self.ports, b"key", curve=self.curve)

    def close(self) -> None:
        for each in self.sockets.values():
            each.close(0)
        self.context.term()


class Recorder:
    """Records the events of a link; a test can wait for them."""

    def __init__(self) -> None:
        self.messages: list[tuple[Channel, list[bytes]]] = []
        self.drained = 0
        self.news: list[str] = []
        self.stdin: list[str] = []
        self.gone: list[Channel] = []
        self.unsupported: list[Channel] = []
        self._changed = asyncio.Event()

    def on_messages(self, channel, batch) -> None:
        self.messages += [(channel, [bytes(p) for p in parts]) for parts in batch]
        self._changed.set()

    def on_drained(self) -> None:
        self.drained += 1

    def on_writable(self, channel) -> None:
        self._tell(f"writable {channel}")

    def on_connected(self, channel) -> None:
        self._tell("connected", channel)

    def on_disconnected(self, channel) -> None:
        self._tell("disconnected", channel)

    def on_gone(self, channel, fault=None) -> None:
        self.gone.append(channel)
        self._changed.set()

    def on_unsupported(self, channel) -> None:
        self.unsupported.append(channel)
        self._changed.set()

    def _tell(self, what: str, channel: Channel = Channel.IOPUB) -> None:
        if channel in (Channel.IOPUB, Channel.STDIN):
            (self.news if channel is Channel.IOPUB else self.stdin).append(what)
        self._changed.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def body(n: int) -> list[bytes]:
    return [DELIMITER, b"sig", b'{"n":%d}' % n, b"{}", b"{}", json.dumps({"n": n}).encode()]


async def until_subscribed(side: Side, events: Recorder) -> None:
    """A PUB socket drops messages until the subscription has arrived."""
    async with asyncio.timeout(TIMEOUT):
        while not events.messages:
            await side.sockets[Channel.IOPUB].send_multipart([b"hello", *body(-1)])
            await asyncio.sleep(0)
    events.messages = []


def limited(side: Side, limit: int) -> Endpoints:
    """Return the endpoints of a kernel, and accept parts of so many bytes on iopub only."""
    return dataclasses.replace(side.endpoints, message_limit=limit)


def large(size: int) -> list[bytes]:
    return [*body(0)[:-1], b"x" * size]
