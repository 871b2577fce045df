"""The base of the REST handlers, and the answer to unknown routes."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from kbridge.errors import Forbidden, InvalidRequest, NotFound
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.services import Model

__all__ = ["ApiHandler", "BaseHandler", "NotFoundHandler", "SlashHandler", "expect"]


class ApiHandler(AccessMixin):
    """JSON in, JSON out.

    Attributes
    ----------
    activity : bool
        Whether a request counts as activity of the server.
    """

    activity: ClassVar[bool] = True

    def prepare(self) -> None:
        """Let the request in, and note that it came."""
        super().prepare()
        if self.activity and "no_track_activity" not in self.request.query_arguments:
            self.services.activity.touch()

    def body(self) -> Model:
        """Return the request's JSON object; an empty body is an empty object.

        Raises
        ------
        InvalidRequest
            If it is anything else.
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
        """Finish with 201, the model, and where it is from now on."""
        self.set_header("Location", self.services.base_url + "/".join(("api", *path)))
        self.reply(model, 201)

    def need_listing(self) -> None:
        """Raise `Forbidden` where clients may not see each other's kernels."""
        if not self.services.list_kernels:
            raise Forbidden("listing is off; see KbridgeApp.list_kernels")


class BaseHandler(AccessMixin):
    """`base_url` without its slash: to the page."""

    public = True

    def get(self) -> None:
        """Redirect."""
        self.redirect(self.services.base_url)

    def head(self) -> None:
        """Redirect."""
        self.get()


class SlashHandler(AccessMixin):
    """Redirects paths of the API that end in a slash to those without, as Jupyter Server does."""

    public = True

    def get(self) -> None:
        """Redirect."""
        self._redirect(302)

    head = get

    def post(self) -> None:
        """Redirect, with a status that keeps the method and the body."""
        self._redirect(307)

    put = patch = delete = post

    def _redirect(self, status: int) -> None:
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(self.request.path.rstrip("/") + query, status=status)


class NotFoundHandler(AccessMixin):
    """Answers every route that there is not, without asking for a token."""

    public = True

    def prepare(self) -> None:
        """Raise `NotFound`, also where no token was shown: there is nothing to see."""
        super().prepare()
        raise NotFound("no such resource")


def expect(body: Model, name: str, kind: type, *, required: bool = False) -> Any:
    """Return a field of a body, None where it is missing or null.

    Raises
    ------
    InvalidRequest
        If it is of another type, or missing though required.
    """
    value = body.get(name)
    if value is None:
        if required:
            raise InvalidRequest(f"{name} is missing")
        return None
    if not isinstance(value, kind):
        raise InvalidRequest(f"{name} is not of type {kind.__name__}")
    return value
