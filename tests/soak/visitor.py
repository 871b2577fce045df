"""Cooperative clients: they ask, read at their pace, die in their manner, and come back."""

from __future__ import annotations

import asyncio
import random
import uuid
from typing import Any

from tests.soak.asks import code_for
from tests.soak.book import Book, Request
from tests.soak.findings import Findings
from tests.soak.fleet import Fleet, Post
from tests.soak.ledger import Ledger
from tests.soak.tempers import Temper
from tests.soak.wire import PING, TEXT, Closed, Refused, Wire, upgrade
from tests.support.dialects import CODECS

__all__ = ["Visitor"]

STALL = 20.0  # seconds without a frame after which an answer counts as lost
QUIET = 1.0  # seconds without a frame after which all has come
_GONE = frozenset({1001, 1012})  # the kernel was shut down, or the server


class _Died(Exception):
    """The client itself went away."""


class _Left(Exception):
    """There is no more to do at this kernel."""


class Visitor:
    """One client.

    Parameters
    ----------
    temper, dialect, narrow
        Of what kind, in which dialect, on which server.
    seed : str
        What its dice start from.
    over : Event
        Set when it should come to an end.
    """

    def __init__(
        self,
        temper: Temper,
        dialect: str,
        fleet: Fleet,
        book: Book,
        findings: Findings,
        over: asyncio.Event,
        *,
        narrow: bool,
        seed: str,
    ) -> None:
        self.temper = temper
        self.dialect = dialect
        self.narrow = narrow
        self.name = f"{temper.name}, {dialect}" + (", narrow" if narrow else "")
        self.dice = random.Random(f"{seed}/{self.name}")
        self.fleet = fleet
        self.book = book
        self.findings = findings
        self.over = over
        self.ghosts: list[Wire] = []

    async def run(self) -> None:
        """Visit one kernel after the other."""
        try:
            while not self.over.is_set():
                await self.visit(self.fleet.choose(self.dice, narrow=self.narrow))
        finally:
            for ghost in self.ghosts:
                ghost.reset()

    async def visit(self, post: Post) -> None:
        """Visit one kernel, and go again."""
        await _Visit(self, post).run()
        self.count("visits")

    def count(self, what: str, count: int = 1) -> None:
        self.findings.add(self.temper.name, what, count)

    def haunt(self, wire: Wire) -> None:
        """Leave a connection open that is read no more."""
        self.ghosts.append(wire)
        if len(self.ghosts) > 3:
            self.ghosts.pop(0).reset()


