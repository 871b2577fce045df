"""Both websocket dialects, written from their specification without code of kbridge.

An oracle must not share code with the implementation. Messages are plain dicts with the keys
channel, header, parent_header, metadata, content and buffers (a list of bytes). Sources: the page
"WebSocket kernel wire protocols" of Jupyter Server's documentation.
"""

from __future__ import annotations

import itertools
import json
import struct
from typing import Any, Protocol

__all__ = ["CODECS", "V1", "Codec", "Legacy"]

_PARTS = ("header", "parent_header", "metadata", "content")


class Codec(Protocol):
    """One dialect: its subprotocol and its frames."""

    subprotocol: str | None

    def encode(self, msg: dict[str, Any]) -> str | bytes: ...

    def decode(self, frame: str | bytes) -> dict[str, Any]: ...


class V1:
    """v1.kernel.websocket.jupyter.org: little-endian offsets, channel, parts, buffers."""

    subprotocol: str | None = "v1.kernel.websocket.jupyter.org"

    def encode(self, msg: dict[str, Any]) -> bytes:
        parts = [msg["channel"].encode(), *(json.dumps(msg[p]).encode() for p in _PARTS)]
        parts += msg["buffers"]
        offsets = [8 * (len(parts) + 2)]
        for part in parts:
            offsets.append(offsets[-1] + len(part))
        return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)

    def decode(self, frame: str | bytes) -> dict[str, Any]:
        assert isinstance(frame, bytes), f"v1 is binary, but a text frame arrived: {frame[:200]!r}"
        (count,) = struct.unpack_from("<Q", frame)
        offsets = struct.unpack_from(f"<{count}Q", frame, 8)
        assert offsets[0] == 8 * (count + 1), "the first part does not start after the offsets"
        assert offsets[-1] == len(frame), "the last offset is not the end"
        parts = [frame[a:b] for a, b in itertools.pairwise(offsets)]
        msg: dict[str, Any] = {
            name: json.loads(part) for name, part in zip(_PARTS, parts[1:5], strict=True)
        }
        return {**msg, "channel": parts[0].decode(), "buffers": parts[5:]}


class Legacy:
    """No subprotocol: a JSON text frame, or big-endian offsets, JSON and buffers."""

    subprotocol: str | None = None

    def encode(self, msg: dict[str, Any]) -> str | bytes:
        buffers = msg["buffers"]
        body = {k: v for k, v in msg.items() if k != "buffers"}
        if not buffers:
            return json.dumps(body)
        parts = [json.dumps(body).encode(), *buffers]
        offsets = [4 * (len(parts) + 1)]
        for part in parts[:-1]:
            offsets.append(offsets[-1] + len(part))
        return struct.pack(f">{len(offsets) + 1}I", len(parts), *offsets) + b"".join(parts)

    def decode(self, frame: str | bytes) -> dict[str, Any]:
        if isinstance(frame, str):
            msg: dict[str, Any] = json.loads(frame)
            assert not msg.get("buffers"), "a text frame cannot have buffers"
            msg["buffers"] = []
        else:
            (count,) = struct.unpack_from(">I", frame)
            offsets = struct.unpack_from(f">{count}I", frame, 4)
            ends = (*offsets[1:], len(frame))
            parts = [frame[a:b] for a, b in zip(offsets, ends, strict=True)]
            msg = json.loads(parts[0])
            msg["buffers"] = parts[1:]
        # Frontends also read these two fields.
        assert msg["msg_id"] == msg["header"]["msg_id"], "msg_id is not the header's"
        assert msg["msg_type"] == msg["header"]["msg_type"], "msg_type is not the header's"
        return msg


CODECS: dict[str, Codec] = {"v1": V1(), "legacy": Legacy()}
