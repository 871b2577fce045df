"""Keeps secrets and control characters out of the log.

Every log line passes this formatter last, so a token cannot get into the log whichever library
logs it, not even in a traceback. Messages that unauthenticated clients can cause are limited to a
few per minute, and counted beyond that; otherwise they could fill the disk.

Invariants:

- The time to format a line is linear in its length, and the length of a line is bounded.
- Text from clients or kernels cannot imitate a log line or send a command to a terminal: control
  characters are escaped, and all lines of a message or traceback but the first are indented.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tornado import httputil, web
from tornado.log import access_log
from traitlets.config.application import LevelFormatter

from kbridge.flow.log_throttle import LogThrottle

__all__ = [
    "FloodFilter",
    "SafeFormatter",
    "SafeLog",
    "hide",
    "log_answer",
    "log_request",
    "printable",
    "safe_value",
    "scrub",
    "shown_uri",
]

_HIDDEN = "[secret]"
# A query parameter whose name contains one of these is secret.
_WORDS = ("token", "auth", "key", "code", "secret", "passw", "pwd", "credential")
# The parts of a query string, in a URI or in its repr. Nested URLs (`?next=%2Fapi%3Ftoken%3D`)
# are encoded once for each level. Possessive quantifiers, and no part that can hold the beginning
# of the next one: each character is read at most twice.
_OPEN = re.compile(r"(?:[?&]|%(?:25){0,3}(?:3[fF]|26))++")
_NAME = re.compile(
    r"(?P<name>(?:[^=?&\s'\"#%]|%(?!(?:25){0,3}(?:3[dDfF]|26)))*+)(?:=|%(?:25){0,3}3[dD])"
)
_VALUE = re.compile(r"[^&\s'\"#]++")
_AUTHORIZATION = re.compile(
    r"(authorization\W{1,16}+(?:token|bearer|basic|kbridge-cluster)\s++)[^\s'\",;]++", re.IGNORECASE
)
# Cookie headers, written out or in the repr of a dict, and single cookies of Jupyter servers.
_COOKIES = re.compile(
    r"(\b(?:set-)?cookie(?:['\"]\s{0,4}[:,]|:)\s{0,4}(?:b?['\"])?)[^'\"\r\n]++", re.IGNORECASE
)
_COOKIE = re.compile(r"(\b(?:kbridge|username)-[\w.-]{1,80}+=)[^;,\s'\"]++")
_SECRETS: dict[str, re.Pattern[str]] = {}

# C0 without the newline, DEL, C1, line and paragraph separators, marks that change the direction
# of text, and surrogates, which no terminal or file can encode.
_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+"
)
_INDENT = "    "
_LINE_LIMIT = 32 << 10  # characters
_URI_LIMIT = 500
_ID_LIMIT = 100


def hide(secret: str) -> None:
    """Replace this text in every log line, however it is encoded.

    A secret of fewer than four characters is only removed from URIs and headers; it would occur in
    too many words.
    """
    if len(secret) < 4:
        return
    encoded = re.compile("".join(map(_encodings, secret)))
    for spelling in (
        secret,
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        secret.encode("utf-8", "replace").decode("latin-1"),  # as Tornado reads headers
    ):
        _SECRETS[spelling] = encoded


def _encodings(character: str) -> str:
    """Return a pattern that matches a character, plain or percent-encoded."""
    octets = "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "replace"))
    either = "".join(f"[{c}{c.lower()}]" if c.isalpha() else c for c in octets)
    return f"(?:{re.escape(character)}|{either}{'|[+]' * (character == ' ')})"


def scrub(text: str) -> str:
    """Return `text` with every secret replaced by `[secret]`, in linear time."""
    for secret in sorted(_SECRETS, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    if "%" in text:
        for pattern in set(_SECRETS.values()):
            text = pattern.sub(_HIDDEN, text)
    text = _AUTHORIZATION.sub(rf"\1{_HIDDEN}", _scrub_parameters(text))
    return _COOKIE.sub(rf"\1{_HIDDEN}", _COOKIES.sub(rf"\1{_HIDDEN}", text))


def _scrub_parameters(text: str) -> str:
    parts, done, at = [], 0, 0
    while opened := _OPEN.search(text, at):
        at = opened.end()
        parameter = _NAME.match(text, at)
        if parameter is None:
            continue
        at = parameter.end()
        if _is_secret(parameter["name"]) and (value := _VALUE.match(text, at)):
            parts += [text[done:at], _HIDDEN]
            done = at = value.end()
    return "".join([*parts, text[done:]])


def _is_secret(name: str) -> bool:
    """True if the value of this parameter is secret; the name may be encoded repeatedly."""
    for _ in range(3):
        name = name.lower()
        if any(word in name for word in _WORDS):
            return True
        if "%" not in name:
            return False
        name = unquote(name)
    return False


def printable(text: str) -> str:
    """Return `text` with control characters escaped and each line after the first indented."""
    if _UNPRINTABLE.search(text):
        text = _UNPRINTABLE.sub(_escape, text.replace("\r\n", "\n"))
    return text.replace("\n", f"\n{_INDENT}")


def shown_uri(uri: str | None) -> str:
    """Return the beginning of a request's URI, without secrets."""
    # Cut twice: a secret at the second cut has been replaced before.
    return scrub((uri or "")[: 8 * _URI_LIMIT])[:_URI_LIMIT]


