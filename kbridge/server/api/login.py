"""`/login` and `/logout`: exchange the token for a cookie.

Used by browsers, and by programs that log in as browsers do: VS Code's Jupyter extension and
emacs-jupyter fetch the form, take the cookie `_xsrf` from it, post the token as `password`, and use
the login cookie from then on. They repeat `_xsrf` in the header X-XSRFToken of requests that change
something.
"""

from __future__ import annotations

import html
import secrets
from http.client import responses
from typing import Any
from urllib.parse import quote

from tornado.web import HTTPError

from kbridge.errors import KbridgeError, Unauthorized, UsersUnavailable
from kbridge.kernels.users import OPERATOR
from kbridge.server.api.access import AccessMixin
from kbridge.server.api.template import POLICY, document
from kbridge.server.auth.access_policy import AuthMethod
from kbridge.server.auth.authenticator import XSRF_COOKIE

__all__ = ["HtmlHandler", "LoginHandler", "LogoutHandler", "safe_target"]


def safe_target(target: str, base_url: str) -> str:
    """Return the path to redirect to after a login: `target`, or the page if it is not ours.

    Browsers read a backslash as a slash, and `//host` as another server.
    """
    plain = target.isascii() and target.isprintable() and not set(target) & set("\\ \"'<>")
    ours = target.startswith(base_url) and not target.startswith("//")
    return target if plain and ours else base_url


class HtmlHandler(AccessMixin):
    """Base of the handlers that show HTML pages."""

    def set_default_headers(self) -> None:
        """Allow the style sheet and forms of this server, and nothing else."""
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
        error = kwargs.get("exc_info", (None, None, None))[1]
        failed = status_code >= 500 and not isinstance(error, UsersUnavailable)
        if failed or "text/html" not in self.request.headers.get("Accept", ""):
            super().write_error(status_code, **kwargs)
            return
        if isinstance(error, Unauthorized):
            self.show_form(error.reason)
            return
        known = isinstance(error, KbridgeError)
        reason = error.reason if known else responses.get(status_code, "Unknown")
        self.set_error_headers(status_code)
        self.show(f"<p>{html.escape(reason)}</p>")

    def set_login_cookie(self) -> None:
        """Set the login cookie."""
        if not self.services.auth.policy.auth_enabled:
            return
        self.set_cookie(
            self.services.auth.cookie_name,
            self.services.auth.policy.cookie_value(),
            path=self.services.base_url,
            httponly=True,
            secure=self.request.protocol == "https",
            samesite="Strict",
        )

    def redirect_to_login(self) -> None:
        """Redirect to the login form, which redirects back here."""
        # Without the rest of the query, which may contain a wrong token.
        kernel = b"".join(self.request.query_arguments.get("kernel", [])[:1]).decode("latin-1")
        is_id = kernel.isascii() and kernel.replace("-", "").replace("_", "").isalnum()
        query = f"?kernel={kernel}" if is_id else ""
        target = quote(self.request.path + query, safe="")
        self.redirect(f"{self.services.base_url}login?next={target}")

    def log_in(self) -> None:
        """Check the token in the posted form, set the login cookie and redirect.

        Raises
        ------
        Unauthorized
            If the token is wrong.
        """
        policy = self.services.auth.policy
        fields = self.request.body_arguments
        offered = (fields.get("password") or fields.get("token") or [b""])[-1]
        if policy.auth_enabled and not policy.is_token(offered.strip()):
            raise Unauthorized("that is not the token")
        # VS Code takes the first cookie of this reply as the login cookie, and expects this status.
        self.set_login_cookie()
        self.redirect(self.target(), status=302)

    def target(self) -> str:
        """Return the path to redirect to after a login."""
        try:
            target = self.get_argument("next", "")
        except HTTPError:  # not UTF-8
            target = ""
        return safe_target(target, self.services.base_url)

    def ask_again(self) -> bool:
        """Let a browser that follows a link of another site ask again, now from this site.

        The browser does not send the login cookie with the first request (`SameSite=Strict`), also
        not after a redirect. Only pages are opened so: to ask for them changes nothing.

        Returns
        -------
        bool
            True if the request is finished; False if it has to be answered with the form.
        """
        headers, target = self.request.headers, self.target()
        pages = {f"{self.services.base_url}{name}" for name in ("", "tree", "console")}
        if (
            headers.get("Sec-Fetch-Site") != "cross-site"
            or headers.get("Sec-Fetch-Mode") != "navigate"
            or headers.get("Sec-Fetch-Dest") != "document"
            or target.partition("?")[0] not in pages
            or self.request.query_arguments.get("again")
        ):
            return False
        # With the address of this request, the browser would repeat it as it was.
        url = f"{self.services.base_url}login?again=1&next={quote(target, safe='')}"
        self.set_header("Refresh", f"0;url={url}")
        self.show(f'<p><a href="{html.escape(url)}">Open kbridge</a></p>')
        return True

    def show_form(self, error: str = "") -> None:
        """Finish with the login form."""
        base = html.escape(self.services.base_url)
        message = f"<p>{html.escape(error)}</p>" if error else ""
        self.show(
            f"{message}<p>This server asks for a token. The terminal that kbridge runs in shows an"
            " address with the token, and so does <code>kbridge list</code>.</p>"
            f'<form method="post" action="{base}login"><input type="hidden" name="next" '
            f'value="{html.escape(self.target())}"><input name="password" type="password" '
            'autocomplete="current-password" aria-label="token" required> '
            "<button>Enter</button></form>"
        )


class LoginHandler(HtmlHandler):
    """`/login`."""

    public = True

    def get(self) -> None:
        """Show the form, or redirect if the client is authenticated already."""
        shown = self.auth_method in (AuthMethod.QUERY, AuthMethod.HEADER)
        # The token of a user becomes a cookie after a login at JupyterHub only; see `admit`.
        if self.auth_method is not None and not (shown and self.user != OPERATOR):
            if shown:
                self.set_login_cookie()
            self.redirect(self.target())
            return
        if self.problem:
            raise UsersUnavailable(self.problem)
        if self.services.jupyterhub is not None:
            from kbridge.server.api.oauth import begin_login

            begin_login(self, self.services.jupyterhub, self.target())
            return
        if self.ask_again():
            return
        if not self.get_cookie(XSRF_COOKIE):
            self.set_cookie(
                XSRF_COOKIE,
                secrets.token_hex(16),
                path=self.services.base_url,
                secure=self.request.protocol == "https",
                samesite="Strict",
            )
        self.show_form()

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()

    def post(self) -> None:
        """Log in with the token from the form.

        `_xsrf` is not required: a client that sends the right token does not rely on cookies.
        """
        self.log_in()


class LogoutHandler(HtmlHandler):
    """`/logout`: removes the cookies from this browser; the token stays valid.

    Users of JupyterHub are logged out there, too.
    """

    public = True

    def get(self) -> None:
        """Remove the cookies."""
        base = self.services.base_url
        self.clear_cookie(self.services.auth.cookie_name, path=base)
        self.clear_cookie(XSRF_COOKIE, path=base)
        if self.services.jupyterhub is not None and self.user != OPERATOR:
            self.redirect(self.services.jupyterhub.logout_url())
            return
        self.show(f'<p>You are logged out.</p><p><a href="{html.escape(base)}login">Log in</a></p>')

    def post(self) -> None:
        """Remove the cookies."""
        self.get()