class _Visit:
    """A client at one kernel, under one session_id."""

    def __init__(self, visitor: Visitor, post: Post) -> None:
        self.v = visitor
        self.post = post
        self.dice = visitor.dice
        self.session = uuid.UUID(int=self.dice.getrandbits(128)).hex
        self.ledger = Ledger(
            f"{visitor.name} on {post}",
            self.session,
            visitor.book,
            visitor.findings,
            kernel=post.kernel_id,
            calm=post.calm,
            since=visitor.temper.since,
            narrow=post.narrow,
        )
        self.asks = self.dice.randint(1, visitor.temper.asks)
        self.pending: Request | None = None
        self.probe: Request | None = None
        self.question: dict[str, Any] | None = None  # what the pending request asks
        self.doubtful = False  # whether the pending request may never have arrived
        self.restarts = 0
        self.whole = False  # whether all was heard that was said to it
        self._asked = 0
        self._dies_at = 0

    async def run(self) -> None:
        back = False
        try:
            while True:
                wire = await self._open(back)
                self.v.count("connections")
                back = True
                self.ledger.connected()
                try:
                    await self._talk(wire)
                except _Died:
                    self.v.count("deaths")
                    self.probe = None  # it may not have arrived
                    if self.pending is not None and not self._heard(self.pending):
                        self.doubtful = True
                    await asyncio.sleep(self.dice.choice((0, 0.02, 0.1, 0.3, 1.0)))
                finally:
                    if wire not in self.v.ghosts:
                        wire.drop()
        except _Left:
            pass
        except Refused as refused:
            if not (refused.status == 404 and self.post.gone):
                self.ledger.fault(f"the upgrade was answered with {refused.status}")
        except Closed as closed:
            # A server that was not read from ends the connection without a word.
            if not (self.post.gone and closed.code in {0, *_GONE}):
                self.ledger.fault(f"the server closed: {closed}")
        finally:
            if self.whole:
                self.ledger.settle()
            for what in ("messages", "lines", "twice", "missing", "marked"):
                self.v.count(what, getattr(self.ledger, what))

    # -- connections ------------------------------------------------------------------------

    def _path(self, back: bool) -> str:
        last = self.ledger.last_id if back and self.v.temper.since else ""
        since = f"&since={last}" if last else ""
        return f"/api/kernels/{self.post.kernel_id}/channels?session_id={self.session}{since}"

    async def _open(self, back: bool) -> Wire:
        server, path = self.post.server, self._path(back)
        if self.v.temper.life:
            self._dies_at = self.ledger.messages + int(
                1 + self.dice.expovariate(1 / self.v.temper.life)
            )
        try:
            async with asyncio.timeout(STALL):
                wire = await Wire.open(
                    server.port, path, server.token, self.v.dialect, self.v.temper.window
                )
        except TimeoutError:
            self.ledger.fault("the upgrade was not answered")
            raise _Left from None
        wire.bite = self.v.temper.bite
        wire.pause = self._pause
        return wire

    def _pause(self) -> float:
        if self.v.over.is_set():
            return 0.0
        return self.dice.random() * self.v.temper.pause

    async def _die(self, wire: Wire) -> None:
        how = self.dice.choice(self.v.temper.deaths)
        self.ledger.deaths.append(how)
        if how == "silence":
            self.v.haunt(wire)
        elif how == "fin":
            wire.hang_up()
        elif how == "close":
            await self._say_goodbye(wire)
        else:
            if how == "half frame":
                wire.half_frame()
            wire.reset()
        if how in {"half request", "unread 101"}:
            await self._die_again(how)
        raise _Died

    async def _catch_up(self, wire: Wire) -> bool:
        """Read until nothing comes any more; whether that was reached.

        Who has fallen off the journal hears first what carries state, the last answer among it,
        and only then the marker and what is left.
        """
        for _ in range(5_000):
            got = await wire.receive(QUIET)
            if got is None:
                return True
            self._note(got)
        return False

    async def _say_goodbye(self, wire: Wire) -> None:
        """Close as RFC 6455 wants it; what comes before the server's close frame counts."""
        wire.begin_close()
        wire.pause = lambda: 0.0  # megabytes may be on their way
        try:
            deadline = asyncio.get_running_loop().time() + STALL
            while asyncio.get_running_loop().time() < deadline:
                got = await wire.receive(STALL)
                if got is None:
                    break
                self._note(got)
            self.ledger.fault(f"a close was not answered for {STALL:.0f} s")
        except Closed as closed:
            # Of a reader that is behind, what is on its way is dropped, the close frame too.
            if closed.code not in {0, 1000, *_GONE}:
                self.ledger.fault(f"a close was answered with {closed}")
            self.whole = closed.code == 1000
        wire.hang_up()

    async def _die_again(self, how: str) -> None:
        """Come back, and go in the middle of the handshake."""
        server = self.post.server
        request = upgrade(server.port, self._path(True), server.token, self.v.dialect)
        wire = await Wire.dial(server.port, self.v.dialect)
        wire.writer.write(request[: len(request) // 2] if how == "half request" else request)
        await asyncio.sleep(self.dice.choice((0, 0, 0.005)))
        wire.reset()

    # -- talking ----------------------------------------------------------------------------

    async def _talk(self, wire: Wire) -> None:
        clock = asyncio.get_running_loop().time
        heard = clock()
        ask_at = heard + self._think()
        if self.v.temper.since:
            self._answer(wire)  # it will not be asked again, and the answer may be lost
        self._progress(wire)
        while True:
            if self.pending is None and clock() >= ask_at:
                if self._asked >= self.asks or self.v.over.is_set():
                    caught_up = not self.post.narrow or await self._catch_up(wire)
                    await self._say_goodbye(wire)
                    self.whole = self.whole and caught_up
                    raise _Left
                self._ask(wire)
            due = heard + STALL if self.pending else min(ask_at, clock() + 0.5)
            got = await wire.receive(max(0.01, due - clock()))
            if got is None:
                if self.pending is not None:
                    await self._stalled(clock() - heard)
                continue
            if got[0] != PING:
                heard = clock()
            was = self.pending
            self._note(got, wire)
            if was is not None and self.pending is None:
                ask_at = heard + self._think()
            if self._dies_at and self.ledger.messages >= self._dies_at:
                await self._die(wire)

    def _answer(self, wire: Wire) -> None:
        if self.question is not None:
            self._send(wire, "input_reply", {"value": "yes"}, "stdin", self.question)

    def _think(self) -> float:
        if self.v.over.is_set():
            return 0.0
        return self.dice.random() * (0.3 if self.v.temper.talks else 3.0)

    def _note(self, got: tuple[int, bytes], wire: Wire | None = None) -> None:
        opcode, payload = got
        if opcode == PING:
            self.ledger.ping(payload)
            return
        data: Any = payload.decode() if opcode == TEXT else payload
        msg = CODECS[self.v.dialect].decode(data)
        self.ledger.take(msg)
        if msg["header"]["msg_type"] == "input_request":
            self.question = msg["header"]
            if wire is not None:
                self._answer(wire)
        if wire is None:
            return
        self._progress(wire)

    def _progress(self, wire: Wire) -> None:
        """Whether what was asked is answered, or never will be."""
        if self.pending is None:
            self.restarts = self.ledger.restarts
            return
        if self._done(self.pending):
            self.v.count("requests")
            self.pending = self.probe = self.question = None
            self.doubtful = False
        elif self.ledger.restarts > self.restarts:
            self.restarts, self.doubtful = self.ledger.restarts, True
            self.probe = self._request(wire, "kernel_info_request", {})
        elif self.probe is not None and self._done(self.probe):
            if not self.doubtful:
                self.ledger.fault(f"{self.pending.msg_id} was not answered, a later one was")
            self.v.count("requests given up")
            self.pending = self.probe = self.question = None
        elif self.probe is None and self.doubtful:
            self.probe = self._request(wire, "kernel_info_request", {})

    def _done(self, request: Request) -> bool:
        cell = self.ledger.cells.get(request.msg_id)
        return cell is not None and cell.done

    def _heard(self, request: Request) -> bool:
        return request.msg_id in self.ledger.cells

    async def _stalled(self, quiet: float) -> None:
        assert self.pending is not None
        reply = await self.post.server.call("GET", f"/api/kernels/{self.post.kernel_id}")
        cell = self.ledger.cells.get(self.pending.msg_id)
        known = f"seen {sorted(cell.seen)}, line {cell.next}" if cell else "never heard of"
        self.ledger.fault(
            f"nothing for {quiet:.0f} s, while {self.pending.msg_id} is under way:"
            f" {known}; deaths: {self.ledger.deaths[-3:]}; question: {self.question is not None};"
            f" {reply.body.decode()}"
        )
        raise _Left

    # -- asking -----------------------------------------------------------------------------

    def _ask(self, wire: Wire) -> None:
        self._asked += 1
        self.restarts = self.ledger.restarts
        self.probe, self.doubtful = None, False
        if not self.v.temper.talks or self.dice.random() < 0.2:
            self.pending = self._request(wire, "kernel_info_request", {})
            return
        lines, size = self.dice.randint(1, 1000), self.dice.randint(20, 250)
        code = code_for(self.post.spec, self.dice, lines, size)
        content = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": True,
            "stop_on_error": False,
        }
        self.pending = self._request(wire, "execute_request", content, lines, size)

    def _request(
        self, wire: Wire, msg_type: str, content: dict[str, Any], lines: int = 0, size: int = 0
    ) -> Request:
        msg_id = self._send(wire, msg_type, content)
        return self.v.book.add(Request(msg_id, self.session, lines, size, self.post.kernel_id))

    def _send(
        self,
        wire: Wire,
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
        wire.send(
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
