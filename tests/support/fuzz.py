"""Bytes that a hostile client might send, made from a seed: HTTP requests and websocket frames.

A case is known by its seed and number alone, so that one that fails can be made again:
`KBRIDGE_FUZZ_SEED=...` runs the same cases, `KBRIDGE_FUZZ_SECONDS=600` others for so long.
"""

from __future__ import annotations

import json
import os
import random
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.support.dialects import CODECS
from tests.support.server import TOKEN

__all__ = [
    "ECHOED",
    "SECONDS",
    "SEED",
    "Case",
    "Target",
    "cases",
    "frame",
    "http_case",
    "websocket_case",
]

SECONDS = float(os.environ.get("KBRIDGE_FUZZ_SECONDS", "0"))
SEED = os.environ.get("KBRIDGE_FUZZ_SEED") or (str(time.time_ns()) if SECONDS else "kbridge")

# Codes that cases close with, and get back; 1005 stands for none (RFC 6455, section 7.1.5).
ECHOED = (1001, 1005, 2999, 3000, 4000)

_NUMBERS = [
    0,
    1,
    6,
    7,
    125,
    126,
    65535,
    65536,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
_WORDS = [
    *(
        "",
        "\0",
        "%00",
        "%ff%fe",
        "..",
        "%2e%2e%2f",
        "/",
        "\\",
        "é",
        "🎉",
        "null",
        "NaN",
        "-1",
        "1e999",
    ),
    *(
        "start",
        "0",
        "18446744073709551616",
        "' or 1=1 --",
        "{}",
        "[",
        "\u2028",
        "a" * 300,
        "9" * 5000,
    ),
]
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


@dataclass(frozen=True, slots=True)
class Case:
    """What one connection sends: each piece in a write of its own."""

    name: str
    pieces: tuple[bytes, ...]
    dialect: str = ""

    def __str__(self) -> str:
        shown = b"".join(self.pieces)
        return f"{self.name} (KBRIDGE_FUZZ_SEED={SEED}): {shown[:1500]!r}"


@dataclass(frozen=True, slots=True)
class Target:
    """A kernel that may come to harm, on a server that may not."""

    kernel: str
    port: int


def cases(
    make: Callable[[random.Random, Target], Case], target: Target, count: int
) -> Iterator[Case]:
    """So many cases, or as many as the time that was asked for allows."""
    end = time.monotonic() + SECONDS
    number = 0
    while time.monotonic() < end if SECONDS else number < count:
        name = f"{make.__name__} {number}"
        made = make(random.Random(f"{SEED}/{name}"), target)
        yield Case(name, made.pieces, made.dialect)
        number += 1


# --- what both are made of


def _spoil(rng: random.Random, data: bytes, times: int) -> bytes:
    """Cut pieces out, double them, flip bits, put others in."""
    spoilt = bytearray(data)
    for _ in range(times):
        at = rng.randrange(len(spoilt) + 1)
        end = min(len(spoilt), at + rng.randrange(12))
        match rng.randrange(4):
            case 0:
                del spoilt[at:end]
            case 1:
                spoilt[at:at] = spoilt[at:end]
            case 2 if at < len(spoilt):
                spoilt[at] ^= 1 << rng.randrange(8)
            case _:
                spoilt[at:end] = rng.choice([rng.randbytes(rng.randrange(9)), b"\r\n", b"\0", b'"'])
    return bytes(spoilt)


def _pieces(rng: random.Random, data: bytes) -> tuple[bytes, ...]:
    """Data as the network may hand it on."""
    if rng.random() < 0.6 or len(data) < 2:
        return (data,)
    cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 5)))
    return tuple(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b)


def _json(rng: random.Random, depth: int = 3) -> Any:
    match rng.randrange(8 if depth else 5):
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.choice([*_NUMBERS, -1, 0.5, 1e308])
        case 2 | 3 | 4:
            return rng.choice(_WORDS)
        case 5:
            return [_json(rng, depth - 1) for _ in range(rng.randrange(4))]
        case _:
            names = [*("name", "path", "env", "kernel", "type", "id", "token"), *_WORDS[:9]]
            return {rng.choice(names): _json(rng, depth - 1) for _ in range(rng.randrange(5))}


# --- HTTP


