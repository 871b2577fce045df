"""The log, without secrets.

Every line passes the formatter here last, so a token does not get into the log whichever library
writes it, in a traceback neither. What strangers can cause is written a few times a minute and
counted beyond that, or they could fill the disk.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from tornado import httputil, web
from tornado.log import access_log
from traitlets.config.application import LevelFormatter

__all__ = ["FloodFilter", "SafeFormatter", "hide", "log_answer", "log_request", "scrub"]

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


class FloodFilter(logging.Filter):
    """Lets the same place in the code speak a few times a minute, and counts the rest.

    For loggers that strangers can make speak. Below INFO nothing is held back: who asks for
    debugging gets all of it.

    Parameters
    ----------
    prefix : str
        What the names of those loggers begin with.
    burst : int
        Lines that pass in each interval.
    interval : float
        Seconds.
    clock : callable
        Tells them.
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
        self._places: dict[tuple[str, int, int], _Place] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide about a line; the first after an interval tells how many were held back."""
        if record.levelno < logging.INFO or not record.name.startswith(self._prefix):
            return True
        now = self._clock()
        key = (record.pathname, record.lineno, record.levelno)
        place = self._places.setdefault(key, _Place(now, self._burst))
        if now - place.since >= self._interval:
            held = place.held
            place.since, place.left, place.held = now, self._burst, 0
            if held:
                record.msg = f"{record.getMessage()} (and {held} more like it before)"
                record.args = None
        if not place.left:
            place.held += 1
            return False
        place.left -= 1
        return True


class _Place:
    """A line of code that logs."""

    __slots__ = ("held", "left", "since")

    def __init__(self, since: float, left: int) -> None:
        self.since = since
        self.left = left
        self.held = 0


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
