import io
import json
import logging
from urllib.parse import quote, quote_plus

import pytest

from kbridge.server import safe_log


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_log, "_SECRETS", {})


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
        ("Authorization: kbridge-cluster abc", "Authorization: kbridge-cluster [secret]"),
        ("a valid token is needed", "a valid token is needed"),
        ("/api/kernels?session_id=1", "/api/kernels?session_id=1"),
        ("it was hunter22!", "it was [secret]!"),
        ("/api?%74oken=abc", "/api?%74oken=[secret]"),
        ("/api?a=1&%54%4f%4b%45%4e=abc&b=2", "/api?a=1&%54%4f%4b%45%4e=[secret]&b=2"),
        ("/api?%2574oken=abc", "/api?%2574oken=[secret]"),
        ("/api?token%3Dabc", "/api?token%3D[secret]"),
        ("/login?next=%2Fapi%3Ftoken%3Dabc&b=2", "/login?next=%2Fapi%3Ftoken%3D[secret]&b=2"),
        ("/login?next=%252Fa%253Ftoken%253Dabc", "/login?next=%252Fa%253Ftoken%253D[secret]"),
        ("/?token?token=abc", "/?token?token=[secret]"),
        ("/?a=1?token=abc", "/?a=1?token=[secret]"),
        ("/?token=ab%26cd&b=2", "/?token=[secret]&b=2"),
        ("/?password=abc", "/?password=[secret]"),
        ("/api/%68unter22", "/api/[secret]"),
        ("/api/%48unter22", "/api/%48unter22"),  # another word
        ("Authorization: Basic YTpi", "Authorization: Basic [secret]"),
        ("Cookie: a=1; b=2", "Cookie: [secret]"),
        ("{'Cookie': 'a=1; b=2', 'Host': 'x'}", "{'Cookie': '[secret]', 'Host': 'x'}"),
        ("[('Set-Cookie', 'a=1; Path=/')]", "[('Set-Cookie', '[secret]')]"),
        ("sent kbridge-8888-0badf00d=f00; x=1", "sent kbridge-8888-0badf00d=[secret]; x=1"),
        ("username-localhost-8888=f00", "username-localhost-8888=[secret]"),
        ("the cookie of a browser", "the cookie of a browser"),
    ],
)
def test_scrub(text: str, scrubbed: str) -> None:
    safe_log.hide("hunter22")
    assert safe_log.scrub(text) == scrubbed


@pytest.mark.parametrize(
    "secret", ["s\xfc\xdf und salzig", "a+b/c==", 'quo"te\\', "\u65e5\u672c\u8a9e\u6587"]
)
def test_a_secret_is_hidden_in_every_encoding(secret: str) -> None:
    safe_log.hide(secret)
    spellings = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        "".join(f"%{byte:02x}" for byte in secret.encode()),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        secret.encode().decode("latin-1"),
    }
    for spelling in spellings:
        assert safe_log.scrub(f"<{spelling}>") == "<[secret]>"


