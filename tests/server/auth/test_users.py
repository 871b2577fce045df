"""The users that another program knows: how long its answers hold, and what they cost."""

from __future__ import annotations

import asyncio

import pytest

from kbridge.server.auth.users import Credential, Users
from tests.support.users import ALICE, BOB, Table
from tests.support.waiting import until

FRESH, OUTAGE = 60.0, 900.0
HERS = Credential("token-alice")


class Site:
    """Users with a clock that stands still."""

    def __init__(self, limit: int = 10) -> None:
        self.now = 1000.0
        self.table = Table()
        self.users = Users(
            self.table, fresh=FRESH, outage=OUTAGE, limit=limit, clock=lambda: self.now
        )

    async def find(self, credential: Credential) -> object:
        """Look a credential up as a request does; return its user, or the problem, or None."""
        if (lookup := self.users.lookup(credential)) is not None:
            await lookup
        return self.users.known(credential) or self.users.problem(credential) or None


async def test_an_answer_holds_for_a_while() -> None:
    site = Site()
    assert await site.find(HERS) == ALICE
    site.now += FRESH
    assert await site.find(HERS) == ALICE
    assert site.table.asked == ["token-alice"]
    site.now += 1
    assert await site.find(HERS) == ALICE
    assert site.table.asked == ["token-alice"] * 2


async def test_a_token_that_was_withdrawn_is_refused_after_that_time() -> None:
    site = Site()
    await site.find(HERS)
    del site.table.users["token-alice"]
    site.now += FRESH + 1
    assert await site.find(HERS) is None


async def test_a_refused_token_is_asked_for_again_soon() -> None:
    site = Site()
    new = Credential("new")
    assert await site.find(new) is None
    assert await site.find(new) is None
    assert site.table.asked == ["new"]
    site.table.users["new"] = BOB
    site.now += 11
    assert await site.find(new) == BOB


async def test_while_nothing_can_be_asked_known_users_go_on_and_others_hear_why() -> None:
    site = Site()
    await site.find(HERS)
    site.table.down = True
    site.now += FRESH + 1
    assert await site.find(HERS) == ALICE
    assert await site.find(Credential("token-bob")) == "the table is locked away"
    # Another question per request would delay every request of a known user.
    asked = len(site.table.asked)
    assert await site.find(HERS) == ALICE
    assert len(site.table.asked) == asked
    site.now += OUTAGE
    assert await site.find(HERS) == "the table is locked away"
    site.table.down = False
    site.now += 6
    assert await site.find(HERS) == ALICE
    assert await site.find(Credential("nobody's")) is None


async def test_nobody_waits_for_a_program_that_hangs() -> None:
    """Except for one request, and the first one."""
    site = Site()
    await site.find(HERS)
    site.table.down = True
    site.now += FRESH + 1
    await site.find(HERS)
    site.now += 6
    site.table.down = False
    site.table.gate.clear()
    assert site.users.lookup(HERS) is None, "the question is asked meanwhile"
    assert site.users.known(HERS) == ALICE
    assert site.users.lookup(Credential("token-bob")) is None, "one question is under way"
    assert site.users.problem(Credential("token-bob"))
    site.table.gate.set()
    await until(lambda: not site.users.problem(Credential("token-bob")), "it is answered")
    assert await site.find(Credential("token-bob")) == BOB


async def test_an_error_that_nobody_expects_is_a_problem_as_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site()

    async def fail(_credential: Credential) -> None:
        raise AttributeError("a defect")

    await site.find(HERS)
    monkeypatch.setattr(site.table, "user_of", fail)
    site.now += FRESH + 1
    assert await site.find(HERS) == ALICE
    assert "the log of the server" in str(await site.find(Credential("token-bob")))
    assert "a defect" in caplog.text


async def test_few_questions_are_asked_at_the_same_time() -> None:
    site = Site()
    site.table.gate.clear()
    asking = [asyncio.create_task(site.find(Credential(f"guess {n}"))) for n in range(50)]
    await until(lambda: len(site.table.asked) == 20, "as many as there may be")
    await asyncio.sleep(0)
    assert len(site.table.asked) == 20
    site.table.gate.set()
    await asyncio.gather(*asking)
    assert len(site.table.asked) == 50


async def test_requests_at_the_same_time_ask_once() -> None:
    site = Site()
    site.table.gate.clear()
    first, second = (asyncio.create_task(site.find(HERS)) for _ in range(2))
    await until(lambda: site.table.asked, "the question")
    first.cancel()  # its client has gone; the other one still waits
    site.table.gate.set()
    assert await second == ALICE
    assert site.table.asked == ["token-alice"]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_another_session_of_a_token_is_asked_for_again_and_displaces_no_user() -> None:
    site = Site(limit=2)
    await site.find(Credential("token-bob"))
    for number in range(5):
        assert await site.find(Credential("token-alice", f"session {number}")) == ALICE
    assert site.table.asked.count("token-alice") == 5
    assert site.users.known(Credential("token-alice", "session 0")) is None
    assert site.users.known(Credential("token-bob")) == BOB


async def test_tokens_that_nobody_has_displace_no_user() -> None:
    site = Site(limit=3)
    await site.find(HERS)
    for number in range(10):
        await site.find(Credential(f"guess {number}"))
    assert await site.find(HERS) == ALICE
    assert site.table.asked.count("token-alice") == 1
    assert await site.find(Credential("guess 0")) is None
    assert site.table.asked.count("guess 0") == 2  # the oldest ones are forgotten


async def test_the_oldest_users_are_forgotten_beyond_the_limit() -> None:
    site = Site(limit=1)
    await site.find(HERS)
    await site.find(Credential("token-bob"))
    assert site.users.known(HERS) is None


async def test_questions_end_with_the_server() -> None:
    site = Site()
    site.table.gate.clear()
    waiting = asyncio.create_task(site.find(HERS))
    await until(lambda: site.table.asked, "the question")
    await site.users.aclose()
    await site.users.aclose()
    assert await waiting is None


def test_a_credential_shows_no_token() -> None:
    assert "alice" not in repr(HERS)
