"""Base of the REST handlers, and the handler of unknown routes."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from kbridge.errors import Forbidden, InvalidRequest, NotFound
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.services import Model

__all__ = ["ApiHandler", "BaseHandler", "NotFoundHandler", "SlashHandler", "expect"]


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