@pytest.fixture
def lines() -> tuple[logging.Logger, io.StringIO]:
    """A logger, and the output of its handler with our formatter."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(safe_log.SafeFormatter("%(message)s"))
    # Outside of the logger tree, so that pytest's handlers do not see it.
    log = logging.Logger("kbridge.test.logs")  # noqa: LOG001
    log.addHandler(handler)
    return log, stream


def test_tracebacks_are_scrubbed_too(lines: tuple[logging.Logger, io.StringIO]) -> None:
    safe_log.hide("hunter22")
    log, stream = lines
    try:
        raise ValueError("hunter22 is not a number")
    except ValueError:
        log.exception("with %s", "hunter22")
    assert "hunter22" not in stream.getvalue()
    assert "with [secret]" in stream.getvalue()
    assert "ValueError: [secret]" in stream.getvalue()


def test_a_traceback_that_another_formatter_made_is_not_used(
    lines: tuple[logging.Logger, io.StringIO],
) -> None:
    safe_log.hide("hunter22")
    log, stream = lines
    try:
        raise ValueError("hunter22")
    except ValueError as error:
        record = log.makeRecord(
            log.name, 40, "", 0, "m", (), (ValueError, error, error.__traceback__)
        )
    logging.Formatter().format(record)
    assert "hunter22" in (record.exc_text or "")
    log.handle(record)
    assert "hunter22" not in stream.getvalue()
    record.exc_info, record.exc_text = None, "ValueError: hunter22\x1b"  # as from a queue
    log.handle(record)
    assert "hunter22" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


CONTROLS = [*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *"\u2028\u202e\u2066\udc80"]


@pytest.mark.parametrize("number", range(len(CONTROLS)))
def test_no_control_character_reaches_the_log(
    number: int, lines: tuple[logging.Logger, io.StringIO]
) -> None:
    control = CONTROLS[number]
    log, stream = lines
    log.warning("kernel %s died", f"a{control}b")
    try:
        raise ValueError(f"a{control}b")
    except ValueError:
        log.exception("it failed", stack_info=True)
    text = stream.getvalue()
    assert not [c for c in CONTROLS if c in text and c != "\n"]
    escaped = "a\n    b" if control == "\n" else f"a{repr(control)[1:-1]}b"
    assert f"kernel {escaped} died" in text


def test_external_text_cannot_forge_a_log_line(
    lines: tuple[logging.Logger, io.StringIO],
) -> None:
    log, stream = lines
    forged = "x\n2026-01-01 00:00:00 E KbridgeApp: the disk is full\r\nmore"
    log.warning("no kernelspec %s", forged)
    try:
        raise ValueError(forged)
    except ValueError:
        log.exception("it failed")
    starts = [line for line in stream.getvalue().splitlines() if not line.startswith("    ")]
    assert starts == ["no kernelspec x", "it failed"]


def test_a_line_is_bounded_and_no_secret_is_cut_in_half(
    lines: tuple[logging.Logger, io.StringIO],
) -> None:
    safe_log.hide("hunter22")
    log, stream = lines
    for before in range(len("hunter22") + 1):
        log.warning("%shunter22%s", "a" * (safe_log._LINE_LIMIT - before), "b" * 1000)
    text = stream.getvalue()
    assert "hunt" not in text
    assert all(
        len(line) < safe_log._LINE_LIMIT + 100 and line.endswith(" more characters)")
        for line in text.splitlines()
    )


@pytest.mark.parametrize("before", range(480, 520))
def test_no_secret_is_cut_in_half_at_the_end_of_a_uri(before: int) -> None:
    safe_log.hide("hunter22")
    shown = safe_log.shown_uri("/" * before + "hunter22" + "/" * 9_000)
    assert len(shown) <= 500
    assert "h" not in shown.replace("[secret]"[: 500 - before], "")


def test_a_log_of_another_program_gets_scrubbed_messages() -> None:
    """As inside Jupyter Server, whose formatter is not ours."""
    safe_log.hide("hunter22")
    stream = io.StringIO()
    theirs = logging.Logger("kbridge.test.theirs", logging.INFO)  # noqa: LOG001
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(filename)s %(message)s"))
    theirs.addHandler(handler)
    log = safe_log.SafeLog(theirs, {})
    log.warning("no kernel %s", "a\x1b[2J\nhunter22")
    try:
        raise ValueError("\x1bhunter22")
    except ValueError as error:
        log.exception("it failed")
        log.error("it failed", exc_info=error)
    log.debug("%s", "not shown")
    text = stream.getvalue()
    assert "hunter22" not in text
    assert "\x1b" not in text
    assert text.startswith("test_safe_log.py no kernel a\\x1b[2J\n    [secret]\n")
    assert text.count("ValueError: \\x1b[secret]") == 2


def test_a_short_token_does_not_hide_parts_of_the_log() -> None:
    safe_log.hide("a")
    safe_log.hide("")
    assert safe_log.scrub("banana") == "banana"


def test_floods_of_messages_are_counted() -> None:
    stream, now = io.StringIO(), [0.0]
    handler = logging.StreamHandler(stream)
    log = logging.getLogger("kbridge.test.flood")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(handler)
    log.addFilter(safe_log.FloodFilter(burst=2, interval=60.0, clock=lambda: now[0]))

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


def test_log_messages_of_unauthenticated_clients_are_limited() -> None:
    from kbridge.server.cli.app import KbridgeApp

    config = KbridgeApp().get_default_logging_config()
    assert config["filters"]["flood"]["()"] == "kbridge.server.safe_log.FloodFilter"
    assert config["handlers"]["console"]["filters"] == ["flood"]
    flood = safe_log.FloodFilter(prefix=config["filters"]["flood"]["prefix"], burst=1)

    def passes(name: str) -> bool:
        return flood.filter(logging.makeLogRecord({"name": name, "levelno": logging.WARNING}))

    assert [passes("tornado.access") for _ in range(3)] == [True, False, False]
    assert [passes("kbridge.hub") for _ in range(3)] == [True, True, True]
