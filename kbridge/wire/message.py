"""The raw parts of one Jupyter message.

Invariants:

- a `Message` is immutable and complete;
- JSON is parsed only to read a field, and never written back: the bytes that were received are the
  bytes that are sent.

`Message` is a NamedTuple because one is created for every message of every kernel; creating a
frozen dataclass takes three times as long.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from kbridge.errors import InvalidMessage
from kbridge.wire import compiled

__all__ = [
    "Buffer",
    "Channel",
    "Message",
    "RawMessage",
    "field",
    "id_keys",
    "json_object",
    "message_key",
    "scan",
    "scan_in_python",
]

Buffer: TypeAlias = bytes | memoryview

RawMessage: TypeAlias = list[Buffer]
"""The parts of one ZeroMQ message."""


class Channel(StrEnum):
    """The channels of a kernel that carry messages. The heartbeat channel does not."""

    SHELL = "shell"
    IOPUB = "iopub"
    STDIN = "stdin"
    CONTROL = "control"


class Message(NamedTuple):
    """The raw parts of one message (jupyter_client docs, "Messaging in Jupyter").

    `header` is a JSON object. `parent_header`, `metadata` and `content` are JSON objects too,
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
        """The `msg_type` of the header, or an empty string if it is missing."""
        found = _types.get(self[1])
        return _learn(self[1], "msg_type") if found is None else found

    @property
    def msg_id(self) -> str:
        """The `msg_id` of the header, or an empty string if it is missing; see `scan`."""
        found = _ids.get(self[1])
        return _learn(self[1], "msg_id") if found is None else found

    @property
    def parent_id(self) -> str:
        """The `msg_id` of the parent header, or an empty string if there is no parent."""
        found = _ids.get(self[2])
        return _learn(self[2], "msg_id") if found is None else found

    @property
    def nbytes(self) -> int:
        """The total size of all parts in bytes."""
        _, header, parent, metadata, content, buffers = self
        size = len(header) + len(parent) + len(metadata) + len(content)
        for buffer in buffers:
            size += buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
        return size


# The two ways in which JSON writers put a key before a string. `json` and most others write the
# first, compact writers the second. Other spellings are parsed.
_KEYS = {
    name: (f'"{name}": "'.encode(), f'"{name}":"'.encode(), f'"{name}"'.encode())
    for name in ("cellId", "msg_id", "msg_type", "session", "username", "version")
}


_MAX_PARSED = 1 << 16  # bytes; real headers are much shorter


def scan_in_python(raw: bytes, name: str) -> str:
    """Read one string field of a flat JSON object without parsing all of it.

    The result is exact: objects for which a text search could be wrong (a nested object, an escape,
    a duplicate key) are parsed.

    Parameters
    ----------
    raw : bytes
        UTF-8 JSON, as a message header is.
    name : str
        The field: msg_id, msg_type, session, username or version; cellId in metadata.

    Returns
    -------
    str
        The field. An empty string if the field is missing or not a string, or if `raw` is not an
        object or is too large to parse. A `msg_id` of another type is returned as JSON, because
        kernels send it back and replies are routed by it.
    """
    key, compact, bare = _KEYS[name]
    start = raw.find(key)
    if start < 0:
        key = compact
        start = raw.find(key)
    if start >= 0 and b"\\" not in raw and raw.rfind(b"{") <= 0:
        start += len(key)
        end = raw.find(b'"', start)
        if end > 0 and raw.find(bare, end) < 0:
            try:
                return raw[start:end].decode()
            except UnicodeDecodeError:
                return ""
    if not 2 < len(raw) <= _MAX_PARSED:
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


scan: Final[Callable[[bytes, str], str]] = (
    scan_in_python if compiled.module is None else partial(compiled.module.scan, scan_in_python)
)
"""`scan_in_python`, compiled where kbridge-speedups is installed."""

# The fields of recent headers: most are asked for several times. A lookup in a dict takes half of
# the time of an `lru_cache`. Unusually long headers are not kept, to bound the memory.
_KEPT: Final = 256  # headers
_LONGEST: Final = 1024  # bytes
_known: Final[dict[str, dict[bytes, str]]] = {name: {} for name in _KEYS}
_types: Final = _known["msg_type"]
_ids: Final = _known["msg_id"]


def field(raw: bytes, name: str) -> str:
    """Return `scan` of a header that is read several times.

    The header of a request is also that of the parent of its output.
    """
    found = _known[name].get(raw)
    return _learn(raw, name) if found is None else found


def _learn(raw: bytes, name: str) -> str:
    """Return `scan` of a header, and keep it."""
    found = scan(raw, name)
    if len(raw) <= _LONGEST:
        known = _known[name]
        if len(known) >= _KEPT:
            known.clear()
        known[raw] = found
    return found


_ID_FIRST = b'{"msg_id": "'
_ID_AT = len(_ID_FIRST)


def message_key(header: bytes) -> int:
    """Return a checksum of the `msg_id`, with which a journal finds the message; see `id_keys`.

    It is the same in every process, because journals are read after a restart.
    """
    if header[:_ID_AT] == _ID_FIRST:  # the order of jupyter_client
        return crc32(header[_ID_AT : header.find(b'"', _ID_AT)])
    return crc32(scan(header, "msg_id").encode("utf-8", "surrogatepass"))


def id_keys(msg_id: str) -> set[int]:
    """Return all keys that `message_key` may return for a message with that id.

    Messages with another id may have the same key. An id with characters that JSON writers escape
    may occur without escapes, or with the escapes of `json` in its two modes.
    """
    texts = [msg_id, *(json.dumps(msg_id, ensure_ascii=only)[1:-1] for only in (True, False))]
    spellings = [text.encode("utf-8", "surrogatepass") for text in texts]
    return {crc32(part) for each in spellings for part in (each, each.split(b'"')[0])}


def json_object(raw: Buffer, name: str) -> dict[str, Any]:
    """Parse a part that must be a JSON object.

    Raises
    ------
    InvalidMessage
        If it is not; the reason begins with `name`.
    """
    try:
        value = json.loads(str(raw, "utf-8"))  # given bytes, `loads` would accept UTF-16 too
    except UnicodeDecodeError:
        raise InvalidMessage(f"{name} is not UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidMessage(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise InvalidMessage(f"{name} is not a JSON object")
    return value
