import io
import logging

import pytest

from kbridge.server import logs


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_SECRETS", set())


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("/api?token=abc", "/api?token=[secret]"),
        ("/api?a=1&token=abc&b=2", "/api?a=1&token=[secret]&b=2"),
        ("/api?TOKEN=abc#x", "/api?TOKEN=[secret]#x"),
        ("/api?auth_token=abc", "/api?auth_token=[secret]"),
        ("uri='/api?token=abc', version", "uri='/api?token=[secret]', version"),
        ("{'Authorization': 'token abc'}", "{'Authorization': 'token [secret]'}"),
        ("Authorization: Bearer abc", "Authorization: Bearer [secret]"),
        ("a valid token is needed", "a valid token is needed"),
        ("/api/kernels?session_id=1", "/api/kernels?session_id=1"),
        ("it was hunter22!", "it was [secret]!"),
    ],
)
def test_scrub(text: str, scrubbed: str) -> None:
    logs.hide("hunter22")
    assert logs.scrub(text) == scrubbed


def test_tracebacks_are_scrubbed_too() -> None:
    logs.hide("hunter22")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.SafeFormatter("%(message)s"))
    record_of = logging.getLogger("kbridge.test.logs")
    record_of.addHandler(handler)
    record_of.propagate = False
    try:
        raise ValueError("hunter22 is no number")
    except ValueError:
        record_of.exception("with %s", "hunter22")
    assert "hunter22" not in stream.getvalue()
    assert "with [secret]" in stream.getvalue()
    assert "ValueError: [secret]" in stream.getvalue()


def test_a_short_token_does_not_blot_out_the_log() -> None:
    logs.hide("a")
    logs.hide("")
    assert logs.scrub("banana") == "banana"


def test_what_comes_in_floods_is_counted() -> None:
    stream, now = io.StringIO(), [0.0]
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("kbridge.test.flood")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(handler)
    log.addFilter(logs.FloodFilter(burst=2, interval=60.0, clock=lambda: now[0]))

    def complain(number: int) -> None:
        log.warning("%d refused", number)

    for number in range(10):
        complain(number)
        log.debug("%d in detail", number)
    log.warning("something else")
    now[0] = 60.0
    for number in range(10, 20):
        complain(number)
    said = [line for line in stream.getvalue().splitlines() if "detail" not in line]
    assert said == [
        "0 refused",
        "1 refused",
        "something else",
        "10 refused (and 8 more like it before)",
        "11 refused",
    ]
    assert stream.getvalue().count("in detail") == 10
    log.handlers.clear()
    log.filters.clear()


def test_a_server_holds_back_what_strangers_cause() -> None:
    from kbridge.server.app import KbridgeApp

    config = KbridgeApp().logging_config
    assert config["filters"]["flood"]["()"] == "kbridge.server.logs.FloodFilter"
    assert config["handlers"]["console"]["filters"] == ["flood"]
    flood = logs.FloodFilter(prefix=config["filters"]["flood"]["prefix"], burst=1)

    def passes(name: str) -> bool:
        return flood.filter(logging.makeLogRecord({"name": name, "levelno": logging.WARNING}))

    assert [passes("tornado.access") for _ in range(3)] == [True, False, False]
    assert [passes("kbridge.hub") for _ in range(3)] == [True, True, True]
