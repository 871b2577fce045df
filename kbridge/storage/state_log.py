"""The log of states of a kernel: the last value of each key, in an append-only file.

A line is the xxh3_64 of its JSON in hexadecimal, a space, and `{"k": KEY, "v": VALUE}`; without `v`
the key was removed. A line that is not complete, and all lines after it, are ignored. The file is
rewritten when it is larger than 1 MiB and than four times the lines that count.

A key is removed when the frames that the journal had at that time are on disk: a request is
forgotten after its reply. Until then a crash leaves the key in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from json.encoder import encode_basestring_ascii
from typing import Final, NamedTuple, TypeAlias

from xxhash import xxh3_64_hexdigest

__all__ = ["StateChanges", "StateLog", "Value", "line_of", "parse"]

Value: TypeAlias = object | Callable[[], str]
"""Anything that JSON can express, or a function that returns JSON when the value is written."""

_REWRITE_ABOVE: Final = 1024 * 1024
_REWRITE_FACTOR: Final = 4

# Made once: `json.dumps` makes an encoder for each call with other separators than its own.
_to_json: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class StateChanges(NamedTuple):
    """The changes of a state log that are written together.

    Attributes
    ----------
    whole : bytes or None
        The new content of the file, instead of adding to it.
    size : int
        The size of the file before `values`.
    values : bytes
        Lines with new values; written before the frames, so that a request is known before its
        output.
    removals : bytes
        Lines that remove keys; written after the frames.
    removed : dict of str to (bytes, (int, bytes))
        The lines that `removals` removes; the number after the frames that go first, and the line
        that removes the key.
    """

    whole: bytes | None
    size: int
    values: bytes
    removals: bytes
    removed: dict[str, tuple[bytes, tuple[int, bytes]]]

    @property
    def nbytes(self) -> int:
        """The bytes to write."""
        return len(self.whole or b"") + len(self.values) + len(self.removals)


_NO_CHANGES: Final = StateChanges(None, 0, b"", b"", {})


class StateLog:
    """The values of one kernel, and which of them are not written yet.

    Parameters
    ----------
    records : dict of str to object, or None
        The values that an earlier process left; None for a new kernel.

    Attributes
    ----------
    finished : list of str
        The keys of values that will not change soon. Their lines may be made early, so that `take`
        has less to do.
    """

    __slots__ = (
        *("_changed", "_lines", "_live", "_new", "_removed", "_rewrite", "_size", "finished"),
    )

    def __init__(self, records: dict[str, object] | None) -> None:
        lines = (records or {}).items()
        self._lines = {key: line_of(key, value) for key, value in lines}
        self._live = sum(map(len, self._lines.values()))
        # Values whose line is not made yet, and has no bytes or is that of an earlier value. Of
        # several values between two writes, only the last one needs a line.
        self._new: dict[str, Value] = {}
        self.finished: list[str] = []
        self._changed: dict[str, None] = {}  # in the order in which they were set
        # The number after the frames that go first, and the line.
        self._removed: dict[str, tuple[int, bytes]] = {}
        self._size = 0
        self._rewrite = records is not None  # removes a line that is not complete

    @property
    def pending(self) -> bool:
        """True if there are changes that are not written yet."""
        return bool(self._changed or self._removed or self._rewrite)

    @property
    def records(self) -> dict[str, object]:
        """The last value of each key."""
        self.encode()
        return parse(
            b"".join(line for key, line in self._lines.items() if key not in self._removed)
        )

    def set(self, key: str, value: Value | None, end: int = 0) -> None:
        """Set the value of a key; None removes the key when the frames before `end` are on disk.

        The caller must not change the value afterwards. A function is called when the line is
        made: a value that changes often is computed once per write, or twice if it has finished.
        """
        if value is None:
            # A value that is not written yet is written first: its removal may wait longer.
            if key in self._lines:
                self._removed[key] = end, _removal(key)
            return
        if key in self._removed:  # set again, so that it is the last key now
            del self._removed[key]
            self._new.pop(key, None)
            self._live -= len(self._lines.pop(key))
            self._rewrite = True
        if key not in self._new:
            self._lines.setdefault(key, b"")
            self._changed[key] = None
        self._new[key] = value

    def encode_finished(self, most: int) -> None:
        """Make the lines of at most so many of the values in `finished`."""
        keys = self.finished[:most]
        del self.finished[:most]  # first: a value that cannot be encoded is not tried again here
        for key in keys:
            if key in self._new:
                self._encode(key)

    def encode(self, most: int | None = None) -> bool:
        """Make at most so many of the lines that are missing; return True if none is left."""
        for key in [*islice(self._new, most)]:
            self._encode(key)
        if self._new:
            return False
        self.finished.clear()
        return True

    def _encode(self, key: str) -> None:
        line = line_of(key, self._new[key])
        del self._new[key]
        self._live += len(line) - len(self._lines[key])
        self._lines[key] = line

    def take(self, end: int | None = None) -> StateChanges:
        """Return the changes to write now; they count as written unless `failed` is called.

        Parameters
        ----------
        end : int or None
            The frames before this number will be on disk; None: all frames of the journal.
        """
        if not self.pending and self._size <= _REWRITE_ABOVE:
            return _NO_CHANGES
        self.encode()
        removed = {
            key: (self._lines[key], removal)
            for key, removal in self._removed.items()
            if end is None or removal[0] <= end
        }
        whole = None
        values = b""
        if self._rewrite or self._size > max(_REWRITE_ABOVE, _REWRITE_FACTOR * self._live):
            whole = b"".join(self._lines.values())
            self._size = len(whole)
        else:
            values = b"".join([self._lines[key] for key in self._changed])
        removals = b"".join([removal[1] for _, removal in removed.values()])
        changes = StateChanges(whole, self._size, values, removals, removed)
        for key, (line, _) in removed.items():
            del self._lines[key], self._removed[key]
            self._live -= len(line)
        self._size += len(values) + len(removals)
        self._rewrite = False
        self._changed.clear()
        return changes

    def failed(self, changes: StateChanges) -> None:
        """Note that changes were not written, or only in part."""
        self._rewrite = True
        for key, (line, removal) in changes.removed.items():
            if key not in self._lines:  # otherwise it was set again
                self._lines[key] = line
                self._live += len(line)
                self._removed[key] = removal


def parse(data: bytes) -> dict[str, object]:
    """Return the last value of each key, up to the first damaged line."""
    records: dict[str, object] = {}
    for line in data.split(b"\n")[:-1]:
        digest, _, text = line.partition(b" ")
        if digest != xxh3_64_hexdigest(text).encode():
            break
        entry = json.loads(text)
        key = entry.get("k") if isinstance(entry, dict) else None
        if not isinstance(key, str):
            continue  # of another version
        if "v" in entry:
            records[key] = entry["v"]
        else:
            records.pop(key, None)
    return records


def line_of(key: str, value: Value) -> bytes:
    """Return the line that sets a key; `parse` reads it."""
    text = value() if callable(value) else _to_json(value)
    return _checked(f'{{"k":{encode_basestring_ascii(key)},"v":{text}}}')


def _removal(key: str) -> bytes:
    return _checked(f'{{"k":{encode_basestring_ascii(key)}}}')


def _checked(text: str) -> bytes:
    """Return the line of an entry."""
    entry = text.encode()
    return b"%b %b\n" % (xxh3_64_hexdigest(entry).encode(), entry)
