"""Samples of all kernels, whole or as changes since the sample before.

A watcher that has the sample before receives the changed fields of kernels only: most kernels of a
server are idle, and an idle kernel changes nothing. All others receive the whole sample. Both forms
are made once, however many watchers there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Sample", "SampleBuilder"]


class Sample:
    """One sample.

    Parameters
    ----------
    server : mapping
        The fields of the server.
    kernels : sequence of bytes
        All kernels, as JSON.
    changes : sequence of bytes or None
        The changes since the sample before, as JSON; None if they are not known.
    ids : sequence of str or None
        The ids of all kernels in order, if these have changed.
    """

    __slots__ = ("_changes", "_ids", "_kernels", "_parts", "_server", "_whole")

    def __init__(
        self,
        server: Mapping[str, Any],
        kernels: Sequence[bytes],
        changes: Sequence[bytes] | None,
        ids: Sequence[str] | None,
    ) -> None:
        self._server = server
        self._kernels = kernels
        self._parts = changes
        self._ids = ids
        self._whole = b""
        self._changes = b""

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


class SampleBuilder:
    """Builds samples, each from the kernels of a server: `add` them all, then `finish`."""

    def __init__(self) -> None:
        self._before: dict[str, _Kernel] | None = None
        self._begin()

    def _begin(self) -> None:
        self._now: dict[str, _Kernel] = {}
        self._changes: list[bytes] = []
        self._loses = False

    def add(self, kernel: Mapping[str, Any]) -> None:
        """Add a kernel, with its `id`. Its JSON is made only if it has changed."""
        before = (self._before or {}).get(kernel["id"])
        if before is not None and before.figures == kernel:
            self._now[kernel["id"]] = before
            return
        content = _json(kernel)
        self._now[kernel["id"]] = _Kernel(kernel, content)
        if before is None:
            self._changes.append(content)
            return
        old = before.figures
        self._loses |= not old.keys() <= kernel.keys()
        changed = {k: v for k, v in kernel.items() if k not in old or old[k] != v}
        self._changes.append(_json({"id": kernel["id"], **changed}))

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
            [kernel.content for kernel in now.values()],
            self._changes if known else None,
            None if before is not None and ids == list(before) else ids,
        )
        self._before = now
        self._begin()
        return sample

    def discard(self) -> None:
        """Forget a sample that was begun, because a part of it cannot be read."""
        self._begin()


def _joined(server: Mapping[str, Any], kernels: Sequence[bytes]) -> bytes:
    return b'%b,"kernels":[%b]}' % (_json(server)[:-1], b",".join(kernels))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
