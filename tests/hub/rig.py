"""A hub on links in memory, with a clock that stands still until a test moves it."""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kbridge.hub.broadcast.burst import Allowance
from kbridge.hub.broadcast.cursor import Cursor
from kbridge.hub.broadcast.rendering import Renderer
from kbridge.hub.clock import Clock
from kbridge.hub.context import HubContext, HubEnvironment
from kbridge.hub.hub import Hub
from kbridge.hub.notices import Notices
from kbridge.hub.rejected import REJECTED, DroppedMessages
from kbridge.hub.settings import HubSettings
from kbridge.link.interfaces import KernelEvents
from kbridge.link.memory import MemoryClient, MemoryKernel
from kbridge.storage.store import JournalStore
from kbridge.wire import v1
from kbridge.wire.build import build
from kbridge.wire.dialects import V1
from kbridge.wire.frames import PING, each
from kbridge.wire.message import Channel, Message
from kbridge.wire.signing import Signer
from kbridge.wire.zmq import parse, serialize

KEY = b"a key that is no secret"
INFO = {
    "transport": "tcp",
    "ip": "127.0.0.1",
    "shell_port": 1,
    "iopub_port": 2,
    "stdin_port": 3,
    "control_port": 4,
    "hb_port": 5,
    "key": KEY,
    "signature_scheme": "hmac-sha256",
}


class StoppedClock(Clock):
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + self.now


def make_context(
    clock: Clock, settings: HubSettings | None = None, *, adopted: bool = False
) -> HubContext:
    """Return the objects that the parts of a hub share, for tests of one part."""
    log = logging.getLogger("kbridge.hub")
    notices = Notices(clock, adopted=adopted)
    rejected = DroppedMessages(REJECTED, "a-kernel", clock, log)
    return HubContext("a-kernel", settings or HubSettings(), clock, log, notices, rejected)


def frames_of(data: bytes) -> list[tuple[int, bytes]]:
    """Return opcode and payload of the websocket frames in some bytes, without pings."""
    found, at = [], 0
    while at < len(data):
        opcode, size = data[at] & 0x0F, data[at + 1]
        at += 2
        if size == 126:
            size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
        elif size == 127:
            size, at = int.from_bytes(data[at : at + 8], "big"), at + 8
        if opcode != PING:
            found.append((opcode, bytes(data[at : at + size])))
        at += size
    assert at == len(data), "a frame is cut short"
    return found