def _escape(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


def _safe(text: str) -> str:
    return printable(safe_value(text))


def safe_value(text: str) -> str:
    """Return a text without secrets, and cut if it is long; control characters stay.

    For formats that escape control characters themselves.
    """
    if (surplus := len(text) - _LINE_LIMIT) > 0:
        for secret in _SECRETS:  # before the cut, which could leave half of a secret
            text = text.replace(secret, _HIDDEN)
        text = f"{text[:_LINE_LIMIT]}... ({surplus} more characters)"
    return scrub(text)


class FloodFilter(logging.Filter):
    """Limits the log lines per minute from the same place in the code, and counts the rest.

    It is for loggers whose messages unauthenticated clients can cause. Messages below INFO are not
    limited.

    Parameters
    ----------
    prefix : str
        The beginning of the names of those loggers.
    burst : int
        The number of lines that pass per interval.
    interval : float
        Seconds.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        prefix: str = "",
        burst: int = 20,
        interval: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._prefix = prefix
        self._burst = burst
        self._interval = interval
        self._clock = clock
        self._throttles: dict[tuple[str, int, int], LogThrottle] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if a record passes; the first of an interval says how many were dropped."""
        if record.levelno < logging.INFO or not record.name.startswith(self._prefix):
            return True
        now = self._clock()
        key = (record.pathname, record.lineno, record.levelno)
        throttle = self._throttles.get(key)
        if throttle is None:
            throttle = self._throttles[key] = LogThrottle(self._interval, self._burst)
        count = throttle.record(now)
        if count > 1:
            record.msg = f"{record.getMessage()} (and {count - 1} more like it before)"
            record.args = None
        return count > 0


class SafeFormatter(LevelFormatter):
    """Formats log records without secrets and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its traceback included, without secrets and control characters."""
        if record.exc_info:
            record.exc_text = None  # another formatter's text, which may contain secrets
        elif record.exc_text:
            record.exc_text = _INDENT + _safe(record.exc_text)
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Make the message safe; the operator chooses the format around it."""
        record.message = _safe(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Format a traceback; the text of an exception may come from a client."""
        return _INDENT + _safe(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Format a stack."""
        return _INDENT + _safe(super().formatStack(stack_info))


class SafeLog(logging.LoggerAdapter["logging.Logger | logging.LoggerAdapter[Any]"]):
    """A logger for foreign handlers: each message is made safe before they receive it."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message like any logger; a traceback becomes part of the text."""
        if not self.isEnabledFor(level):
            return
        text = _safe(logging.makeLogRecord({"msg": msg, "args": args}).getMessage())
        error = kwargs.pop("exc_info", None)
        if error:
            if isinstance(error, BaseException):
                error = type(error), error, error.__traceback__
            elif not isinstance(error, tuple):
                error = sys.exc_info()
            text += "\n" + SafeFormatter().formatException(error)
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        self.logger.log(level, "%s", text, **kwargs)


def log_request(handler: web.RequestHandler) -> None:
    """Write the access log: successful requests at DEBUG, errors at WARNING or ERROR.

    A handler with a true attribute `quiet` answers 503 as a result, which is logged at DEBUG.
    """
    status, quiet = handler.get_status(), getattr(handler, "quiet", False)
    reason = getattr(handler, "error_text", "")
    log_answer(handler.request, status, reason, quiet=quiet and status == 503)


def log_answer(
    request: httputil.HTTPServerRequest, status: int, reason: str = "", *, quiet: bool = False
) -> None:
    """Log one line for a request.

    Parameters
    ----------
    request : httputil.HTTPServerRequest
        The request; it need not have reached a handler.
    status : int
        The status of the answer.
    reason : str
        The reason sent to the client if it was refused.
    quiet : bool
        True logs the line at DEBUG whatever the status.
    """
    if quiet or status < 400:
        level = logging.DEBUG
    elif status < 500:
        level = logging.WARNING
    else:
        level = logging.ERROR
    duration = max(0.0, request.request_time())
    access_log.log(
        level,
        "%d %s %s (%s) %.2fms%s",
        status,
        request.method,
        shown_uri(request.uri),
        request.remote_ip,
        1000 * duration,
        f": {reason}" if reason else "",
        extra={
            "status": status,
            "method": request.method,
            "path": (request.path or "")[:_URI_LIMIT],
            "client": request.remote_ip,
            "duration": round(duration, 6),
            "kernel_id": _kernel_of(request.path or ""),
            "session": _session_of(request),
        },
    )


def _kernel_of(path: str) -> str:
    """Return the id in the path of a kernel's resource; empty if there is none."""
    return path.partition("/api/kernels/")[2].partition("/")[0][:_ID_LIMIT]


def _session_of(request: httputil.HTTPServerRequest) -> str:
    values = request.query_arguments.get("session_id", [b""])
    return values[-1][:_ID_LIMIT].decode("utf-8", "replace")
