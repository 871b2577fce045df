"""Bases of all handlers, REST and websocket: the access check, and errors as JSON.

`AccessMixin.prepare` runs before every handler method. `kbridge.server.auth.access_policy` decides.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import cached_property
from http.client import responses
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import unquote

from tornado import web
from tornado.log import app_log

from kbridge.cluster.protocol import CLIENT_ADDRESS, CLIENT_ADMIN, CLIENT_AUTH, CLIENT_USER
from kbridge.errors import (
    Forbidden,
    HubClosed,
    InvalidRequest,
    KbridgeError,
    KernelNotFound,
    NotFound,
    UsersUnavailable,
)
from kbridge.kernels.users import NOBODY, User
from kbridge.server.api.services import Model, Services
from kbridge.server.auth.access_policy import AuthMethod
from kbridge.server.auth.open_connections import Connection
from kbridge.server.auth.users import Credential
from kbridge.server.http.request_head import Meter, meter_of
from kbridge.server.safe_log import scrub, shown_uri

__all__ = [
    "AccessMixin",
    "ApiHandler",
    "BaseHandler",
    "ErrorsMixin",
    "NotFoundHandler",
    "SlashHandler",
    "expect",
]

# Seconds; a restart of the server takes one to three, after the starts that it waits for.
_RETRY_AFTER = "5"


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

    @cached_property
    def services(self) -> Services:
        """The objects that the handlers share."""
        found = self.application.settings["services"]
        assert isinstance(found, Services)
        return found

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
        self.set_error_headers(status_code)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps({"reason": reason, "message": scrub(message)}))

    def set_error_headers(self, status_code: int) -> None:
        """Say when to try again if the reply is 503; name the methods of this resource if 405."""
        if status_code == 503:
            self.set_header("Retry-After", _RETRY_AFTER)
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
    for_replicas : bool
        True if another replica of the cluster may pass on requests of its clients.
    passed_on : bool
        True if another replica has passed on the request. Then `auth_method` and the address in
        `request.remote_ip` are those of the client, as that replica says.
    auth_method : AuthMethod or None
        The method of authentication; None if the client was not authenticated, and did not have
        to be.
    user : User
        The client.
    problem : str
        Why that could not be found out, although the resource does not need to know; else empty.
    credential : Credential or None
        The token by which another program knows the user; None for everybody else.
    meter : Meter or None
        Measures the CPU time of unauthenticated requests.
    """

    public: ClassVar[bool] = False
    for_replicas: ClassVar[bool] = False
    passed_on: bool = False
    auth_method: AuthMethod | None = None
    user: User = NOBODY
    problem: str = ""
    credential: Credential | None = None
    meter: Meter | None = None

    def prepare(self) -> None:
        """Check the request; raise `Forbidden`, or `HubClosed` while the server shuts down."""
        self.meter = meter_of(self.request)
        if self.meter is not None:
            self.meter.begin()
        decision = self.services.auth.decide(self.request, public=self.public)
        if not decision.allowed and decision.problem:
            raise UsersUnavailable(decision.problem)
        if not decision.allowed:
            raise Forbidden(decision.reason)
        if self.services.closing:  # a connection that is kept alive may still bring requests
            raise HubClosed("the server is shutting down")
        self.auth_method, self.problem = decision.auth_method, decision.problem
        self.user, self.credential = decision.user or NOBODY, decision.credential
        if self.auth_method is not None:
            # Without the token a connection may carry one request only, see `ConnectionLimiter`.
            self.keeps_connection = True
            self.clear_header("Connection")
            if self.meter is not None:
                self.meter.stop()
        if self.auth_method is AuthMethod.CLUSTER:
            self._take_client()
        self.current_user = self.user.name or None  # for the audit log

    def _take_client(self) -> None:
        """Read from which client another replica has the request."""
        if not self.for_replicas:
            raise Forbidden("replicas pass on requests for single kernels only")
        self.passed_on = True
        headers = self.request.headers
        self.request.remote_ip = headers.get(CLIENT_ADDRESS) or self.request.remote_ip
        with suppress(ValueError):
            self.auth_method = AuthMethod(headers.get(CLIENT_AUTH, ""))
        if CLIENT_USER in headers:  # else it is a request of the other replica itself
            self.user = User(unquote(headers[CLIENT_USER]), headers.get(CLIENT_ADMIN) == "true")

    def check_reach(self, kernel_id: str) -> None:
        """Raise `KernelNotFound` if the user may not reach a kernel of this server.

        Users who are not administrators get the same error if there is no such kernel.
        """
        if self.user.admin:
            return
        model = self.services.kernels.model(kernel_id)
        if not self.user.may_reach_kernel(model):
            raise KernelNotFound(f"There is no kernel {kernel_id}")

    def keep_checking(self, connection: Connection) -> None:
        """Close a connection of this client once the client has lost access to it."""
        connections = self.services.open_connections
        if connections is not None and self.credential is not None:
            connections.add(self.credential, connection)

    def stop_checking(self, connection: Connection) -> None:
        """Note the end of a connection; may be called twice."""
        connections = self.services.open_connections
        if connections is not None and self.credential is not None:
            connections.discard(self.credential, connection)

    def require_admin(self) -> None:
        """Raise `Forbidden` if the client is a user who is not an administrator."""
        if not self.user.admin:
            raise Forbidden("only administrators may do this")

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


