"""Cooperative clients: they send requests, read at their own pace, disconnect and reconnect."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

from tests.soak.client_profiles import ClientProfile
from tests.soak.expected import Request, RequestLog
from tests.soak.findings import Findings
from tests.soak.fleet import Fleet, SoakKernel
from tests.soak.raw_websocket import PING, TEXT, Closed, RawWebsocket, Refused, upgrade
from tests.soak.session_check import SessionCheck
from tests.soak.workloads import code_for
from tests.support.dialects import CODECS

__all__ = ["CooperativeClient"]

STALL = 60.0  # seconds without a frame after which an answer counts as lost
QUIET = 1.0  # seconds without a frame after which all frames count as received
_GONE = frozenset({1001, 1012})  # the kernel or the server was shut down


class _Died(Exception):
    """The client disconnected."""


class _Left(Exception):
    """The client is done with this kernel."""


class CooperativeClient:
    """One client.

    Parameters
    ----------
    profile, dialect, narrow
        The kind, the dialect and the server.
    seed : str
        The seed of its random numbers.
    over : Event
        Set when the client should end.
    """

    def __init__(
        self,
        profile: ClientProfile,
        dialect: str,
        fleet: Fleet,
        requests: RequestLog,
        findings: Findings,
        over: asyncio.Event,
        *,
        narrow: bool,
        seed: str,
    ) -> None:
        self.profile = profile
        self.dialect = dialect
        self.narrow = narrow
        self.name = f"{profile.name}, {dialect}" + (", narrow" if narrow else "")
        self.dice = random.Random(f"{seed}/{self.name}")
        self.fleet = fleet
        self.requests = requests
        self.findings = findings
        self.over = over
        self.abandoned: list[RawWebsocket] = []

    async def run(self) -> None:
        """Use one kernel after the other."""
        try:
            while not self.over.is_set():
                await self.visit(self.fleet.choose(self.dice, narrow=self.narrow))
        finally:
            for websocket in self.abandoned:
                websocket.reset()

    async def visit(self, kernel: SoakKernel) -> None:
        """Use one kernel, and disconnect."""
        await _KernelVisit(self, kernel).run()
        self.count("visits")

    def count(self, what: str, count: int = 1) -> None:
        self.findings.add(self.profile.name, what, count)

    def abandon(self, websocket: RawWebsocket) -> None:
        """Leave a connection open without reading from it."""
        self.abandoned.append(websocket)
        if len(self.abandoned) > 3:
            self.abandoned.pop(0).reset()


class _KernelVisit:
    """One session of a client with one kernel."""

    def __init__(self, client: CooperativeClient, kernel: SoakKernel) -> None:
        self.client = client
        self.kernel = kernel
        self.dice = client.dice
        self.session = uuid.UUID(int=self.dice.getrandbits(128)).hex
        self.check = SessionCheck(
            f"{client.name} on {kernel}",
            self.session,
            client.requests,
            client.findings,
            kernel=kernel.kernel_id,
            calm=kernel.calm,
            since=client.profile.since,
            narrow=kernel.narrow,
        )
        self.asks = self.dice.randint(1, client.profile.asks)
        self.pending: Request | None = None
        self.probe: Request | None = None
        self.question: dict[str, Any] | None = None  # the content of the pending request
        self.doubtful = False  # True if the pending request may be lost
        self.restarts = 0
        self.whole = False  # True if all messages were received
        self._asked = 0
        self._dies_at = 0

    async def run(self) -> None:
        back = False
        try:
            while True:
                websocket = await self._open(back)
                self.client.count("connections")
                back = True
                self.check.connected()
                try:
                    await self._talk(websocket)
                except _Died:
                    self.client.count("deaths")
                    self.probe = None  # the request may not have arrived
                    if self.pending is not None and not self._heard(self.pending):
                        self.doubtful = True
                    await asyncio.sleep(self.dice.choice((0, 0.02, 0.1, 0.3, 1.0)))
                finally:
                    if websocket not in self.client.abandoned:
                        websocket.drop()
        except _Left:
            pass
        except Refused as refused:
            if not (refused.status == 404 and self.kernel.gone):
                self.check.fault(f"the upgrade was answered with {refused.status}")
        except Closed as closed:
            # A server whose client does not read ends the connection without a close frame.
            if not (self.kernel.gone and closed.code in {0, *_GONE}):
                self.check.fault(f"the server closed: {closed}")
        finally:
            if self.whole:
                self.check.settle()
            for what in ("messages", "lines", "twice", "missing", "marked"):
                self.client.count(what, getattr(self.check, what))

    # -- connections ------------------------------------------------------------------------

    def _path(self, back: bool) -> str:
        last = self.check.last_id if back and self.client.profile.since else ""
        since = f"&since={last}" if last else ""
        return f"/api/kernels/{self.kernel.kernel_id}/channels?session_id={self.session}{since}"

    async def _open(self, back: bool) -> RawWebsocket:
        server, path = self.kernel.server, self._path(back)
        if self.client.profile.life:
            self._dies_at = self.check.messages + int(
                1 + self.dice.expovariate(1 / self.client.profile.life)
            )
        try:
            async with asyncio.timeout(STALL):
                websocket = await RawWebsocket.open(
                    server.port, path, server.token, self.client.dialect, self.client.profile.window
                )
        except TimeoutError:
            self.check.fault("the upgrade was not answered")
            raise _Left from None
        websocket.bite = self.client.profile.bite
        websocket.pause = self._pause
        return websocket

    def _pause(self) -> float:
        if self.client.over.is_set():
            return 0.0
        return self.dice.random() * self.client.profile.pause

    async def _die(self, websocket: RawWebsocket) -> None:
        how = self.dice.choice(self.client.profile.deaths)
        self.check.deaths.append(how)
        if how == "silence":
            self.client.abandon(websocket)
        elif how == "fin":
            websocket.hang_up()
        elif how == "close":
            await self._say_goodbye(websocket)
        else:
            if how == "half frame":
                websocket.half_frame()
            websocket.reset()
        if how in {"half request", "unread 101"}:
            await self._die_again(how)
        raise _Died

    async def _catch_up(self, websocket: RawWebsocket) -> bool:
        """Read until no more data arrives; return False if that did not happen in time.

        A client that has fallen behind the journal receives the frames with state first, including
        the last reply, then the marker and the remaining frames.
        """
        for _ in range(5_000):
            got = await websocket.receive(QUIET)
            if got is None:
                return True
            self._note(got)
        return False

    async def _say_goodbye(self, websocket: RawWebsocket) -> None:
        """Close with a handshake; data before the close frame of the server counts."""
        websocket.begin_close()
        websocket.pause = lambda: 0.0  # megabytes may be in transit
        try:
            deadline = asyncio.get_running_loop().time() + STALL
            while asyncio.get_running_loop().time() < deadline:
                got = await websocket.receive(STALL)
                if got is None:
                    break
                self._note(got)
            self.check.fault(f"a close was not answered for {STALL:.0f} s")
        except Closed as closed:
            # For a client that lags, data in transit is dropped, including the close frame.
            if closed.code not in {0, 1000, *_GONE}:
                self.check.fault(f"a close was answered with {closed}")
            self.whole = closed.code == 1000
        websocket.hang_up()

    async def _die_again(self, how: str) -> None:
        """Reconnect, and disconnect during the handshake."""
        server = self.kernel.server
        request = upgrade(server.port, self._path(True), server.token, self.client.dialect)
        websocket = await RawWebsocket.dial(server.port, self.client.dialect)
        websocket.writer.write(request[: len(request) // 2] if how == "half request" else request)
        await asyncio.sleep(self.dice.choice((0, 0, 0.005)))
        websocket.reset()

    # -- talking ----------------------------------------------------------------------------

    async def _talk(self, websocket: RawWebsocket) -> None:
        clock = asyncio.get_running_loop().time
        heard = clock()
        ask_at = heard + self._think()
        if self.client.profile.since:
            self._answer(websocket)  # the request is not repeated, and the answer may be lost
        self._progress(websocket)
        while True:
            if self.pending is None and clock() >= ask_at:
                if self._asked >= self.asks or self.client.over.is_set():
                    caught_up = not self.kernel.narrow or await self._catch_up(websocket)
                    await self._say_goodbye(websocket)
                    self.whole = self.whole and caught_up
                    raise _Left
                self._ask(websocket)
            due = heard + STALL if self.pending else min(ask_at, clock() + 0.5)
            got = await websocket.receive(max(0.01, due - clock()))
            if got is None:
                if self.pending is not None:
                    await self._stalled(clock() - heard)
                continue
            if got[0] != PING:
                heard = clock()
            was = self.pending
            self._note(got, websocket)
            if was is not None and self.pending is None:
                ask_at = heard + self._think()
            if self._dies_at and self.check.messages >= self._dies_at:
                await self._die(websocket)

    def _answer(self, websocket: RawWebsocket) -> None:
        if self.question is not None:
            self._send(websocket, "input_reply", {"value": "yes"}, "stdin", self.question)

    def _think(self) -> float:
        if self.client.over.is_set():
            return 0.0
        return self.dice.random() * (0.3 if self.client.profile.talks else 3.0)

    def _note(self, got: tuple[int, bytes], websocket: RawWebsocket | None = None) -> None:
        opcode, payload = got
        if opcode == PING:
            self.check.ping(payload)
            return
        data: Any = payload.decode() if opcode == TEXT else payload
        msg = CODECS[self.client.dialect].decode(data)
        self.check.take(msg)
        if msg["header"]["msg_type"] == "input_request":
            self.question = msg["header"]
            if websocket is not None:
                self._answer(websocket)
        if websocket is None:
            return
        self._progress(websocket)

    def _progress(self, websocket: RawWebsocket) -> None:
        """Return True if the request is answered or cannot be answered."""
        if self.pending is None:
            self.restarts = self.check.restarts
            return
        if self._done(self.pending):
            self.client.count("requests")
            self.pending = self.probe = self.question = None
            self.doubtful = False
        elif self.check.restarts > self.restarts:
            self.restarts, self.doubtful = self.check.restarts, True
            self.probe = self._request(websocket, "kernel_info_request", {})
        elif self.probe is not None and self._done(self.probe):
            if not self.doubtful:
                self.check.fault(f"{self.pending.msg_id} was not answered, a later one was")
            self.client.count("requests given up")
            self.pending = self.probe = self.question = None
        elif self.probe is None and self.doubtful:
            self.probe = self._request(websocket, "kernel_info_request", {})

    def _done(self, request: Request) -> bool:
        cell = self.check.cells.get(request.msg_id)
        return cell is not None and cell.done

    def _heard(self, request: Request) -> bool:
        return request.msg_id in self.check.cells

    async def _stalled(self, quiet: float) -> None:
        assert self.pending is not None
        reply = await self.kernel.server.call("GET", f"/api/kernels/{self.kernel.kernel_id}")
        cell = self.check.cells.get(self.pending.msg_id)
        known = f"seen {sorted(cell.seen)}, line {cell.next}" if cell else "never heard of"
        self.check.fault(
            f"nothing for {quiet:.0f} s, while {self.pending.msg_id} is under way:"
            f" {known}; deaths: {self.check.deaths[-3:]}; question: {self.question is not None};"
            f" {reply.body.decode()}"
        )
        raise _Left

    # -- asking -----------------------------------------------------------------------------

    def _ask(self, websocket: RawWebsocket) -> None:
        self._asked += 1
        self.restarts = self.check.restarts
        self.probe, self.doubtful = None, False
        if not self.client.profile.talks or self.dice.random() < 0.2:
            self.pending = self._request(websocket, "kernel_info_request", {})
            return
        lines, size = self.dice.randint(1, 1000), self.dice.randint(20, 250)
        code = code_for(self.kernel.spec, self.dice, lines, size)
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": False,
        }
        self.pending = self._request(websocket, "execute_request", content, lines, size)

    def _request(
        self,
        websocket: RawWebsocket,
        msg_type: str,
        content: dict[str, Any],
        lines: int = 0,
        size: int = 0,
    ) -> Request:
        msg_id = self._send(websocket, msg_type, content)
        return self.client.requests.add(
            Request(msg_id, self.session, lines, size, self.kernel.kernel_id)
        )

    def _send(
        self,
        websocket: RawWebsocket,
        msg_type: str,
        content: dict[str, Any],
        channel: str = "shell",
        parent: dict[str, Any] | None = None,
    ) -> str:
        msg_id = uuid.uuid4().hex
        header = {
            "msg_id": msg_id,
            "msg_type": msg_type,
            "session": self.session,
            "username": "soak",
            "date": "2026-01-01T00:00:00.000000Z",
            "version": "5.3",
        }
        websocket.send(
            {
                "channel": channel,
                "header": header,
                "parent_header": parent or {},
                "metadata": {},
                "content": content,
                "buffers": [],
            }
        )
        return msg_id
