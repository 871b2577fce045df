"""Open connections of users, which end when their token is not valid any longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from kbridge.errors import Forbidden
from kbridge.kernels.users import User
from kbridge.server.auth.open_connections import OpenConnections
from kbridge.server.auth.users import Credential, Users
from tests.support.users import ADMIN, ALICE, Table
from tests.support.waiting import until

FRESH, OUTAGE = 60.0, 900.0
CHECK = FRESH * 1.1  # seconds from an answer to the next question
HERS = Credential("token-alice")
HIS = Credential("token-bob", "his session")


class Open:
    """A connection."""

    def __init__(self, owner: str = "alice") -> None:
        self.owner = owner
        self.error: Forbidden | None = None

    def still_allowed(self, user: User) -> bool:
        return user.may_reach(self.owner)

    def end_access(self, error: Forbidden) -> None:
        self.error = error


class Site:
    """Open connections with a clock that moves when the test says so."""

    def __init__(self, fresh: float = FRESH) -> None:
        self.now = 1000.0
        self.table = Table()
        self.users = Users(self.table, fresh=fresh, outage=OUTAGE, clock=lambda: self.now)
        self.spread = 0.4  # of a quarter
        self.open = OpenConnections(self.users, pause=self.pause, spread=lambda: self.spread)
        self.pausing: list[tuple[float, asyncio.Event]] = []
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        pausing = (self.now + seconds, asyncio.Event())
        self.pauses.append(seconds)
        self.pausing.append(pausing)
        try:
            await pausing[1].wait()
        finally:
            self.pausing.remove(pausing)

    async def connect(self, credential: Credential, *connections: Open) -> None:
        """Open connections with a token that the site knows."""
        if (lookup := self.users.lookup(credential)) is not None:
            await lookup
        assert self.users.known(credential) is not None
        for connection in connections:
            self.open.add(credential, connection)
        await self.settle()

    async def advance(self, seconds: float) -> None:
        """Let time pass, from one pause's end to the next one."""
        end = self.now + seconds
        while self.pausing and (due := min(due for due, _ in self.pausing)) <= end:
            self.now = max(self.now, due)
            for due, event in self.pausing:
                if due <= self.now:
                    event.set()
            await self.settle()
        self.now = end

    async def settle(self) -> None:
        """Wait until all checks pause, or wait for an answer that the test holds back."""

        def idle() -> bool:
            checks = [t for t in asyncio.all_tasks() if "_check_again" in repr(t.get_coro())]
            waiting = all(not event.is_set() for _, event in self.pausing)
            return waiting and (len(self.pausing) == len(checks) or not self.table.gate.is_set())

        await asyncio.sleep(0)
        await until(idle, "the checks pause")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    yield made
    await made.open.aclose()
    await made.users.aclose()


async def test_the_connections_of_a_withdrawn_token_end_and_others_stay(site: Site) -> None:
    hers, his = [Open() for _ in range(3)], Open("bob")
    await site.connect(HERS, *hers)
    await site.connect(HIS, his)
    del site.table.users["token-alice"]
    await site.advance(FRESH)
    assert [connection.error for connection in hers] == [None] * 3
    await site.advance(CHECK - FRESH + 1)
    for connection in hers:
        assert connection.error is not None
        assert connection.error.close_code == 1008
        assert "no longer valid" in connection.error.reason
        assert len(connection.error.reason.encode()) <= 123  # of a close frame
    assert his.error is None
    await site.advance(10 * FRESH)
    asked = site.table.asked
    assert (asked.count("token-alice"), asked.count("token-bob")) == (2, 11)


async def test_many_connections_of_a_token_cause_one_question_per_expiry(site: Site) -> None:
    connections = [Open() for _ in range(100)]
    await site.connect(HERS, *connections)
    await site.advance(10 * FRESH)
    # Each second, a request comes as well.
    for _ in range(int(10 * FRESH)):
        await site.advance(1)
        if (lookup := site.users.lookup(HERS)) is not None:
            await lookup
    assert 18 <= site.table.asked.count("token-alice") <= 21
    assert not any(connection.error for connection in connections)