def _path(rng: random.Random, target: Target, *, harmless: bool) -> str:
    some_id = rng.choice([str(uuid.UUID(int=rng.getrandbits(128))), rng.choice(_WORDS)])
    if harmless:
        some_id = rng.choice([target.kernel, some_id])
    word = rng.choice(_WORDS)
    path = rng.choice(
        [
            *(
                "/",
                "/api",
                "/api/",
                "/api/status",
                "/api/kernelspecs",
                "/api/kernels",
                "/api/sessions",
            ),
            *(
                f"/api/kernelspecs/{word}",
                f"/kernelspecs/python3/{word}",
                f"/kernelspecs/{word}/{word}",
            ),
            *(f"/api/kernels/{some_id}", f"/api/kernels/{some_id}/channels", f"/{word}", word, "*"),
            *(f"/api/kernels/{some_id}/interrupt", f"/api/kernels/{some_id}/restart"),
            *(f"/api/sessions/{some_id}", "/readme", "/favicon.ico", "http://evil.example/api"),
        ]
    )
    asked = []
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        name = rng.choice(["token", "session_id", "since", "no_track_activity", "path", word])
        value = TOKEN if name == "token" and rng.random() < 0.4 else rng.choice(_WORDS)
        asked.append(f"{name}={value}" if rng.random() < 0.9 else name)
    return path + ("?" + rng.choice("&&;").join(asked) if asked else "")