class ApiHandler(AccessMixin):
    """Base of handlers that read and write JSON.

    Attributes
    ----------
    activity : bool
        True if a request counts as activity of the server.
    """

    activity: ClassVar[bool] = True

    def prepare(self) -> None:
        """Check access, and record the activity."""
        super().prepare()
        if self.activity and "no_track_activity" not in self.request.query_arguments:
            self.services.activity.touch()

    def body(self) -> Model:
        """Return the request's JSON object; an empty body is an empty object.

        Raises
        ------
        InvalidRequest
            If the body is anything else.
        """
        raw = self.request.body.strip()
        if not raw:
            return {}
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            raise InvalidRequest("the body is not JSON") from None
        if not isinstance(value, dict):
            raise InvalidRequest("the body is not a JSON object")
        return value

    def reply(self, value: object, status: int = 200) -> None:
        """Finish with a JSON value."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(value, default=str))

    def reply_created(self, model: Model, *path: str) -> None:
        """Finish with 201, the model, and its URL in the header Location."""
        self.set_header("Location", self.services.base_url + "/".join(("api", *path)))
        self.reply(model, 201)

    def require_listing(self) -> None:
        """Raise `Forbidden` if clients may not list kernels and sessions."""
        if not self.services.list_kernels:
            raise Forbidden("listing kernels is turned off; see KbridgeApp.list_kernels")


class BaseHandler(AccessMixin):
    """Redirects `base_url` without its slash to the page."""

    public = True

    def get(self) -> None:
        """Redirect."""
        self.redirect(self.services.base_url)

    def head(self) -> None:
        """Redirect."""
        self.get()


class SlashHandler(AccessMixin):
    """Redirects API paths that end in a slash to those without, as Jupyter Server does."""

    public = True

    def get(self) -> None:
        """Redirect."""
        self._redirect(302)

    head = get

    def post(self) -> None:
        """Redirect with a status that keeps the method and the body."""
        self._redirect(307)

    put = patch = delete = post

    def _redirect(self, status: int) -> None:
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(self.request.path.rstrip("/") + query, status=status)


class NotFoundHandler(AccessMixin):
    """Answers unknown routes; needs no token."""

    public = True

    def prepare(self) -> None:
        """Raise `NotFound`, for unauthenticated clients too."""
        super().prepare()
        raise NotFound("no such resource")


def expect(body: Model, name: str, kind: type, *, required: bool = False) -> Any:
    """Return a field of a body; None if it is missing or null.

    Raises
    ------
    InvalidRequest
        If the field has another type, or is required and missing.
    """
    value = body.get(name)
    if value is None:
        if required:
            raise InvalidRequest(f"{name} is missing")
        return None
    if not isinstance(value, kind):
        raise InvalidRequest(f"{name} is not of type {kind.__name__}")
    return value
