"""Shared parts of the extension's handlers: ids in routes, errors without tokens in the log."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Final

from jupyter_server.base.handlers import APIHandler
from tornado import web

from kbridge.server.safe_log import printable, shown_uri

__all__ = ["KERNEL_ID", "MSG_ID", "KernelApiHandler", "SafeErrorsMixin"]

KERNEL_ID: Final = r"(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)"
"""The id of a kernel in a route, as in Jupyter Server's own routes."""

MSG_ID: Final = r"(?P<msg_id>[^/]+)"
"""The id of a message in a route."""


class SafeErrorsMixin(web.RequestHandler):
    """Logs errors without the secrets in the arguments of the URL; Tornado would log the token."""

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log one line for an HTTP error, and a traceback for an unexpected error."""
        log: Any = self.log  # type: ignore[attr-defined]  # Jupyter Server's
        what = f"{self.request.method} {shown_uri(self.request.uri)}"
        if isinstance(value, web.HTTPError):
            log.warning("%s: %s %s", what, value.status_code, printable(value.get_message() or ""))
        elif typ is not None and value is not None:
            log.error("Uncaught exception in %s", what, exc_info=(typ, value, tb))


class KernelApiHandler(SafeErrorsMixin, APIHandler):
    """Base of REST handlers; Jupyter Server's authorizer decides about the resource `kernels`."""

    auth_resource = "kernels"
    _track_activity = False  # pages ask regularly, and an idle server must look idle
