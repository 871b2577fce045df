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
