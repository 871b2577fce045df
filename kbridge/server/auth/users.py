"""The users that another program knows by their tokens, and what it said about these tokens.

Invariants:

- an answer holds for `fresh` seconds. A token that was withdrawn works no longer than that;
- while the other program cannot be asked, a user that it has named stays known, for `outage`
  seconds after its answer. Tokens that it has not named are refused with `UsersUnavailable`;
- requests with the same token at the same time cause one question;
- the number of tokens in memory is bounded, and they are kept as digests only.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol

from kbridge.errors import UsersUnavailable
from kbridge.kernels.users import User

__all__ = ["Credential", "Resolver", "Users"]

_REFUSED_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 5.0


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
        """Return a text that differs between credentials, and does not reveal them."""
        parts = f"{len(self.session)}:{self.session}{self.token}"
        return hashlib.sha256(parts.encode("utf-8", "replace")).digest()


@dataclass(frozen=True, slots=True)
class _Answer:
    """The user of a token, None if there is none, and when that was said."""

    user: User | None
    time: float


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
        # In the order of the answers. Refused tokens are apart, so that a client with many of them
        # displaces no user.
        self._known: dict[bytes, _Answer] = {}
        self._refused: dict[bytes, _Answer] = {}
        self._asking: dict[bytes, asyncio.Task[None]] = {}
        self._problem = ""
        self._failed = -float("inf")

    def known(self, credential: Credential) -> User | None:
        """Return the user of a credential, as far as that is known; asks nobody."""
        answer = self._known.get(credential.digest())
        if answer is None or self._clock() - answer.time > self._outage:
            return None
        return answer.user

    def problem(self, credential: Credential) -> str:
        """Return why nothing is known about a credential; empty if it was refused."""
        refused = credential.digest() in self._refused
        return "" if refused or self.known(credential) is not None else self._problem

    def lookup(self, credential: Credential) -> Coroutine[None, None, None] | None:
        """Return a coroutine that asks for the user, after which `known` returns the answer.

        Returns
        -------
        coroutine or None
            None if there is nothing to ask. The coroutine raises nothing.
        """
        now, digest = self._clock(), credential.digest()
        if (answer := self._known.get(digest)) is not None:
            if now - answer.time <= self._fresh:
                return None
            if now - self._failed < _RETRY_SECONDS and now - answer.time <= self._outage:
                return None
        refused = self._refused.get(digest)
        if refused is not None and now - refused.time <= min(self._fresh, _REFUSED_SECONDS):
            return None
        return self._ask(digest, credential)

    async def aclose(self) -> None:
        """End the questions that are under way; may be called twice."""
        asking = set(self._asking.values())
        for task in asking:
            task.cancel()
        if asking:
            await asyncio.wait(asking)

    async def _ask(self, digest: bytes, credential: Credential) -> None:
        task = self._asking.get(digest)
        if task is None:
            task = asyncio.create_task(self._resolve(digest, credential))
            self._asking[digest] = task
            task.add_done_callback(lambda _: self._asking.pop(digest, None))
        # One request of several that ends must not end the question.
        await asyncio.wait({task})
        _ = task.cancelled() or task.result()

    async def _resolve(self, digest: bytes, credential: Credential) -> None:
        try:
            user = await self._resolver.user_of(credential)
        except UsersUnavailable as error:
            self._problem, self._failed = error.reason, self._clock()
            return
        now = self._clock()
        self._problem, self._failed = "", -float("inf")
        self._known.pop(digest, None)
        self._refused.pop(digest, None)
        answers = self._refused if user is None else self._known
        answers[digest] = _Answer(user, now)
        while len(answers) > self._limit or now - _oldest(answers).time > self._outage:
            del answers[next(iter(answers))]


def _oldest(answers: dict[bytes, _Answer]) -> _Answer:
    return next(iter(answers.values()))