_HEADERS: dict[str, list[str]] = {
    "Host": ["localhost", "127.0.0.1", "evil.example", "localhost:99999", "a b", "[::1]", "", "é"],
    "Authorization": ["token wrong", "Bearer é", "Basic Og==", "token", "token \t ", "\xff" * 40],
    "Origin": ["null", "http://evil.example", "http://localhost", "é", "http://[", "https://a:b@c"],
    "Cookie": [
        "a=b",
        "kbridge=x",
        "=;=;;",
        'a="\\377',
        "é=é",
        "x" * 9000,
        "; ".join(["a=b"] * 900),
    ],
    "Content-Type": [
        *("application/json", "multipart/form-data; boundary=", "multipart/form-data; boundary=x"),
        *("application/x-www-form-urlencoded", "text/plain; charset=\xff", "multipart/form-data"),
    ],
    "Content-Length": ["-1", "0", "3", "3, 3", "3, 4", "0x3", "9" * 30, "99999999", "é", "+3"],
    "Transfer-Encoding": ["chunked", "gzip", "chunked, chunked", "identity", "Chunked\t"],
    "Content-Encoding": ["gzip", "br", "x"],
    "Connection": ["Upgrade", "close", "keep-alive", "upgrade, close", ""],
    "Upgrade": ["websocket", "WebSocket", "h2c", ""],
    "Sec-WebSocket-Key": ["dGhlIHNhbXBsZSBub25jZQ==", "", "short", "é", "x" * 3000],
    "Sec-WebSocket-Version": ["13", "8", "0", "99", "x"],
    "Sec-WebSocket-Protocol": ["v1.kernel.websocket.jupyter.org", ",,,", "é", "a, b", "x" * 3000],
    "Sec-WebSocket-Extensions": [
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=99",
        ";",
    ],
    "Sec-Fetch-Site": ["same-origin", "cross-site", ""],
    "Expect": ["100-continue", "200-ok"],
    "Range": ["bytes=0-", "bytes=9-1", "bytes=-99999999999", "x"],
    "If-None-Match": ["*", '"x"', "x"],
    "If-Modified-Since": ["x", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 99999 00:00:00 GMT"],
    "X-Forwarded-For": ["1.2.3.4", "x", ",,"],
    "X-Real-Ip": ["::1", "x"],
}


def _head(rng: random.Random, target: Target) -> tuple[str, list[str]]:
    """A request's first line and its headers."""
    method = rng.choice(
        [
            *(["GET"] * 4 + ["POST"] * 3),
            *("DELETE", "PATCH", "HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT"),
            *("get", "", "A" * 300, "G\0T", "GÉT"),
        ]
    )
    path = _path(rng, target, harmless=method in {"GET", "HEAD", "OPTIONS"})
    version = rng.choice([*["HTTP/1.1"] * 9, "HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/", "x"])
    headers = [] if rng.random() < 0.1 else [f"Host: 127.0.0.1:{target.port}"]
    if rng.random() < 0.7:
        headers.append(f"Authorization: token {TOKEN}")
    some = rng.sample(list(_HEADERS), rng.randrange(5))
    headers += [f"{name}: {rng.choice(_HEADERS[name])}" for name in some]
    if "/channels" in path and rng.random() < 0.7:
        headers += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
        headers.append(f"Sec-WebSocket-Key: {rng.choice(_HEADERS['Sec-WebSocket-Key'])}")
    if rng.random() < 0.1:
        strange = [
            " folded",
            "no colon",
            ": no name",
            "A\0B: c",
            "A: \0",
            "A : b",
            "Ä: ö",
            "a" * 70_000,
        ]
        headers.append(rng.choice(strange))
    if rng.random() < 0.03:
        headers += [f"X-{i}: {i}" for i in range(2_000)]
    rng.shuffle(headers)
    return f"{method} {path} {version}", headers


def _request(rng: random.Random, target: Target) -> bytes:
    first, headers = _head(rng, target)
    body = b""
    if rng.random() < 0.5:
        body = rng.choice(
            [
                json.dumps(_json(rng)).encode(),
                json.dumps(
                    {"name": rng.choice(_WORDS), "env": _json(rng), "path": rng.choice(_WORDS)}
                ).encode(),
                b"[" * rng.choice([10, 20_000]),
                rng.randbytes(rng.choice([1, 100, 30_000])),
                b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
            ]
        )
        match rng.randrange(4):
            case 0:
                headers.append("Transfer-Encoding: chunked")
                size = rng.choice(
                    [b"%x" % len(body)] * 4 + [b"-1", b"ffffffffffffffffff", b"", b"x"]
                )
                body = size + b"\r\n" + body + rng.choice([b"\r\n0\r\n\r\n", b"\r\n", b"0\r\n\r\n"])
            case 1:
                headers.append(f"Content-Length: {len(body) + rng.choice([-1, 1, 1000])}")
            case _:
                headers.append(f"Content-Length: {len(body)}")
    end = rng.choice(["\r\n"] * 9 + ["\n", "\r"])
    return end.join([first, *headers, "", ""]).encode("latin-1", "replace") + body


def http_case(rng: random.Random, target: Target) -> Case:
    """One connection's HTTP: requests, mutated ones, several at once, and noise."""
    data = b"".join(_request(rng, target) for _ in range(rng.choice([1, 1, 1, 1, 2, 6])))
    if rng.random() < 0.25:
        data = _spoil(rng, data, rng.randrange(1, 5))
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    if rng.random() < 0.05:
        data = rng.randbytes(rng.choice([1, 10, 1000, 100_000]))
    return Case("", _pieces(rng, data))


# --- websocket


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
    """A message that is whole, though perhaps not sensible."""
    header: dict[str, Any] = {
        "msg_id": rng.choice([uuid.UUID(int=rng.getrandbits(128)).hex, "same", "é", "a" * 300]),
        "msg_type": rng.choice(_TYPES),
        "session": rng.choice(["s", rng.choice(_WORDS)]),
        "username": "",
        "version": rng.choice(["5.3", "5.3", "4.1", "x"]),
        "date": rng.choice(["2026-01-01T00:00:00Z", "x"]),
    }
    if rng.random() < 0.1:
        header[rng.choice(list(header))] = _json(rng)
    content = {"code": "1", "silent": rng.choice([True, False]), "allow_stdin": False}
    buffers = [rng.randbytes(rng.randrange(50)) for _ in range(rng.choice([0, 0, 0, 1, 3]))]
    return CODECS[dialect].encode(
        {
            "channel": rng.choice([*["shell"] * 9, *["control"] * 5, "stdin", "iopub", "hb", ""]),
            "header": header,
            "parent_header": rng.choice([{}, {}, {"msg_id": "same"}, {"x": _json(rng)}]),
            "metadata": rng.choice([{}, {}, {"x": _json(rng)}]),
            "content": rng.choice([content, content, {"x": _json(rng)}]),
            "buffers": buffers,
        }
    )


def _payload(rng: random.Random, dialect: str) -> tuple[int, bytes]:
    """An opcode and a payload for a data frame: right, nearly right, or noise."""
    spoken = dialect if rng.random() < 0.9 else rng.choice(list(CODECS))
    encoded = _message(rng, spoken)
    data = encoded.encode(errors="surrogatepass") if isinstance(encoded, str) else encoded
    match rng.randrange(16):
        case 0 | 1:
            data = _spoil(rng, data, rng.randrange(1, 6))
        case 2:
            form, word = ("<Q", 8) if spoken == "v1" else (">I", 4)
            at = rng.randrange(0, 8) * word
            number = rng.choice(_NUMBERS) & ((1 << 8 * word) - 1)
            data = data[:at] + struct.pack(form, number) + data[at + word :]
        case 3 if rng.random() < 0.3:
            data = rng.choice([b"", b"[" * 20_000, b'{"a":' * 5_000, rng.randbytes(200)])
        case _:
            pass
    return (1 if isinstance(encoded, str) else 2) if rng.random() < 0.95 else rng.choice(
        [1, 2]
    ), data


def _fragments(rng: random.Random, opcode: int, data: bytes) -> bytes:
    """A message in fragments, with what may come in between, and what may not."""
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
        claim=rng.choice([None, None, *_NUMBERS]),
        width=rng.choice([0, 0, 2, 8]),
    )


def websocket_case(rng: random.Random, target: Target) -> Case:
    """What one websocket sends once it is open."""
    dialect = rng.choice(sorted(CODECS))
    data = b""
    for _ in range(rng.randrange(1, 7)):
        match rng.randrange(20):
            case 0:
                data += _raw_frame(rng)
            case 1 if rng.random() < 0.5:
                data += frame(rng.choice([1, 2]), b"{", claim=rng.choice(_NUMBERS[7:]), width=8)
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
    return Case("", _pieces(rng, data), dialect)
