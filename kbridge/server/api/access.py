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
from kbridge.server.auth.access_policy import AuthMethod
from kbridge.server.http.request_head import Meter, meter_of
from kbridge.server.safe_log import scrub, shown_uri

__all__ = ["AccessMixin", "ErrorsMixin"]


class ErrorsMixin(web.RequestHandler):
    """Answers every error as JSON, `{"reason", "message"}`, and keeps secrets out of the log.

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
            for name, value in services.auth.cors_headers(self.request).items():
                self.set_header(name, value)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Use the HTTP status of a `KbridgeError`."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, KbridgeError):
            status_code = error.http_status
        super().send_error(status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write the error; the details of an unexpected one go to the log, not to the client."""
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
        self.set_allow_header(status_code)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"reason": reason, "message": scrub(message)}))

    def set_allow_header(self, status_code: int) -> None:
        """Name the methods of this resource if the reply is 405."""
        if status_code == 405:
            unset = web.RequestHandler.get  # the default of every method
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
    """Checks Host, Origin, token, and that a browser's change comes from this server's own page.

    Attributes
    ----------
    public : bool
        True if the resource needs no token.
    auth_method : AuthMethod or None
        The method of authentication; None if the client was not authenticated, and did not have
        to be.
    meter : Meter or None
        Measures the CPU time of unauthenticated requests.
    """

    public: ClassVar[bool] = False
    auth_method: AuthMethod | None = None
    meter: Meter | None = None

    def prepare(self) -> None:
        """Check the request; raise `Forbidden`, or `HubClosed` while the server shuts down."""
        self.meter = meter_of(self.request)
        if self.meter is not None:
            self.meter.begin()
        decision = self.services.auth.decide(self.request, public=self.public)
        if not decision.allowed:
            raise Forbidden(decision.reason)
        if self.services.closing:  # a connection that is kept alive may still bring requests
            raise HubClosed("the server is shutting down")
        self.auth_method = decision.auth_method
        if self.auth_method is not None:
            # Without the token a connection may carry one request only, see `ConnectionLimiter`.
            self.keeps_connection = True
            self.clear_header("Connection")
            if self.meter is not None:
                self.meter.stop()

    def on_finish(self) -> None:
        """Add the CPU time of the reply."""
        if self.meter is not None:
            self.meter.end()

    def options(self, *_: str, **__: str) -> None:
        """Answer a CORS preflight; the headers are set already."""
        self.set_status(204)

    def check_origin(self, origin: str) -> bool:  # noqa: ARG002
        """Return True: `prepare` has checked the Origin already (Tornado asks for websockets)."""
        return True
