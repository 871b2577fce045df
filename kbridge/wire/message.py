"""What everything else passes around: the raw parts of one Jupyter message.

Laws of this module:

- a `Message` is immutable, and always whole;
- JSON is read only when somebody asks for a field of it, and never written back: the bytes that
  came are the bytes that go.

`Message` is a NamedTuple rather than a frozen dataclass because one is made for every message of
every kernel: a frozen dataclass costs three times as much to make.
"""

from __future__ import annotations

import json
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from kbridge.errors import InvalidMessage

__all__ = [
    "Buffer",
    "Channel",
    "Message",
    "id_keys",
    "json_object",
    "message_key",
    "scan",
    "type_and_key",
]

Buffer: TypeAlias = bytes | memoryview


class Channel(StrEnum):
    """The channels of a kernel that carry messages (the heartbeat carries none)."""

    SHELL = "shell"
    IOPUB = "iopub"
    STDIN = "stdin"
    CONTROL = "control"


class Message(NamedTuple):
    """The raw parts of one message (jupyter_client docs, "Messaging in Jupyter").

    `header` holds a JSON object as it came; `parent_header`, `metadata` and `content` do, too,
    unless a client sent another JSON value. All are UTF-8. `buffers` are raw bytes.
    """

    channel: Channel
    header: bytes
    parent_header: bytes
    metadata: bytes
    content: bytes
    buffers: tuple[Buffer, ...] = ()

    @property
    def msg_type(self) -> str:
        """`msg_type` of the header, or an empty string where there is none."""
        return scan(self.header, "msg_type")

    @property
    def msg_id(self) -> str:
        """`msg_id` of the header, or an empty string where there is none; see `scan`."""
        return scan(self.header, "msg_id")

    @property
    def parent_id(self) -> str:
        """`msg_id` of the parent header, or an empty string where there is no parent."""
        raw = self.parent_header
        return _remembered_id(raw) if len(raw) <= _REMEMBERED else scan(raw, "msg_id")

    @property
    def nbytes(self) -> int:
        """Bytes in all parts together."""
        return (
            len(self.header)
            + len(self.parent_header)
            + len(self.metadata)
            + len(self.content)
            + sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in self.buffers)
        )


# The two ways in which JSON writers put a key before a string. `json` and most others write the
# first, compact writers the second; any other spelling takes the slow way.
_KEYS = {
    name: (f'"{name}": "'.encode(), f'"{name}":"'.encode(), f'"{name}"'.encode())
    for name in ("msg_id", "msg_type", "session", "username", "version")
}


_LARGEST_PARSED = 1 << 16  # bytes; no header that is meant has as many


def scan(raw: bytes, name: str) -> str:
    """Read one string field of a flat JSON object without parsing the whole of it.

    Exact, not a guess: whatever could mislead a search (a nested object, an escape, a key that
    comes twice) is left to the JSON parser.

    Parameters
    ----------
    raw : bytes
        UTF-8 JSON, as a message header is.
    name : str
        The field: msg_id, msg_type, session, username or version.

    Returns
    -------
    str
        The field, or an empty string where it is missing, is no string, or `raw` is no object or
        is so large that to parse it would hold up everybody else. A `msg_id` of another type is
        written as JSON: kernels send it back, and replies are found by it.
    """
    spaced, compact, bare = _KEYS[name]
    start = raw.find(spaced)
    key = spaced
    if start < 0:
        start = raw.find(compact)
        key = compact
    if start >= 0 and raw.find(b"\\") < 0 and raw.find(b"{", 1) < 0:
        start += len(key)
        end = raw.find(b'"', start)
        if end > 0 and raw.find(bare, end) < 0:
            try:
                return raw[start:end].decode()
            except UnicodeDecodeError:
                return ""
    if not 2 < len(raw) <= _LARGEST_PARSED:
        return ""
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError):
        return ""
    found = value.get(name) if isinstance(value, dict) else None
    if found is None or isinstance(found, str):
        return found or ""
    try:
        return json.dumps(found, sort_keys=True) if name == "msg_id" else ""
    except RecursionError:
        return ""


# All the output of one cell has the same parent: its id is read once. Longer headers than any
# client writes are not kept, so that the cache stays small.
_REMEMBERED = 1024


@lru_cache(maxsize=256)
def _remembered_id(raw: bytes) -> str:
    return scan(raw, "msg_id")


_ID_FIRST = b'{"msg_id": "'
_ID_AT = len(_ID_FIRST)
_THEN_TYPE = b'", "msg_type": "'
# The usual types of what kernels say.
_TYPES = {
    name.encode(): name
    for name in (
        "clear_output",
        "comm_close",
        "comm_msg",
        "comm_open",
        "display_data",
        "error",
        "execute_input",
        "execute_reply",
        "execute_result",
        "status",
        "stream",
        "update_display_data",
    )
}


def type_and_key(header: bytes) -> tuple[str, int]:
    """Return what `Message.msg_type` and `message_key` do, in one reading of the header."""
    if header[:_ID_AT] == _ID_FIRST:
        end = header.find(b'"', _ID_AT)
        start = end + len(_THEN_TYPE)
        if header[end:start] == _THEN_TYPE and not (b"\\" in header or header.find(b"{", 1) > 0):
            stop = header.find(b'"', start)
            raw = header[start:stop]
            name = _TYPES.get(raw)
            if name is not None and header.find(b'"msg_type"', stop) < 0:
                return name, hash(header[_ID_AT:end])
    return scan(header, "msg_type"), message_key(header)


def message_key(header: bytes) -> int:
    """Return a number by which a message can be found again by its `msg_id`; see `id_keys`."""
    if header[:_ID_AT] == _ID_FIRST:  # as jupyter_client writes it
        return hash(header[_ID_AT : header.find(b'"', _ID_AT)])
    return hash(scan(header, "msg_id").encode("utf-8", "surrogatepass"))


def id_keys(msg_id: str) -> set[int]:
    """Return the keys that `message_key` gives to messages of that id, and perhaps to others.

    An id that JSON writers escape may be spelled as it is, or in the two ways of `json`.
    """
    texts = [msg_id, *(json.dumps(msg_id, ensure_ascii=only)[1:-1] for only in (True, False))]
    spellings = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {hash(part) for each in spellings for part in (each, each.split(b'"')[0])}


def json_object(raw: Buffer, what: str) -> dict[str, Any]:
    """Parse a part that must be a JSON object.

    Raises
    ------
    InvalidMessage
        If it is not; the reason begins with `what`.
    """
    try:
        value = json.loads(str(raw, "utf-8"))  # of bytes, `loads` would take UTF-16 as well
    except UnicodeDecodeError:
        raise InvalidMessage(f"{what} is not UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidMessage(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidMessage(f"{what} is not a JSON object")
    return value
