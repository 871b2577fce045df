"""Find the message type and the id in the header of a message, without parsing JSON.

The headers of one kernel or client have the same members in the same order, and mostly values of
the same lengths: ids are counted, or random with a fixed length. So their *shape* is the same: the
header with a 0 in place of every ASCII letter and digit. The places of the message type and of the
id are learned once for each shape, from a header that is parsed, and looked up by the shape from
then on.

Invariants:

- the result is exact for any order of the members: equal to that of `scan` and `message_key`;
- places are learned only from flat objects of strings without escapes. Another header of that shape
  is such an object, too. It has its keys at the same places, which are compared before the values
  are used;
- the number of shapes is bounded, and a shape is learned when it occurs a second time. So headers
  that never have the same shape are not parsed.
"""

from __future__ import annotations

import json
import string
from typing import Final, NamedTuple
from zlib import crc32

from kbridge.wire.message import message_key, scan

__all__ = ["SHAPE", "is_usual", "type_and_key", "type_place"]

_WORDS: Final = (string.ascii_letters + string.digits).encode()

SHAPE: Final = bytes.maketrans(_WORDS, b"0" * len(_WORDS))
"""The table with which `bytes.translate` makes the shape of a header."""

_LONGEST: Final = 1024  # bytes; real headers have 150 to 300
_SHAPES: Final = 256  # shapes that are kept; a kernel has a few

_TYPE: Final = b'"msg_type":'
_ID: Final = b'"msg_id":'
_TYPE_SHAPE: Final = _TYPE.translate(SHAPE)
_ID_SHAPE: Final = _ID.translate(SHAPE)

# The usual types of messages from kernels, with the key and both ways to write it.
_TYPES: Final = {
    b'%b%b"%b' % (_TYPE, space, name.encode()): name
    for space in (b"", b" ")
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


class _Layout(NamedTuple):
    """The places of the message type and of the id in the headers of one shape.

    Attributes
    ----------
    type_key, type_start, type_end : int
        Where the key of the type begins, and where its value begins and ends, without quotes.
    id_key, id_start, id_end : int
        The same for the id.
    """

    type_key: int
    type_start: int
    type_end: int
    id_key: int
    id_start: int
    id_end: int


# Of headers that are not flat objects of strings. There is nothing at these places.
_UNKNOWN: Final = _Layout(_LONGEST, 0, 0, 0, 0, 0)

# None: one header of the shape was seen.
_layouts: dict[bytes, _Layout | None] = {}


def type_and_key(header: bytes) -> tuple[str, int]:
    """Return `Message.msg_type` and `message_key`, both from one look at the header."""
    shape = header.translate(SHAPE)
    known = _layouts.get(shape) or _see(header, shape)
    if known is not None:
        at, _, end, id_at, id_start, id_end = known
        name = _TYPES.get(header[at:end])
        if name is not None and header.startswith(_ID, id_at):
            return name, crc32(header[id_start:id_end])
    return scan(header, "msg_type"), message_key(header)


def is_usual(header: bytes) -> bool:
    """Return True if a header is known to be valid without parsing it.

    It is a flat object of strings without escapes, in UTF-8. It has one `msg_type`, which is not
    empty, and one `msg_id`. False if a parser has to find out.
    """
    shape = header.translate(SHAPE)
    known = _layouts.get(shape) or _see(header, shape)
    if known is None:
        return False
    at, start, end, id_at, _, _ = known
    return start < end and header.startswith(_TYPE, at) and header.startswith(_ID, id_at)


def type_place(header: bytes, shape: bytes) -> tuple[int, int, int] | None:
    """Return where a header has its message type; None if that is unknown.

    Parameters
    ----------
    header : bytes
        The header. Unless the result is None, it is a flat object of strings without escapes.
    shape : bytes
        Its shape. Another header of that shape has another key at the place, or the same one.

    Returns
    -------
    key, start, end : int
        Where the key begins, and where the value begins and ends, without quotes.
    """
    known = _layouts.get(shape) or _see(header, shape)
    if known is None or not header.startswith(_TYPE, known.type_key):
        return None
    return known[:3]


def _see(header: bytes, shape: bytes) -> _Layout | None:
    """Note a header whose layout is not known, and learn it from the second one of its shape."""
    if len(header) > _LONGEST:
        return None
    if shape in _layouts:
        found = _layouts[shape] = _learn(header, shape) or _UNKNOWN
        return found
    if len(_layouts) >= _SHAPES:
        _layouts.clear()
    _layouts[shape] = None
    return None


def _learn(header: bytes, shape: bytes) -> _Layout | None:
    """Return the layout of a flat object of strings without escapes; None for any other header."""
    if b"\\" in header:
        return None
    try:
        members = json.loads(header.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(members, dict) or not all(isinstance(v, str) for v in members.values()):
        return None
    if any(text[:1] == ":" for member in members.items() for text in member):
        return None
    # So a quote and a colon stand at the end of a key, and nowhere else: all keys are written
    # without a space before the colon, and none twice.
    if shape.count(b'":') != len(members) or shape.count(b'"') != 4 * len(members):
        return None
    if shape.count(_TYPE_SHAPE) != 1 or shape.count(_ID_SHAPE) != 1:
        return None
    places: list[int] = []
    for key, mask in ((_TYPE, _TYPE_SHAPE), (_ID, _ID_SHAPE)):
        at = shape.find(mask)
        if not header.startswith(key, at):
            return None
        start = header.find(b'"', at + len(key)) + 1
        places += (at, start, header.find(b'"', start))
    return _Layout(*places)
