"""The users that another program knows by their tokens, with its answers about these tokens.

Invariants:

- an answer holds for `fresh` seconds. A request with a token that was withdrawn before is refused;
- while the other program cannot be asked, a user that it has named stays known, for `outage`
  seconds after its answer. Tokens that it has not named are refused with `UsersUnavailable`;
- after a question that failed, no request waits for another one that fails, except for one question
  in `_RETRY_SECONDS`;
- requests with the same token at the same time cause one question, and the number of questions at
  the same time is bounded;
- the number of tokens in memory is bounded, and they are kept as digests only.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol

from tornado.log import app_log

from kbridge.errors import UsersUnavailable
from kbridge.kernels.users import User

__all__ = ["Credential", "Resolver", "Users"]

_REFUSED_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 5.0
_AT_ONCE: Final = 20  # questions


class Resolver(Protocol):
    """Asks the program that knows the users."""

    async def user_of(self, credential: Credential) -> User | None:
        """Return the user of a token; None if there is none, or the user may not use this server.

        Raises
        ------
        UsersUnavailable
            If the program cannot be asked.
        """


@dataclass(frozen=True, slots=True)
class Credential:
    """A token, and the session of the browser that shows it; empty for a program."""

    token: str
    session: str = ""

    def __repr__(self) -> str:
        return "Credential()"  # a token must not get into a log

    def digest(self) -> bytes:
        """Return bytes that differ between tokens, and do not reveal them."""
        return hashlib.sha256(self.token.encode("utf-8", "replace")).digest()


@dataclass(frozen=True, slots=True)
class _Answer:
    """The answer about a token: its user, or None.

    A browser gets another session when its user logs out, so the answer is for one session.
    """

    user: User | None
    time: float
    session: str


class Users:
    """The users, by their tokens.

    Parameters
    ----------
    resolver : Resolver
        Asks for users.
    fresh : float
        Seconds for which an answer holds.
    outage : float
        Seconds after an answer for which a user stays known if no newer answer can be had.
    limit : int
        The number of tokens of users in memory.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        fresh: float = 60.0,
        outage: float = 900.0,
        limit: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._fresh = fresh
        self._outage = max(outage, fresh)
        self._limit = limit
        self._clock = clock
        # In the order of the answers, one for each token. Refused tokens are apart, so that a
        # client with many of them displaces no user.
        self._known: dict[bytes, _Answer] = {}
        self._refused: dict[bytes, _Answer] = {}
        self._asking: dict[bytes, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._problem = ""
        self._failed = -float("inf")

    def known(self, credential: Credential) -> User | None:
        """Return the user of a credential, from an earlier answer."""
        answer = self._answer(self._known, credential)
        if answer is None or self._clock() - answer.time > self._outage:
            return None
        return answer.user

    def problem(self, credential: Credential) -> str:
        """Return why nothing is known about a credential; empty if it was refused."""
        known = self.refused(credential) or self.known(credential) is not None
        return "" if known else self._problem

    def refused(self, credential: Credential) -> bool:
        """Return True if the newest answer about a credential refuses it."""
        return self._answer(self._refused, credential) is not None

    def next_question(self, credential: Credential) -> float:
        """Return the seconds until an open connection of a user needs a new answer."""
        known = self._answer(self._known, credential)
        age = float("inf") if known is None else self._clock() - known.time
        # If the last question failed, or each request asks.
        interval = max(self._fresh, _RETRY_SECONDS)
        return interval - age if age < interval else _RETRY_SECONDS

    @staticmethod
    def _answer(answers: dict[bytes, _Answer], credential: Credential) -> _Answer | None:
        answer = answers.get(credential.digest())
        return answer if answer is not None and answer.session == credential.session else None

    def lookup(self, credential: Credential) -> Coroutine[None, None, None] | None:
        """Return a coroutine that asks for the user, after which `known` returns the answer.

        Returns
        -------
        coroutine or None
            None if there is nothing to ask. The coroutine raises nothing.
        """
        now = self._clock()
        known = self._answer(self._known, credential)
        if known is not None and now - known.time <= self._fresh:
            return None
        refused = self._answer(self._refused, credential)
        if refused is not None and now - refused.time <= min(self._fresh, _REFUSED_SECONDS):
            return None
        if self._problem:
            if self._asking or now - self._failed < _RETRY_SECONDS:
                return None
            if known is not None and now - known.time <= self._outage:
                self._begin(credential)  # a known user does not wait for the answer
                return None
        return self._ask(credential)

    async def aclose(self) -> None:
        """End the questions that are under way; may be called twice."""
        asking = set(self._asking.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)

    async def _ask(self, credential: Credential) -> None:
        # One request of several that ends must not end the question.
        await asyncio.wait({self._begin(credential)})

    def _begin(self, credential: Credential) -> asyncio.Task[None]:
        """Ask, unless that question is under way."""
        digest = credential.digest()
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._resolve(digest, credential))
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        return task

    async def _resolve(self, digest: bytes, credential: Credential) -> None:
        try:
            async with self._places:
                user = await self._resolver.user_of(credential)
        except Exception as error:  # noqa: BLE001 - no request may fail in another way
            self._problem = (
                "it cannot be found out who you are; the log of the server has the error"
            )
            if isinstance(error, UsersUnavailable):
                self._problem = error.reason
            else:
                app_log.error("The user of a token cannot be found", exc_info=error)
            self._failed = self._clock()
            return
        now = self._clock()
        self._problem, self._failed = "", -float("inf")
        self._known.pop(digest, None)
        self._refused.pop(digest, None)
        answers = self._refused if user is None else self._known
        answers[digest] = _Answer(user, now, credential.session)
        while len(answers) > self._limit or now - _oldest(answers).time > self._outage:
            del answers[next(iter(answers))]


def _oldest(answers: dict[bytes, _Answer]) -> _Answer:
    return next(iter(answers.values()))