async def test_the_answer_for_a_request_counts(site: Site) -> None:
    connection = Open()
    await site.connect(HERS, connection)
    await site.advance(FRESH - 1)
    site.now += 2
    del site.table.users["token-alice"]
    lookup = site.users.lookup(HERS)
    assert lookup is not None
    await lookup
    await site.advance(CHECK - FRESH)
    assert connection.error is not None
    assert site.table.asked == ["token-alice"] * 2


async def test_while_nothing_can_be_asked_connections_stay_open(site: Site) -> None:
    connection = Open()
    await site.connect(HERS, connection)
    site.table.down = True
    await site.advance(OUTAGE + 10 * FRESH)
    assert connection.error is None
    assert 20 < len(site.table.asked) < (OUTAGE + 10 * FRESH) / 5
    site.table.down = False
    await site.advance(2 * FRESH)
    assert connection.error is None
    site.table.down = True
    del site.table.users["token-alice"]
    await site.advance(2 * FRESH)
    assert connection.error is None, "nobody has said that the token is not valid"
    site.table.down = False
    await site.advance(15)
    assert connection.error is not None


async def test_a_question_without_an_answer_closes_nothing(site: Site) -> None:
    connection = Open()
    await site.connect(HERS, connection)
    site.table.gate.clear()
    await site.advance(CHECK)
    await until(lambda: len(site.table.asked) == 2, "the question")
    await site.advance(3 * FRESH)
    assert connection.error is None
    assert site.table.asked == ["token-alice"] * 2
    site.table.gate.set()
    await site.advance(1)
    assert connection.error is None


async def test_connections_that_lost_scopes_do_not_permit_end(site: Site) -> None:
    """An administrator becomes a user, who keeps the connections to the user's own kernels."""
    own, foreign = Open(ADMIN.name), Open("alice")
    token = f"token-{ADMIN.name}"
    await site.connect(Credential(token), own, foreign)
    site.table.users[token] = replace(ADMIN, admin=False)
    await site.advance(CHECK + 1)
    assert own.error is None
    assert foreign.error is not None
    assert "no longer gives access" in foreign.error.reason
    del site.table.users[token]
    await site.advance(CHECK + 1)
    assert own.error is not None


async def test_tokens_without_connections_are_not_asked_for(site: Site) -> None:
    first, second = Open(), Open()
    await site.connect(HERS, first, second)
    site.open.discard(HERS, first)
    site.open.discard(HERS, first)
    await site.advance(CHECK + 1)
    assert len(site.table.asked) == 2
    site.open.discard(HERS, second)
    await site.settle()
    await site.advance(3 * FRESH)
    assert len(site.table.asked) == 2
    await site.connect(HERS, third := Open())
    del site.table.users["token-alice"]
    await site.advance(CHECK + 1)
    assert (first.error, second.error) == (None, None)
    assert third.error is not None


async def test_the_questions_of_several_tokens_are_spread(site: Site) -> None:
    site.spread = 0.0
    await site.connect(HERS, Open())
    site.spread = 1.0
    await site.connect(HIS, Open("bob"))
    assert site.pauses == [FRESH, 1.25 * FRESH]


async def test_answers_that_hold_for_no_time_cause_a_bounded_number_of_questions() -> None:
    site = Site(fresh=0.0)
    await site.connect(HERS, connection := Open())
    await site.advance(60)
    assert len(site.table.asked) == 11
    del site.table.users["token-alice"]
    await site.advance(6)
    assert connection.error is not None
    await site.open.aclose()
    await site.users.aclose()


async def test_a_connection_that_fails_to_close_stops_no_check(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Open):
        def end_access(self, error: Forbidden) -> None:
            raise OSError("a defect")

    await site.connect(HERS, Broken(), fine := Open(), Broken())
    del site.table.users["token-alice"]
    await site.advance(CHECK + 1)
    assert fine.error is not None
    assert caplog.text.count("a defect") >= 2


async def test_nothing_is_checked_after_the_end(site: Site) -> None:
    await site.connect(HERS, Open())
    await site.open.aclose()
    await site.open.aclose()
    site.open.add(HERS, Open())
    await site.advance(2 * FRESH)
    assert site.table.asked == ["token-alice"]
    assert site.users.known(HERS) == ALICE
