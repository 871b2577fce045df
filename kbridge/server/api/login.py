"""`/login` and `/logout`: the token, exchanged for a cookie.

For browsers, and for programs that log in as browsers do: VS Code's Jupyter extension and
emacs-jupyter fetch the form, take the cookie `_xsrf` from it, post the token as `password`, and use
the cookie that they get from then on. They change things with `_xsrf` as the header X-XSRFToken.
"""

from __future__ import annotations

import html
import secrets
from http.client import responses
from typing import Any
from urllib.parse import quote

from tornado.web import HTTPError

from kbridge.errors import KbridgeError, Unauthorized
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.template import POLICY, document
from kbridge.server.auth.access_policy import Via
from kbridge.server.auth.request_info import XSRF_COOKIE

__all__ = ["HtmlHandler", "LoginHandler", "LogoutHandler", "safe_target"]


def safe_target(target: str, base_url: str) -> str:
    """Return where to go after a login: `target` if it is a path of this server, or its page.

    Browsers take a backslash for a slash, and `//host` for another server.
    """
    plain = target.isascii() and target.isprintable() and not set(target) & set("\\ \"'<>")
    ours = target.startswith(base_url) and not target.startswith("//")
    return target if plain and ours else base_url


class HtmlHandler(AccessMixin):
    """The base of what shows pages to browsers."""

    def set_default_headers(self) -> None:
        """Allow this server's style sheet and forms, and nothing else."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Cache-Control", "no-store")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        # With `no-referrer` Chromium sends `Origin: null` with forms.
        self.set_header("Referrer-Policy", "same-origin")

    def show(self, body: str) -> None:
        """Finish with a page; `body` is HTML."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.finish(document("kbridge", f"<h1>kbridge</h1>{body}", self.services.base_url))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Write the error as a page for a browser, as JSON for a program."""
        if "text/html" not in self.request.headers.get("Accept", "") or status_code >= 500:
            super().write_error(status_code, **kwargs)
            return
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, Unauthorized):
            self.ask(error.reason)
            return
        known = isinstance(error, KbridgeError)
        reason = error.reason if known else responses.get(status_code, "Unknown")
        self.tell_methods(status_code)
        self.show(f"<p>{html.escape(reason)}</p>")

    def remember(self) -> None:
        """Give the browser a cookie that stands for the token."""
        if not self.services.access.auth_enabled:
            return
        self.set_cookie(
            self.services.cookie_name,
            self.services.access.cookie_value(),
            path=self.services.base_url,
            httponly=True,
            secure=self.request.protocol == "https",
            samesite="Strict",
        )

    def to_login(self) -> None:
        """Send the browser to the form, and back here after it."""
        # Without the query: a wrong token would be in it again.
        target = quote(self.request.path, safe="")
        self.redirect(f"{self.services.base_url}login?next={target}")

    def take_login(self) -> None:
        """Check the token that a form brings, and go on with a cookie.

        Raises
        ------
        Unauthorized
            If it is not the token.
        """
        access = self.services.access
        fields = self.request.body_arguments
        offered = (fields.get("password") or fields.get("token") or [b""])[-1]
        if access.auth_enabled and not access.is_token(offered.strip()):
            raise Unauthorized("that is not the token")
        # The first and only cookie of this reply: VS Code takes the first one for the login. It
        # also wants this status.
        self.remember()
        self.redirect(self._target(), status=302)

    def _target(self) -> str:
        try:
            target = self.get_argument("next", "")
        except HTTPError:  # it is not UTF-8
            target = ""
        return safe_target(target, self.services.base_url)

    def ask(self, complaint: str = "") -> None:
        """Finish with the form that asks for the token."""
        base = html.escape(self.services.base_url)
        told = f"<p>{html.escape(complaint)}</p>" if complaint else ""
        self.show(
            f"{told}<p>This server asks for a token. The terminal that kbridge runs in shows an"
            " address with the token, and so does <code>kbridge list</code>.</p>"
            f'<form method="post" action="{base}login"><input type="hidden" name="next" '
            f'value="{html.escape(self._target())}"><input name="password" type="password" '
            'autocomplete="current-password" aria-label="token" required> '
            "<button>Enter</button></form>"
        )


class LoginHandler(HtmlHandler):
    """`/login`."""

    public = True

    def get(self) -> None:
        """Show the form, or go on if the client has shown the token already."""
        if self.via is not None:
            if self.via in (Via.QUERY, Via.HEADER):
                self.remember()
            self.redirect(self._target())
            return
        if not self.get_cookie(XSRF_COOKIE):
            self.set_cookie(
                XSRF_COOKIE,
                secrets.token_hex(16),
                path=self.services.base_url,
                secure=self.request.protocol == "https",
                samesite="Strict",
            )
        self.ask()

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()

    def post(self) -> None:
        """Take the token from the form.

        `_xsrf` is not required: a client that sends the right token does not rely on cookies.
        """
        self.take_login()


class LogoutHandler(HtmlHandler):
    """`/logout`: removes the token from this browser; the token stays valid."""

    public = True

    def get(self) -> None:
        """Remove the cookies."""
        base = self.services.base_url
        self.clear_cookie(self.services.cookie_name, path=base)
        self.clear_cookie(XSRF_COOKIE, path=base)
        self.show(f'<p>You are logged out.</p><p><a href="{html.escape(base)}login">Log in</a></p>')

    def post(self) -> None:
        """Remove the cookies."""
        self.get()
