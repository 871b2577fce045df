"""Frames for the tests of `client-js`: `python -m tests.support.frames_for_js` prints them."""

from __future__ import annotations

import json
from typing import Any

from kbridge.errors import MalformedFrame
from kbridge.wire import v1
from kbridge.wire.message import Channel, Message

__all__ = ["frames_for_js"]

_MESSAGES: dict[str, tuple[Channel, dict[str, Any], list[bytes]]] = {
    "stream": (Channel.IOPUB, {"name": "stdout", "text": "one\ntwo\n"}, []),
    "other alphabets": (Channel.SHELL, {"code": "print('é 水 \U0001f600 \u2028')"}, []),
    "empty content": (Channel.CONTROL, {}, []),
    "numbers": (Channel.STDIN, {"a": [0, -1, 1.5, None, True], "b": {"c": []}}, []),
    "one buffer": (Channel.SHELL, {"comm_id": "c"}, [b"\x00\x01\xff"]),
    "empty and long buffers": (Channel.IOPUB, {"comm_id": "c"}, [b"", bytes(range(256)), b"x"]),
    "long text": (Channel.IOPUB, {"name": "stderr", "text": "wide £ " * 200}, []),
}


def _json(value: object) -> bytes:
    """Encode as JavaScript does."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def frames_for_js() -> dict[str, Any]:
    """Return frames with their messages, and frames that the decoder of the server refuses."""
    valid = []
    for number, (name, (channel, content, buffers)) in enumerate(_MESSAGES.items()):
        header = {"msg_id": f"id-{number}", "msg_type": "a_type", "session": "s"}
        parent, metadata = ({"msg_id": "p"}, {"cellId": "z"}) if number % 2 else ({}, {})
        message = Message(
            channel, _json(header), _json(parent), _json(metadata), _json(content), tuple(buffers)
        )
        described = {
            "channel": channel.value,
            "header": header,
            "parent_header": parent,
            "metadata": metadata,
            "content": content,
            "buffers": [buffer.hex() for buffer in buffers],
        }
        valid.append({"name": name, "frame": v1.encode(message).hex(), "message": described})
    return {"valid": valid, "invalid": list(_invalid(valid))}


def _invalid(valid: list[dict[str, Any]]) -> Any:
    """Yield changed frames that the decoder of the server refuses as malformed."""
    for case in valid:
        if case["message"]["channel"] == Channel.IOPUB:
            continue  # clients do not send on this channel
        frame = bytes.fromhex(case["frame"])
        words = 1 + int.from_bytes(frame[:8], "little")
        for word in range(words):
            for change in (1, 0x80, 1 << 40, 1 << 63):
                value = int.from_bytes(frame[8 * word : 8 * word + 8], "little") ^ change
                changed = bytearray(frame)
                changed[8 * word : 8 * word + 8] = value.to_bytes(8, "little")
                try:
                    v1.decode(bytes(changed))
                except MalformedFrame:
                    yield bytes(changed).hex()
                except Exception:  # noqa: BLE001 - another rule than that of the offsets
                    continue


if __name__ == "__main__":
    print(json.dumps(frames_for_js(), indent=1))
