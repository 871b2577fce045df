"""The log, without secrets.

Every line passes the formatter here last, so a token does not get into the log whichever library
writes it, in a traceback neither.
"""

from __future__ import annotations

import logging
import re

from tornado import httputil, web
from tornado.log import access_log
from traitlets.config.application import LevelFormatter

__all__ = ["SafeFormatter", "hide", "log_answer", "log_request", "scrub"]

# Any query parameter whose name speaks of a secret, in a URI or in a repr of one.
_PARAMETER = re.compile(r"(?i)([?&][^=&\s]*(?:token|auth|key|code|secret)[^=&\s]*=)[^&\s'\"#]+")
_AUTHORIZATION = re.compile(r"(?i)(authorization\W+(?:token|bearer)\s+)[^\s'\",;]+")
_URI_LIMIT = 500
_SECRETS: set[str] = set()


def hide(secret: str) -> None:
    """Never let this text into the log, wherever it turns up.

    One of under four characters would blot out half of every line; it is still kept out of
    URIs and headers, like any other.
    """
    if len(secret) >= 4:
        _SECRETS.add(secret)


def scrub(text: str) -> str:
    """Return `text` with every secret replaced by `[secret]`."""
    for secret in _SECRETS:
        text = text.replace(secret, "[secret]")
    return _AUTHORIZATION.sub(r"\1[secret]", _PARAMETER.sub(r"\1[secret]", text))


class SafeFormatter(LevelFormatter):
    """The formatter of every handler that this program sets up."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, its traceback included, and scrub it."""
        return scrub(super().format(record))


def log_request(handler: web.RequestHandler) -> None:
    """Write the access log: successes for debugging only, faults so that they are seen."""
    log_answer(handler.request, handler.get_status())


def log_answer(request: httputil.HTTPServerRequest, status: int) -> None:
    """Write the same for a request that no handler has seen."""
    if status < 400:
        level = logging.DEBUG
    elif status < 500:
        level = logging.WARNING
    else:
        level = logging.ERROR
    access_log.log(
        level,
        "%d %s %s (%s) %.2fms",
        status,
        request.method,
        scrub(request.uri or "")[:_URI_LIMIT],
        request.remote_ip,
        1000 * request.request_time(),
    )
