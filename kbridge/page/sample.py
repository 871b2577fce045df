"""Samples of all kernels, whole or as changes since the sample before.

A watcher that has the sample before receives the changed fields of kernels only: most kernels of a
server are idle, and an idle kernel changes nothing. All others receive the whole sample. Both forms
are made once per user, however many watchers there are: a user receives the kernels that they may
reach, and an administrator all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kbridge.kernels.users import User

__all__ = ["Part", "Sample", "SampleBuilder"]


# Of the server, users who are not administrators see these.
_PUBLIC: Final = frozenset({"now", "version", "started", "max_kernels", "replica"})


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
    """

    kernel_id: str
    user: str
    content: bytes


class Sample:
    """One sample.

    Parameters
    ----------
    server : mapping
        The fields of the server.
    kernels : sequence of Part
        All kernels.
    changes : sequence of Part or None
        The changes since the sample before; None if they are not known.
    ids : sequence of str or None
        The ids of all kernels in order, if these have changed.
    """

    __slots__ = ("_changes", "_ids", "_kernels", "_of", "_parts", "_server", "_whole")

    def __init__(
        self,
        server: Mapping[str, Any],
        kernels: Sequence[Part],
        changes: Sequence[Part] | None,
        ids: Sequence[str] | None,
    ) -> None:
        self._server = server
        self._kernels = kernels
        self._parts = changes
        self._ids = ids
        self._whole = b""
        self._changes = b""
        self._of: dict[User, Sample] = {}

    def of(self, user: User) -> Sample:
        """Return the sample as a user sees it."""
        if user.admin:
            return self
        found = self._of.get(user)
        if found is None:
            kernels = [part for part in self._kernels if user.may_reach(part.user)]
            mine = {part.kernel_id for part in kernels}
            found = self._of[user] = Sample(
                {name: value for name, value in self._server.items() if name in _PUBLIC},
                kernels,
                None if self._parts is None else [p for p in self._parts if p.kernel_id in mine],
                None if self._ids is None else [each for each in self._ids if each in mine],
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
        if self._parts is None:
            return self.whole
        if not self._changes:
            ids = {} if self._ids is None else {"ids": self._ids}
            self._changes = _joined({**self._server, "changes": True, **ids}, self._parts)
        return self._changes


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel as it was in a sample."""

    figures: Mapping[str, Any]
    content: bytes
    user: str


class SampleBuilder:
    """Builds samples, each from the kernels of a server: `add` them all, then `finish`."""

    def __init__(self) -> None:
        self._before: dict[str, _Kernel] | None = None
        self._begin()

    def _begin(self) -> None:
        self._now: dict[str, _Kernel] = {}
        self._changes: list[Part] = []
        self._loses = False

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
        content = _json(kernel)
        self._now[kernel_id] = _Kernel(kernel, content, user)
        # The user of a kernel from the pool has seen nothing of it.
        if before is None or before.user != user:
            self._changes.append(Part(kernel_id, user, content))
            return
        old = before.figures
        self._loses |= not old.keys() <= kernel.keys()
        changed = {k: v for k, v in kernel.items() if k not in old or old[k] != v}
        self._changes.append(Part(kernel_id, user, _json({"id": kernel_id, **changed})))

    def finish(self, server: Mapping[str, Any]) -> Sample:
        """Return the sample, and begin the next one.

        Parameters
        ----------
        server : mapping
            The fields of the server.
        """
        before, now = self._before, self._now
        # A change has no form for a field that is gone, as after the end of a kernel.
        known = before is not None and not self._loses
        ids = list(now)
        sample = Sample(
            server,
            [Part(each, kernel.user, kernel.content) for each, kernel in now.items()],
            self._changes if known else None,
            None if before is not None and ids == list(before) else ids,
        )
        self._before = now
        self._begin()
        return sample

    def discard(self) -> None:
        """Forget a sample that was begun, because a part of it cannot be read."""
        self._begin()


def _joined(server: Mapping[str, Any], kernels: Sequence[Part]) -> bytes:
    contents = b",".join([part.content for part in kernels])
    return b'%b,"kernels":[%b]}' % (_json(server)[:-1], contents)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
