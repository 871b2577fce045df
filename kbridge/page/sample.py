"""Samples of all kernels, whole or as changes since the sample before.

A watcher that has the sample before receives the changed fields of kernels only: most kernels of a
server are idle, and an idle kernel changes nothing. All others receive the whole sample. Both forms
are made once per user, however many watchers there are: a user receives the kernels that they may
reach, and an administrator all of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kbridge.kernels.users import User

__all__ = ["Part", "Sample", "SampleBuilder"]


# Of the server, users who are not administrators see these.
_PUBLIC: Final = frozenset({"now", "version", "started", "max_kernels"})
# Of a kernel, they do not see the address of its replica, which is of the network of the servers.
_INTERNAL: Final = frozenset({"replica"})


class Part(NamedTuple):
    """A kernel in a sample, or its changes.

    Attributes
    ----------
    kernel_id : str
        The kernel.
    user : str
        The name of the user who started it; empty for the operator.
    content : bytes
        JSON.
    public : bytes
        The same as users see it who are not administrators; empty if they see nothing of it.
    """

    kernel_id: str
    user: str
    content: bytes
    public: bytes


class Sample:
    """One sample.

    Parameters
    ----------
    server : mapping
        The fields of the server.
    kernels : sequence of Part
        All kernels.
    changes : sequence of Part
        The changes since the sample before.
    before : mapping of str to str, or None
        The users of the kernels in the sample before, by kernel id; None if there is none.
    reduced : collection of str
        The kernels with fewer fields than before, for which a change has no form.
    """

    __slots__ = (
        "_before",
        "_changes",
        "_kernels",
        "_of",
        "_parts",
        "_reduced",
        "_server",
        "_whole",
    )

    def __init__(
        self,
        server: Mapping[str, Any],
        kernels: Sequence[Part],
        changes: Sequence[Part],
        before: Mapping[str, str] | None,
        reduced: Collection[str],
    ) -> None:
        self._server = server
        self._kernels = kernels
        self._parts = changes
        self._before = before
        self._reduced = reduced
        self._whole = b""
        self._changes = b""
        self._of: dict[User, Sample] = {}

    def of(self, user: User) -> Sample:
        """Return the sample as a user sees it.

        It is made from the user's kernels only, so that it does not tell when others change.
        """
        if user.admin:
            return self
        found = self._of.get(user)
        if found is None:
            before = self._before
            kernels = _reached(self._kernels, user)
            found = self._of[user] = Sample(
                {name: value for name, value in self._server.items() if name in _PUBLIC},
                kernels,
                _reached(self._parts, user),
                None
                if before is None
                else {each: owner for each, owner in before.items() if user.may_reach(owner)},
                {part.kernel_id for part in kernels if part.kernel_id in self._reduced},
            )
        return found

    @property
    def whole(self) -> bytes:
        """All kernels, as JSON in one line."""
        if not self._whole:
            self._whole = _joined(self._server, self._kernels)
        return self._whole

    @property
    def changes(self) -> bytes:
        """The changes since the sample before; the whole sample if they are not known."""
        if self._before is None or self._reduced:
            return self.whole
        if not self._changes:
            ids = [part.kernel_id for part in self._kernels]
            came_or_went = {} if ids == list(self._before) else {"ids": ids}
            self._changes = _joined({**self._server, "changes": True, **came_or_went}, self._parts)
        return self._changes


def _reached(parts: Sequence[Part], user: User) -> list[Part]:
    return [
        part._replace(content=part.public)
        for part in parts
        if part.public and user.may_reach(part.user)
    ]


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel as it was in a sample."""

    figures: Mapping[str, Any]
    part: Part

    @property
    def user(self) -> str:
        """The name of its user."""
        return self.part.user


class SampleBuilder:
    """Builds samples, each from the kernels of a server: `add` them all, then `finish`."""

    def __init__(self) -> None:
        self._before: dict[str, _Kernel] | None = None
        self._begin()

    def _begin(self) -> None:
        self._now: dict[str, _Kernel] = {}
        self._changes: list[Part] = []
        self._reduced: set[str] = set()

    def add(self, kernel: Mapping[str, Any], user: str = "") -> None:
        """Add a kernel, with its `id`. Its JSON is made only if it has changed.

        Parameters
        ----------
        kernel : mapping
            The figures of the kernel.
        user : str
            The name of the user who started it; empty for the operator.
        """
        kernel_id = kernel["id"]
        before = (self._before or {}).get(kernel_id)
        if before is not None and before.user == user and before.figures == kernel:
            self._now[kernel_id] = before
            return
        part = _part(kernel, user)
        self._now[kernel_id] = _Kernel(kernel, part)
        # The user of a kernel from the pool has seen nothing of it.
        if before is None or before.user != user:
            self._changes.append(part)
            return
        old = before.figures
        if not old.keys() <= kernel.keys():
            self._reduced.add(kernel_id)
        changed = {k: v for k, v in kernel.items() if k not in old or old[k] != v}
        self._changes.append(_part({"id": kernel_id, **changed}, user))

    def finish(self, server: Mapping[str, Any]) -> Sample:
        """Return the sample, and begin the next one.

        Parameters
        ----------
        server : mapping
            The fields of the server.
        """
        before, now = self._before, self._now
        sample = Sample(
            server,
            [kernel.part for kernel in now.values()],
            self._changes,
            None if before is None else {each: kernel.user for each, kernel in before.items()},
            self._reduced,
        )
        self._before = now
        self._begin()
        return sample

    def discard(self) -> None:
        """Forget a sample that was begun, because a part of it cannot be read."""
        self._begin()


def _part(kernel: Mapping[str, Any], user: str) -> Part:
    """Return a kernel or its changes; changes have more than an `id`."""
    content = public = _json(kernel)
    if user and not _INTERNAL.isdisjoint(kernel):
        shown = {name: value for name, value in kernel.items() if name not in _INTERNAL}
        public = _json(shown) if len(shown) > 1 else b""
    return Part(kernel["id"], user, content, public)


def _joined(server: Mapping[str, Any], kernels: Sequence[Part]) -> bytes:
    contents = b",".join([part.content for part in kernels])
    return b'%b,"kernels":[%b]}' % (_json(server)[:-1], contents)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
