"""HTTP from a hostile client; see `tests.support.fuzz`."""

from __future__ import annotations

import json
import random
import uuid

from tests.support.fuzz import WORDS, Case, Target, any_json, any_pieces, spoil
from tests.support.server import TOKEN

__all__ = ["http_case"]


def _path(rng: random.Random, target: Target, *, harmless: bool) -> str:
    some_id = rng.choice([str(uuid.UUID(int=rng.getrandbits(128))), rng.choice(WORDS)])
    if harmless:
        some_id = rng.choice([target.kernel, some_id])
    word = rng.choice(WORDS)
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
        value = TOKEN if name == "token" and rng.random() < 0.4 else rng.choice(WORDS)
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
    """Return the first line and the headers of a request."""
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
                json.dumps(any_json(rng)).encode(),
                json.dumps(
                    {"name": rng.choice(WORDS), "env": any_json(rng), "path": rng.choice(WORDS)}
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
    """Return the data of one connection: valid, mutated, pipelined requests, and random bytes."""
    data = b"".join(_request(rng, target) for _ in range(rng.choice([1, 1, 1, 1, 2, 6])))
    if rng.random() < 0.25:
        data = spoil(rng, data, rng.randrange(1, 5))
    if rng.random() < 0.1:
        data = data[: rng.randrange(len(data) + 1)]
    if rng.random() < 0.05:
        data = rng.randbytes(rng.choice([1, 10, 1000, 100_000]))
    return Case("", any_pieces(rng, data))
