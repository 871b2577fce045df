"""Log lines in JSON: fields, one line for each event, and no secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from kbridge.hub.context import kernel_log
from kbridge.server import safe_log
from kbridge.server.json_log import JsonFormatter


class Lines(logging.Handler):
    """Keeps the formatted lines."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    @property
    def last(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lines[-1])
        return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    monkeypatch.setattr(safe_log, "_SECRETS", {})
    handler = Lines()
    loggers = [logging.getLogger("kbridge.test.json"), safe_log.access_log]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


LOG = logging.getLogger("kbridge.test.json")


def test_the_usual_fields(lines: Lines) -> None:
    LOG.warning("two %s", "words")
    found = lines.last
    assert found.pop("time").endswith("+00:00")
    assert found == {"level": "warning", "logger": "kbridge.test.json", "message": "two words"}


def test_an_event_is_one_line_and_keeps_its_text(lines: Lines) -> None:
    text = "first\nsecond\r\u2028third \x1b[31m"
    LOG.info("%s", text)
    assert len(lines.lines[-1].splitlines()) == 1
    assert lines.lines[-1].isascii()
    assert lines.last["message"] == text


def test_a_traceback_is_a_field(lines: Lines) -> None:
    safe_log.hide("hunter22")
    try:
        raise ValueError("the password is hunter22")
    except ValueError:
        LOG.exception("it failed", stack_info=True)
    found = lines.last
    assert found["message"] == "it failed"
    assert "ValueError: the password is [secret]" in found["exception"]
    assert "test_json_log.py" in found["stack"]
    assert len(lines.lines[-1].splitlines()) == 1
    record = logging.makeLogRecord({"msg": "x", "exc_text": "of hunter22"})
    assert json.loads(JsonFormatter().format(record))["exception"] == "of [secret]"


def test_no_field_has_a_secret(lines: Lines) -> None:
    safe_log.hide("hunter22")
    LOG.info("?token=abc", extra={"path": "/hunter22", "session": "hunter22", "kernel_id": 7})
    found = lines.last
    assert "hunter22" not in lines.lines[-1]
    assert (found["message"], found["path"]) == ("?token=[secret]", "/[secret]")
    assert found["kernel_id"] == 7


def test_long_lines_are_cut(lines: Lines) -> None:
    LOG.info("%s", "x" * 1_000_000)
    assert len(lines.lines[-1]) < 40_000


@pytest.mark.parametrize("wrap", [False, True])
def test_the_kernel_of_a_line(lines: Lines, wrap: bool) -> None:
    """Also where Jupyter Server's log is wrapped."""
    log: Any = safe_log.SafeLog(LOG, {}) if wrap else LOG
    kernel_log(log, "a-kernel").warning("it is %s", "dead")
    assert (lines.last["kernel_id"], lines.last["message"]) == ("a-kernel", "it is dead")


def test_a_request(lines: Lines) -> None:
    line = RequestStartLine(
        "GET", "/base/api/kernels/a-kernel/channels?token=abc&session_id=a-session", "HTTP/1.1"
    )
    connection: Any = SimpleNamespace(context=None)
    headers = HTTPHeaders({"Host": "localhost"})
    request = HTTPServerRequest(headers=headers, connection=connection, start_line=line)
    request.remote_ip = "192.0.2.1"
    safe_log.log_answer(request, 404, "no such kernel")
    found = lines.last
    assert found["duration"] >= 0
    assert (found["client"], found["status"], found["method"]) == ("192.0.2.1", 404, "GET")
    assert (found["kernel_id"], found["session"]) == ("a-kernel", "a-session")
    assert found["path"] == "/base/api/kernels/a-kernel/channels"
    assert "abc" not in lines.lines[-1]
