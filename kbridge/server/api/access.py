"""Base of all handlers, REST and websocket: the access check, and errors as JSON.

`AccessMixin.prepare` runs before every handler method. `kbridge.server.auth.access_policy` decides.
"""

from __future__ import annotations

import json
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar

from tornado import web
from tornado.log import app_log

from kbridge.errors import Forbidden, HubClosed, KbridgeError
from kbridge.server.api.services import Services, services_of
from kbridge.server.auth.access_policy import Asked, Via
from kbridge.server.auth.request_info import asked_of
from kbridge.server.http.request_head import Meter, meter_of
from kbridge.server.safe_log import scrub, shown_uri

__all__ = ["AccessMixin", "ErrorsMixin"]


class ErrorsMixin(web.RequestHandler):
    """Errors as JSON, `{"reason", "message"}`, whatever went wrong; and a log without secrets.

    Attributes
    ----------
    keeps_connection : bool
        True if the connection stays open for another request. Otherwise every reply has the header
        `Connection: close`; without it, the client's next request on the connection would be lost.
    error_text : str
        Why the client was refused, for the access log; empty if it was not refused.
    """

    keeps_connection: bool = False
    error_text: str = ""

    @property
    def services(self) -> Services:
        """The objects that the handlers share."""
        return services_of(self)

    def set_default_headers(self) -> None:
        """Set the security and CORS headers, and `Connection: close` where it applies."""
        self.clear_header("Server")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'self'")
        self.set_header("Referrer-Policy", "no-referrer")
        if not self.keeps_connection:
            self.set_header("Connection", "close")
        services = self.application.settings.get("services")
        if isinstance(services, Services):
            headers = services.cors.headers(
                services.access,
                self.request.headers.get("Origin"),
                preflight=self.request.method == "OPTIONS",
            )
            for name, value in headers.items():
                self.set_header(name, value)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Let our own errors choose their status."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, KbridgeError):
            status_code = error.http_status
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write the error; a fault of our own is told in the log, not to the client."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        reason = responses.get(status_code, "Unknown")
        message = reason
        if isinstance(error, web.HTTPError):
            reason = error.reason or reason
            message = error.get_message() or reason
        elif isinstance(error, KbridgeError):
            message = str(error)
        elif error is not None:
            message = "Unhandled error; the server's log says more"
        self.tell_methods(status_code)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"reason": reason, "message": scrub(message)}))

    def tell_methods(self, status_code: int) -> None:
        """Name the methods that this resource has, in a reply that refuses one."""
        if status_code == 405:
            unset = web.RequestHandler.get  # what all methods are until a handler has them
            cls = type(self)
            names = [
                n for n in cls.SUPPORTED_METHODS if getattr(cls, n.lower(), unset) is not unset
            ]
            self.set_header("Allow", ", ".join(names))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log a traceback for an unexpected error.

        Everything else is logged once, by the access log, which adds the reason noted here.
        """
        if isinstance(value, web.HTTPError):
            self.error_text = value.get_message() or value.reason or ""
        elif isinstance(value, KbridgeError):
            self.error_text = str(value)
        elif typ is not None and value is not None:
            what = f"{self.request.method} {shown_uri(self.request.uri)}"
            app_log.error("Uncaught exception in %s", what, exc_info=(typ, value, tb))


class AccessMixin(ErrorsMixin):
    """Host, Origin, token, and that a browser's change comes from our own page.

    Attributes
    ----------
    public : bool
        Whether the resource is open to those without a token.
    via : Via or None
        How the client proved itself; None where it did not, and did not have to.
    meter : Meter or None
        Measures what strangers cost.
    """

    public: ClassVar[bool] = False
    via: Via | None = None
    meter: Meter | None = None

    def prepare(self) -> None:
        """Let the request in, or raise `Forbidden` or `HubClosed`."""
        self.meter = meter_of(self.request)
        if self.meter is not None:
            self.meter.begin()
        decision = self.services.access.decide(self.asked(), public=self.public)
        if not decision.allowed:
            raise Forbidden(decision.reason)
        if self.services.closing:  # a connection that is kept alive may still bring requests
            raise HubClosed("the server is shutting down")
        self.via = decision.via
        if self.via is not None:
            # Without the token a connection may carry one request only, see `ConnectionLimiter`.
            self.keeps_connection = True
            self.clear_header("Connection")
            if self.meter is not None:
                self.meter.stop()

    def on_finish(self) -> None:
        """Add up what answering a stranger has cost."""
        if self.meter is not None:
            self.meter.end()

    def options(self, *_: str, **__: str) -> None:
        """Answer a CORS preflight; the headers are set already."""
        self.set_status(204)

    def check_origin(self, origin: str) -> bool:  # noqa: ARG002
        """Return True: `prepare` has checked the Origin already (Tornado asks for websockets)."""
        return True

    def asked(self) -> Asked:
        """Read from the request what the decision needs."""
        return asked_of(self.request, self.services.cookie_name)
