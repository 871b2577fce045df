"""Serializers for messages as dicts and lists of parts, under the names of Jupyter Server.

kbridge itself uses raw parts (`kbridge.wire`). These functions serve code that was written for
Jupyter Server.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

from jupyter_client.jsonutil import extract_dates, json_default

from kbridge.errors import MalformedFrame
from kbridge.wire.message import Buffer
from kbridge.wire.offsets import nbytes

__all__ = [
    "deserialize_binary_message",
    "deserialize_msg_from_ws_v1",
    "deserialize_parts",
    "serialize_binary_message",
    "serialize_msg_to_ws_v1",
]

_PARTS = ("header", "parent_header", "metadata", "content")


def serialize_binary_message(msg: dict[str, Any]) -> bytes:
    """Serialize a message with buffers in the legacy dialect.

    Parameters
    ----------
    msg : dict
        A message with `buffers`; not changed.

    Returns
    -------
    bytes
        Big-endian 32-bit words (the number of parts, the offset of each), then the JSON, then the
        buffers.
    """
    rest = {key: value for key, value in msg.items() if key != "buffers"}
    parts: list[Buffer] = [json.dumps(rest, default=json_default).encode(), *msg["buffers"]]
    count = len(parts)
    sizes = (nbytes(part) for part in parts[:-1])
    offsets = accumulate(sizes, initial=4 * (count + 1))
    return b"".join((struct.pack(f"!{count + 1}I", count, *offsets), *parts))


def deserialize_binary_message(bmsg: bytes) -> dict[str, Any]:
    """Deserialize a message that `serialize_binary_message` wrote.

    Raises
    ------
    MalformedFrame
        If the offsets, the JSON or a date are invalid.
    """
    if len(bmsg) < 4:
        raise MalformedFrame("shorter than its own count")
    (count,) = struct.unpack_from("!I", bmsg)
    if not 1 <= count <= len(bmsg) // 4 - 1:
        raise MalformedFrame("the frame is shorter than its number of parts requires")
    offsets = [*struct.unpack_from(f"!{count}I", bmsg, 4), len(bmsg)]
    if offsets[0] < 4 * (count + 1) or any(b < a for a, b in pairwise(offsets)):
        raise MalformedFrame("the offsets do not increase, or are outside of the frame")
    first, *buffers = [bmsg[start:stop] for start, stop in pairwise(offsets)]
    try:
        msg = json.loads(str(first, "utf-8"))  # of bytes, `loads` would take UTF-16 as well
    except (ValueError, RecursionError):
        raise MalformedFrame("the first part is not JSON") from None
    if not isinstance(msg, dict):
        raise MalformedFrame("the first part is not a JSON object")
    try:
        for key in ("header", "parent_header"):
            msg[key] = extract_dates(msg.get(key) or {})
    except (ValueError, OverflowError, RecursionError):
        raise MalformedFrame("a header has an invalid date, or is nested too deeply") from None
    msg["buffers"] = buffers
    return msg


def deserialize_parts(parts: Sequence[Buffer]) -> dict[str, Any]:
    """Read a message from its parts, as `jupyter_client.session.Session.deserialize` does.

    Parameters
    ----------
    parts : sequence of bytes
        Header, parent header, metadata, content, buffers.

    Raises
    ------
    MalformedFrame
        If one of the first four is not JSON, or a date is invalid.
    """
    try:
        header, parent, metadata, content = (json.loads(bytes(part)) for part in parts[:4])
        header, parent = extract_dates(header), extract_dates(parent)
    except (ValueError, OverflowError, RecursionError):
        raise MalformedFrame("a part is not JSON, or has an invalid date") from None
    return {
        "header": header,
        "msg_id": header["msg_id"],
        "msg_type": header["msg_type"],
        "parent_header": parent,
        "metadata": metadata,
        "content": content,
        "buffers": list(parts[4:]),
    }


def serialize_msg_to_ws_v1(
    msg_or_list: dict[str, Any] | Sequence[Buffer],
    channel: str,
    pack: Callable[[Any], bytes] | None = None,
) -> bytes:
    """Serialize a message in the v1 dialect.

    Parameters
    ----------
    msg_or_list : dict or sequence of bytes
        A message, or its parts as they came over ZeroMQ, from the header on.
    channel : str
        The channel.
    pack : callable, optional
        How to write a part of a dict; must be given for a dict.
    """
    if isinstance(msg_or_list, dict):
        pack = pack or _pack
        parts = [pack(msg_or_list[part]) for part in _PARTS] + list(
            msg_or_list.get("buffers") or []
        )
    else:
        parts = list(msg_or_list)
    name = channel.encode()
    count = len(parts) + 2
    sizes = (nbytes(part) for part in (name, *parts))
    offsets = accumulate(sizes, initial=8 * (count + 1))
    return b"".join((struct.pack(f"<{count + 1}Q", count, *offsets), name, *parts))


def deserialize_msg_from_ws_v1(ws_msg: bytes) -> tuple[str, list[bytes]]:
    """Read the channel and the parts of a frame of the v1 dialect.

    Raises
    ------
    MalformedFrame
        If the offsets or the channel's UTF-8 do not hold.
    """
    if len(ws_msg) < 8:
        raise MalformedFrame("shorter than its own count")
    (count,) = struct.unpack_from("<Q", ws_msg)
    if not 2 <= count <= len(ws_msg) // 8 - 1:
        raise MalformedFrame("the frame is shorter than its number of offsets requires")
    offsets = struct.unpack_from(f"<{count}Q", ws_msg, 8)
    if not 8 * (count + 1) <= offsets[0] <= offsets[-1] <= len(ws_msg) or any(
        b < a for a, b in pairwise(offsets)
    ):
        raise MalformedFrame("the offsets do not increase, or are outside of the frame")
    first, *parts = [ws_msg[start:stop] for start, stop in pairwise(offsets)]
    try:
        return first.decode(), parts
    except UnicodeDecodeError:
        raise MalformedFrame("the channel is not UTF-8") from None


def _pack(part: Any) -> bytes:
    return json.dumps(part, default=json_default).encode()
