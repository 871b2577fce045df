"""Real hubs whose kernels are in memory: they answer when a test lets them."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from kbridge.hub import Hub, HubTable
from kbridge.hub.settings import HubSettings
from kbridge.link.endpoints import Endpoints
from kbridge.link.interfaces import KernelEvents, RawMessage
from kbridge.link.memory import MemoryKernel
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.message import Channel, Message
from kbridge.wire.zmq import parse, serialize
from tests.hub.rig import Peer, received
from tests.support.waiting import TIMEOUT

Reply = Callable[[str, Mapping[str, Any]], Any]
"""Returns the content of the reply to a request, by its type and content; None for no reply."""


class MemoryProcess(MemoryKernel):
    """The sockets of one process of a kernel; silent until `answer` was called."""

    def __init__(self, endpoints: Endpoints, events: KernelEvents, identity: bytes) -> None:
        super().__init__(endpoints, events, identity)
        self.events = events
        self.kernel: KernelInMemory | None = None
        self.answering = False
        self.probes = 0
        self._read = 0

    def send(self, channel: Channel, frames: Any) -> bool:
        taken = super().send(channel, frames)
        self._wake()
        return taken

    def answer(self) -> None:
        """Finish the handshakes, and answer all requests from now on."""
        if not self.answering:
            self.answering = True
            self._wake()

    def lose_connection(self) -> None:
        """Disconnect; `answer` connects again."""
        self.answering = False
        self.disconnect()

    def publish(self, state: str, parent: bytes = b'{"msg_id": "a cell"}') -> None:
        """Send a status on iopub."""
        self._say(Channel.IOPUB, "status", {"execution_state": state}, parent)

    def _wake(self) -> None:
        if self.answering:
            # Not at once: a kernel does not answer while the hub is sending.
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        if self.closed or not self.answering or self.kernel is None:
            return
        self.connect()
        signer = self.kernel.hub.signer
        while self._read < len(self.sent):
            channel, frames = self.sent[self._read]
            self._read += 1
            self._answer(parse(channel, frames, signer))

    def _answer(self, request: Message) -> None:
        kernel = self.kernel
        assert kernel is not None
        if request.msg_type == "kernel_info_request":
            self.probes += 1
            reply: Any = {"status": "ok", "protocol_version": "5.3"}
        else:
            content = json.loads(bytes(request.content))
            kernel.requests.append((request.msg_type, content, request.channel))
            reply = kernel.reply(request.msg_type, content)
        if reply is not None:
            name = request.msg_type.replace("_request", "_reply")
            self._say(request.channel, name, reply, request.header)
        self.publish("idle", request.header)

    def _say(self, channel: Channel, name: str, content: Any, parent: bytes) -> None:
        assert self.kernel is not None
        signer = self.kernel.hub.signer
        date = "2026-01-02T03:04:05.000000Z"
        message = build(
            channel, name, content, session="in memory", date=date, parent_header=parent
        )
        frames: RawMessage = serialize(message, signer)
        if not self.closed:
            self.say(channel, frames)


class KernelInMemory:
    """A kernel, its processes, and what they and a client were sent.

    Attributes
    ----------
    hub : Hub
        The hub of the kernel.
    processes : list of MemoryProcess
        Those that the hub was connected to, newest last.
    requests : list of (str, dict, Channel)
        The requests to the kernel, without probes.
    adopted : bool
        True if the hub was opened for a kernel of an earlier server.
    """

    def __init__(self, hub: Hub, reply: Reply, *, adopted: bool = False) -> None:
        self.hub = hub
        self.adopted = adopted
        self.reply = reply
        self.processes: list[MemoryProcess] = []
        self.requests: list[tuple[str, dict[str, Any], Channel]] = []
        self._clients: list[Peer] = []
        self._restarting = hub.restarting
        hub.restarting = self._on_restarting  # type: ignore[method-assign]

    async def _on_restarting(self, **how: Any) -> None:
        # The operating system closes the connections of a process that has ended; in memory, this
        # is the moment when it has.
        if self.processes:
            self.process.lose_connection()
        await self._restarting(**how)

    @property
    def process(self) -> MemoryProcess:
        return self.processes[-1]

    @property
    def info(self) -> Endpoints:
        """The addresses that the hub is connected to."""
        return self.process.endpoints

    def connect_client(self) -> Peer:
        """Attach a client."""
        client = Peer()
        cursor = self.hub.attach(client, V1)
        client.hear = lambda payload: self.hub.on_pong(cursor, payload)
        client.answer()
        self._clients.append(client)
        return client

    @property
    def statuses(self) -> list[str]:
        """The statuses that the first client was sent."""
        messages = [m for m in received(self._clients[0]) if m.msg_type == "status"]
        return [json.loads(bytes(m.content))["execution_state"] for m in messages]

    async def told(self, status: str, times: int = 1) -> None:
        """Wait until the first client was sent a status."""
        async with asyncio.timeout(TIMEOUT):
            while self.statuses.count(status) < times:  # noqa: ASYNC110 - clients set no event
                await asyncio.sleep(0.005)

    async def replaced(self, times: int = 1) -> None:
        """Wait until the hub was connected to another process, and that answers."""
        async with asyncio.timeout(TIMEOUT):
            while len(self.processes) <= times or not self.hub.ready:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


class MemoryHubs(HubTable):
    """A table of hubs that notes which hubs were opened.

    Attributes
    ----------
    answering : bool
        True if processes answer as soon as they are connected to.
    reply : callable
        Returns the replies of kernels that are opened from now on.
    opened : list of KernelInMemory
        The kernels of all hubs, also of those that were closed.
    """

    def __init__(self) -> None:
        self.answering = True
        self.reply: Reply = lambda *_: {"status": "ok"}
        self.opened: list[KernelInMemory] = []
        self._new: list[MemoryProcess] = []
        super().__init__(HubSettings(), link=self._connect)

    def open(self, kernel_id: str, connection_info: Mapping[str, Any] | None, **how: Any) -> Hub:
        if self.get(kernel_id) is not None:
            return super().open(kernel_id, connection_info, **how)
        hub = super().open(kernel_id, connection_info, **how)
        kernel = KernelInMemory(hub, self.reply, adopted=how.get("adopted", False))
        self.opened.append(kernel)
        new, self._new = self._new, []
        assert len(new) == (connection_info is not None)
        for process in new:
            self._begin(kernel, process)
        return hub

    def kernel(self, kernel_id: str) -> KernelInMemory:
        """Return the kernel of an open hub."""
        hub = self[kernel_id]
        return next(kernel for kernel in self.opened if kernel.hub is hub)

    @property
    def closed(self) -> list[str]:
        """The ids of the kernels whose hubs were closed."""
        return [kernel.hub.kernel_id for kernel in self.opened if kernel.hub.closed]

    def _connect(
        self, endpoints: Endpoints, events: KernelEvents, identity: bytes
    ) -> MemoryProcess:
        process = MemoryProcess(endpoints, events, identity)
        activity = getattr(events, "activity", None)
        kernel = next((kernel for kernel in self.opened if kernel.hub.activity is activity), None)
        if kernel is None:
            self._new.append(process)  # of the hub that is being made
        else:
            self._begin(kernel, process)
        return process

    def _begin(self, kernel: KernelInMemory, process: MemoryProcess) -> None:
        process.kernel = kernel
        kernel.processes.append(process)
        if self.answering:
            process.answer()
