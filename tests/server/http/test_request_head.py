"""Heads of requests: bounded in bytes and parts before anything parses them."""

import asyncio
import json
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders, parse_cookie, parse_qs_bytes

from kbridge.flow.token_bucket import TokenBucket
from kbridge.server.auth.authenticator import _cookies
from kbridge.server.http.connection_limiter import ConnectionLimits
from kbridge.server.http.listen import TlsFiles, make_context
from kbridge.server.http.request_head import HeadLimits, Meter, fault_of
from tests.server.http.test_guarded_server import PROOF, Harness
from tests.support.waiting import TIMEOUT

LIMITS = HeadLimits(size=4000, count=20)


def head(*lines: str, target: str = "/") -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode()


@pytest.mark.parametrize(
    ("request_head", "status", "setting"),
    [
        (head(*["X: y"] * 20), None, ""),
        (head(*["X: y"] * 21), 431, "20 headers; see KbridgeApp.max_header_count"),
        (head(target="/?" + "&".join(["a=1"] * 20)), None, ""),
        (head(target="/?" + "&".join(["a=1"] * 21)), 414, "20 parameters"),
        (head(target="/?" + "&" * 20), 414, "20 parameters"),
        (head("Cookie: " + "; ".join(["a=1"] * 20)), None, ""),
        (head("Cookie: " + "; ".join(["a=1"] * 21)), 431, "20 cookies"),
        (head("COOKIE:" + ";" * 20), 431, "20 cookies"),
        (head(*["Cookie: " + "; ".join(["a=1"] * 7)] * 3), 431, "20 cookies"),
        (head("Accept: " + ";" * 100, "X: " + "&" * 100), None, ""),
        (head("X: " + "y" * 4000), 431, "4000 bytes; see KbridgeApp.max_header_size"),
        (b"\n" * 22, None, ""),
        (b"", None, ""),
    ],
)
def test_heads_beyond_the_limits_are_refused(
    request_head: bytes, status: int | None, setting: str
) -> None:
    fault = fault_of(request_head, LIMITS)
    assert (fault and fault[0]) == status
    assert setting in (fault[1] if fault else "")


@pytest.mark.timing
@pytest.mark.parametrize(
    ("bomb", "parse"),
    [
        ("\r\n".join(["a:b"] * 13_000), HTTPHeaders.parse),
        ("Cookie: " + "a;" * 32_000, parse_cookie),
        ("a&" * 32_000, lambda text: parse_qs_bytes(text, keep_blank_values=True)),
    ],
    ids=["headers", "cookies", "parameters"],
)
def test_refusing_a_head_costs_a_fraction_of_parsing_it(
    bomb: str, parse: Callable[[str], Any]
) -> None:
    raw = f"GET /?{bomb if '&' in bomb else ''} HTTP/1.1\r\n{bomb}\r\n\r\n".encode()
    limits = HeadLimits(size=len(raw))
    assert fault_of(raw, limits) is not None

    def seconds(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(5):
            begin = time.process_time()
            run()
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(lambda: fault_of(raw, limits)) < seconds(lambda: parse(bomb)) / 3


@pytest.mark.parametrize(
    ("cookies", "found"),
    [
        (["a=1; b=2"], {"a": "1", "b": "2"}),
        (["a=1; a=3"], {"a": "3", "b": ""}),
        (["a=1", "b=2"], {"a": "1", "b": "2"}),
        (['a="1"; aa=2;b = 5'], {"a": "1", "b": "5"}),
        (["a; =1; ;; b=x=y"], {"a": "", "b": "x=y"}),
        ([], {"a": "", "b": ""}),
    ],
)
def test_cookies_are_found_by_name(cookies: list[str], found: dict[str, str]) -> None:
    headers = HTTPHeaders()
    for cookie in cookies:
        headers.add("Cookie", cookie)
    assert _cookies(headers, "a", "b") == found


def test_a_meter_adds_up_and_reports_until_it_is_stopped() -> None:
    meter = Meter()
    reports: list[float] = []
    meter.report = lambda: reports.append(meter.spent)
    meter.end()
    assert reports == []
    for _ in range(2):
        meter.begin()
        sum(range(20_000))
        meter.end()
    assert 0 < reports[0] < reports[1] == meter.spent
    meter.begin()
    meter.stop()
    meter.end()
    assert len(reports) == 2


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder: Path = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-keyout {key} -out {cert}".split(),
        check=True,
        capture_output=True,
    )
    context = make_context(TlsFiles(str(cert), str(key)))
    assert context is not None
    return context


BOMBS = {
    "headers": ([f"X-{i}: y" for i in range(300)], 431),
    "cookies": (["Cookie: " + "; ".join(f"c{i}=1" for i in range(300))], 431),
    "parameters": ([], 414),
    "bytes": ([f"X: {'y' * 70_000}"], 431),
}


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("known", [False, True], ids=["stranger", "let in before"])
@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_refused_head_is_answered_with_the_name_of_the_setting(
    tls: ssl.SSLContext, bomb: str, known: bool, secure: bool
) -> None:
    harness = Harness(ConnectionLimits(), **({"ssl_options": tls} if secure else {}))
    client_context = ssl.create_default_context()
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    try:
        client = await harness.dial(**({"ssl": client_context} if secure else {}))
        if known:
            client.send("GET /echo?size=1", PROOF)
            assert (await client.answer())[0] == 200
        lines, status = BOMBS[bomb]
        target = "/?" + "&".join(["a=1"] * 300) if bomb == "parameters" else "/"
        client.send(f"GET {target}", *lines)
        got, headers, body = await client.answer()
        assert (got, headers["Connection"]) == (status, "close")
        setting = "max_header_size" if bomb == "bytes" else "max_header_count"
        assert f"see KbridgeApp.{setting}" in json.loads(body)["message"]
        client.writer.close()
        async with asyncio.timeout(TIMEOUT):
            await harness.until_nobody_is_there()
    finally:
        await harness.aclose()


async def test_a_refused_client_that_continues_to_send_is_disconnected() -> None:
    harness = Harness(ConnectionLimits())
    try:
        client = await harness.dial()
        client.send("GET /", *BOMBS["headers"][0])
        assert (await client.answer())[0] == 431
        async with asyncio.timeout(TIMEOUT):
            try:
                while True:
                    client.writer.write(b"x" * (64 << 10))
                    await client.writer.drain()
            except ConnectionError:
                pass
        await harness.until_nobody_is_there()
    finally:
        await harness.aclose()


async def test_unauthenticated_requests_are_charged_for_cpu_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harness = Harness(ConnectionLimits())
    charges: list[float] = []
    monkeypatch.setattr(TokenBucket, "charge", lambda _bucket, seconds: charges.append(seconds))
    ticks = iter(range(1_000_000))
    # Each reading of the clock is a tenth of a second later, so each period costs that much.
    monkeypatch.setattr("kbridge.server.http.request_head.time", _Clock(lambda: next(ticks) / 10))
    try:
        client = await harness.dial()
        client.send("GET /echo?size=1", PROOF)
        assert (await client.answer())[0] == 200
        assert not charges
        stranger = await harness.dial()
        stranger.send("GET /echo?size=1")
        assert (await stranger.answer())[0] == 403
        await stranger.ended()
        # Head, end of the request, and answer: each cost is counted three times.
        assert sum(charges) == pytest.approx(3 * 0.3, abs=0.01)
    finally:
        await harness.aclose()


class _Clock:
    def __init__(self, thread_time: object) -> None:
        self.thread_time = thread_time
