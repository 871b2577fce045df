"""Websocket frames from a hostile client; see `tests.support.fuzz`."""

from __future__ import annotations

import random
import struct
import uuid
from typing import Any

from tests.support.dialects import CODECS
from tests.support.fuzz import NUMBERS, WORDS, Case, Target, any_json, any_pieces, spoil

__all__ = ["ECHOED", "frame", "websocket_case"]

# Close codes of cases, which the server returns; 1005 stands for none (RFC 6455, section 7.1.5).
ECHOED = (1001, 1005, 2999, 3000, 4000)
_TYPES = [
    *("kernel_info_request", "execute_request", "complete_request", "is_complete_request"),
    *(
        "comm_msg",
        "comm_open",
        "comm_info_request",
        "history_request",
        "input_reply",
        "inspect_request",
    ),
    *("no_such_request", "stream", "status", "iopub_welcome", "execute_reply", "", "a" * 1000),
]


def frame(
    opcode: int,
    payload: bytes,
    *,
    final: bool = True,
    reserved: int = 0,
    mask: bytes | None = b"\1\2\3\4",
    claim: int | None = None,
    width: int = 0,
) -> bytes:
    """A client's frame; `claim` is the length that it says to have, in `width` more bytes."""
    size = len(payload) if claim is None else claim
    width = width or (0 if size < 126 else 2 if size < 65536 else 8)
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode])
    flag = 0x80 if mask is not None else 0
    if width == 0:
        head += bytes([flag | size & 0x7F])
    else:
        code = {2: 126, 8: 127}[width]
        head += bytes([flag | code]) + (size & ((1 << 8 * width) - 1)).to_bytes(width, "big")
    if mask is None:
        return head + payload
    return head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload))


def _message(rng: random.Random, dialect: str) -> str | bytes:
    """Return a complete message, which may be meaningless."""
    header: dict[str, Any] = {
        "msg_id": rng.choice([uuid.UUID(int=rng.getrandbits(128)).hex, "same", "é", "a" * 300]),
        "msg_type": rng.choice(_TYPES),
        "session": rng.choice(["s", rng.choice(WORDS)]),
        "username": "",
        "version": rng.choice(["5.3", "5.3", "4.1", "x"]),
        "date": rng.choice(["2026-01-01T00:00:00Z", "x"]),
    }
    if rng.random() < 0.1:
        header[rng.choice(list(header))] = any_json(rng)
    content = {"code": "1", "silent": rng.choice([True, False]), "allow_stdin": False}
    buffers = [rng.randbytes(rng.randrange(50)) for _ in range(rng.choice([0, 0, 0, 1, 3]))]
    return CODECS[dialect].encode(
        {
            "channel": rng.choice([*["shell"] * 9, *["control"] * 5, "stdin", "iopub", "hb", ""]),
            "header": header,
            "parent_header": rng.choice([{}, {}, {"msg_id": "same"}, {"x": any_json(rng)}]),
            "metadata": rng.choice([{}, {}, {"x": any_json(rng)}]),
            "content": rng.choice([content, content, {"x": any_json(rng)}]),
            "buffers": buffers,
        }
    )


def _payload(rng: random.Random, dialect: str) -> tuple[int, bytes]:
    """Return opcode and payload of a data frame: valid, almost valid, or random."""
    spoken = dialect if rng.random() < 0.9 else rng.choice(list(CODECS))
    encoded = _message(rng, spoken)
    data = encoded.encode(errors="surrogatepass") if isinstance(encoded, str) else encoded
    match rng.randrange(16):
        case 0 | 1:
            data = spoil(rng, data, rng.randrange(1, 6))
        case 2:
            form, word = ("<Q", 8) if spoken == "v1" else (">I", 4)
            at = rng.randrange(0, 8) * word
            number = rng.choice(NUMBERS) & ((1 << 8 * word) - 1)
            data = data[:at] + struct.pack(form, number) + data[at + word :]
        case 3 if rng.random() < 0.6:
            no_message = [b"", b"[]", b'{"channel": "shell"}', b"[" * 20_000, b'{"a":' * 5_000]
            data = rng.choice([*no_message, rng.randbytes(200)])
        case _:
            pass
    return (1 if isinstance(encoded, str) else 2) if rng.random() < 0.95 else rng.choice(
        [1, 2]
    ), data


def _fragments(rng: random.Random, opcode: int, data: bytes) -> bytes:
    """Return a fragmented message with valid and invalid frames in between."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(1, 6)))
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    out = b""
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        out += frame(opcode if at == 0 else 0, part, final=last and rng.random() < 0.9)
        if rng.random() < 0.3:
            out += _control(rng)
        if rng.random() < 0.05:
            out += frame(rng.choice([0, 1, 2]), b"intruder")
    return out


def _control(rng: random.Random) -> bytes:
    payload = rng.choice(
        [b"", b"0", b"1", b"-1", b"99999999999999999999", b"\xff" * 8, b"9" * 125, rng.randbytes(9)]
    )
    return frame(
        rng.choice([9, 10, 10]),
        payload if rng.random() < 0.95 else b"x" * 126,
        final=rng.random() < 0.97,
    )


def _goodbye(rng: random.Random) -> bytes:
    code = rng.choice([1000, *ECHOED, 1006, 1015, 999, 0, 5000, 65535])
    reason = rng.choice([b"", b"bye", b"\xff", b"x" * 123, b"x" * 124])
    return frame(8, rng.choice([b"", b"\x03", struct.pack("!H", code) + reason]))


def _raw_frame(rng: random.Random) -> bytes:
    payload = rng.randbytes(rng.choice([0, 1, 60, 200]))
    return frame(
        rng.choice([code for code in range(16) if code != 8]),  # a close's code would be echoed
        payload,
        final=rng.random() < 0.8,
        reserved=rng.choice([0, 0, 0, 1, 4, 7]),
        mask=rng.choice([b"\0\0\0\0", rng.randbytes(4), rng.randbytes(4), None]),
        claim=rng.choice([None, None, *NUMBERS]),
        width=rng.choice([0, 0, 2, 8]),
    )


def websocket_case(rng: random.Random, target: Target) -> Case:
    """Return the data that a websocket sends after its handshake."""
    dialect = rng.choice(sorted(CODECS))
    data = b""
    for _ in range(rng.randrange(1, 7)):
        match rng.randrange(20):
            case 0:
                data += _raw_frame(rng)
            case 1 if rng.random() < 0.5:
                data += frame(rng.choice([1, 2]), b"{", claim=rng.choice(NUMBERS[7:]), width=8)
            case 2 | 3 | 4:
                data += _control(rng)
            case 5 | 6:
                data += _fragments(rng, *_payload(rng, dialect))
            case 7 if rng.random() < 0.6:
                data += _goodbye(rng)
            case 8 if rng.random() < 0.3:
                data += rng.randbytes(rng.randrange(1, 400))
            case _:
                data += frame(*_payload(rng, dialect))
    return Case("", any_pieces(rng, data), dialect)