class Peer(MemoryClient):
    """A websocket whose peer answers pings unless it is silent."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = False
        self.hear: Callable[[bytes], None] | None = None
        self.pings: list[bytes] = []
        self._looked_at = 0

    def answer(self) -> None:
        out = bytes(self.written[self._looked_at :])
        self._looked_at = len(self.written)
        self.pings += [payload for opcode, payload in each(out) if opcode == PING]
        while self.pings and self.hear is not None and not self.silent:
            self.hear(self.pings.pop(0))

    def write(self, data: bytes) -> bool:
        written = super().write(data)
        self.answer()
        return written

    def resume(self) -> None:
        # The held data is written before the owner is notified, and before the pong.
        told, self.on_writable = self.on_writable, self.answer
        super().resume()
        self.on_writable = told
        told()


class Rig:
    """A hub, its kernel, and any number of clients."""

    def __init__(
        self, settings: HubSettings, *, adopted: bool = False, store: JournalStore | None = None
    ) -> None:
        self.clock = StoppedClock()
        self.kernels: list[MemoryKernel] = []
        self.events: list[KernelEvents] = []
        self.signer = Signer(KEY)
        self.process = "the-kernel"  # the session of the process; another process has another one
        self.environment = HubEnvironment(link=self._link, clock=self.clock, store=store)
        self.hub = self.open(settings, former=() if adopted else None)

    def open(
        self,
        settings: HubSettings | None = None,
        *,
        allowance: Allowance | None = None,
        former: Sequence[bytes] | None = None,
    ) -> Hub:
        """Create another hub with the links and the clock of this rig."""
        environment = replace(self.environment, allowance=allowance)
        return Hub("a-kernel", INFO, settings, environment=environment, former=former)

    def _link(self, endpoints: Any, events: Any, identity: bytes) -> MemoryKernel:
        self.events.append(events)
        self.kernels.append(MemoryKernel(endpoints, events, identity))
        return self.kernels[-1]

    @property
    def kernel(self) -> MemoryKernel:
        return self.kernels[-1]

    @property
    def link_events(self) -> KernelEvents:
        """The receiver of the latest link's events, for events that `MemoryKernel` cannot cause."""
        return self.events[-1]

    # The timers of a hub use the clock of the event loop: these methods fire them at once.

    def fire_nudge_timer(self, hub: Hub | None = None) -> None:
        """Probe the kernel if that is due."""
        (hub or self.hub)._kernel.poll()

    def fire_recovery_timer(self, hub: Hub | None = None) -> None:
        """Build the replies that are due, and look for cells without an idle status."""
        (hub or self.hub)._kernel.recover()

    @property
    def ping_delay(self) -> float | None:
        """The seconds until the ping that waits for its delay to pass; None without one."""
        timer = self.hub._broadcaster.delivery._ping_timer
        return None if timer is None else timer.when() - asyncio.get_running_loop().time()

    @property
    def pings_later(self) -> bool:
        """True if a ping waits for its delay to pass."""
        return self.ping_delay is not None

    def fire_ping_timer(self) -> None:
        """Send the pings that wait for their delay to pass."""
        delivery = self.hub._broadcaster.delivery
        if delivery._ping_timer is not None:
            delivery._ping_timer.cancel()
            delivery._on_ping_delay()

    def awaits_ack(self, cursor: Cursor) -> bool:
        """True while a websocket has to acknowledge frames before more is written."""
        return cursor in self.hub._broadcaster.delivery._ack_timers

    @property
    def paced(self) -> bool:
        """True if output is held back."""
        return self.hub._broadcaster.delivery._pace_timer is not None

    def fire_pace_timer(self) -> None:
        """Release the output that is due."""
        delivery = self.hub._broadcaster.delivery
        if delivery._pace_timer is not None:
            delivery._pace_timer.cancel()
            delivery._on_pace()

    @property
    def ack_origin(self) -> int:
        """Added to the journal's sequence numbers in pings."""
        return self.hub._broadcaster._lives.origin

    @property
    def renderer(self) -> Renderer:
        """The renderer of the journal."""
        return self.hub._broadcaster.delivery._renderer

    def sent(self, channel: Channel | None = None) -> list[Message]:
        """Return the messages that clients sent to the kernel."""
        messages = [parse(c, frames, self.signer) for c, frames in self.kernel.sent]
        mark = self.hub.notices.mark
        return [m for m in messages if mark not in m.header and channel in (None, m.channel)]

    def probes(self) -> list[Message]:
        messages = [parse(c, frames, self.signer) for c, frames in self.kernel.sent]
        return [m for m in messages if self.hub.notices.mark in m.header]

    def message(
        self, channel: Channel, msg_type: str, content: dict, parent: bytes = b"{}", **more: Any
    ) -> Message:
        return build(
            channel,
            msg_type,
            content,
            session=self.process,
            date=self.clock.iso(),
            parent_header=parent,
            **more,
        )

    def say(self, *messages: Message) -> None:
        """Send messages from the kernel, all on the channel of the first."""
        self.kernel.say(messages[0].channel, *(serialize(m, self.signer) for m in messages))

    def stream(self, text: str, parent: bytes = b"{}") -> Message:
        return self.message(Channel.IOPUB, "stream", {"name": "stdout", "text": text}, parent)

    def request(self, msg_type: str = "execute_request", **content: Any) -> Message:
        return self.message(Channel.SHELL, msg_type, content)

    def prove(self, protocol: Any = "5.3") -> None:
        """Answer the latest probe on control and on iopub."""
        self.kernel.connect()
        probe = next(p for p in reversed(self.probes()) if p.channel is Channel.CONTROL)
        info = {"protocol_version": protocol, "status": "ok"}
        self.say(self.message(Channel.CONTROL, "kernel_info_reply", info, probe.header))
        self.say(self.message(Channel.IOPUB, "status", {"execution_state": "idle"}, probe.header))
        assert self.hub.ready

    def attach(
        self, session_id: str = "", dialect: Any = V1, *, silent: bool = False, **more: Any
    ) -> tuple[Peer, Any]:
        client = Peer()
        client.silent = silent
        attachment = self.hub.attach(client, dialect, session_id, **more)
        client.hear = lambda payload: self.hub.on_pong(attachment, payload)
        client.answer()
        return client, attachment


def texts(client: MemoryClient) -> list[str]:
    """Return the stream texts that a v1 client received."""
    return [json.loads(m.content)["text"] for m in received(client) if m.msg_type == "stream"]


def received(client: MemoryClient) -> list[Message]:
    """Return the messages that a v1 client was sent."""
    return [v1.decode(payload) for opcode, payload in frames_of(client.written) if opcode == 2]
