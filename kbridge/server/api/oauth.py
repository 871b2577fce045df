"""Logins at JupyterHub: `/login` sends a browser there, and it comes back to `/oauth_callback`.

The token of the user stays in the login cookie, with a signature. Browsers send that cookie with
requests of other sites only if a person follows a link (`SameSite=Lax`): JupyterHub may be another
site.
"""

from __future__ import annotations

import secrets
import time

from tornado.web import HTTPError

from kbridge.errors import Forbidden, NotFound, UsersUnavailable
from kbridge.server.api.login import HtmlHandler, safe_target
from kbridge.server.auth.jupyterhub import JupyterHub
from kbridge.server.auth.login_state import LIFETIME, LoginState, cookie_suffix
from kbridge.server.auth.users import Credential

__all__ = ["CallbackHandler", "begin_login"]

_LONGEST_TARGET = 2000


def begin_login(handler: HtmlHandler, hub: JupyterHub, target: str) -> None:
    """Send a browser to JupyterHub, from where it returns to `target`."""
    if len(target) > _LONGEST_TARGET:  # browsers keep no larger cookie
        target = handler.services.base_url
    state = secrets.token_urlsafe(24)
    request = hub.begin_login(state)
    sealed = LoginState(state, target, request.verifier, time.time() + LIFETIME)
    handler.set_cookie(
        _cookie_name(handler, state),
        sealed.seal(handler.services.auth.policy.cookie_secret),
        path=handler.services.base_url,
        max_age=LIFETIME,
        httponly=True,
        secure=hub.is_https(handler.request),
        samesite="Lax",
    )
    handler.redirect(request.url)


def _cookie_name(handler: HtmlHandler, state: str = "") -> str:
    suffix = cookie_suffix(state) if state else ""
    return f"{handler.services.auth.cookie_name}-login-{suffix}"


class CallbackHandler(HtmlHandler):
    """`/oauth_callback`: the end of a login."""

    public = True

    async def get(self) -> None:
        """Exchange the code for the token of the user, set the cookie, and redirect.

        Raises
        ------
        Forbidden
            If this browser has not begun the login, JupyterHub refuses it, or the user may not use
            this server.
        UsersUnavailable
            If JupyterHub does not answer.
        NotFound
            If users do not come from JupyterHub.
        """
        services = self.services
        hub, users = services.jupyterhub, services.auth.users
        if hub is None or users is None:
            raise NotFound("no such resource")
        policy, state = services.auth.policy, self._text("state")
        cookie = self.get_cookie(_cookie_name(self, state), "") or ""
        login = LoginState.open(policy.cookie_secret, cookie, state, time.time())
        if login is None:
            raise Forbidden(
                "this browser has not begun this login, or it took longer than"
                f" {LIFETIME // 60} minutes; log in again"
            )
        self._forget_logins()
        if self._text("error"):
            reason = self._text("error_description") or self._text("error")
            raise Forbidden(f"JupyterHub refuses the login: {reason[:200]}")
        token = await hub.end_login(self._text("code"), login.verifier)
        credential = Credential(token, self.get_cookie("jupyterhub-session-id", "") or "")
        lookup = users.lookup(credential)
        if lookup is not None:
            await lookup
        user = users.known(credential)
        if user is None:
            if problem := users.problem(credential):
                raise UsersUnavailable(problem)
            raise Forbidden(f"you have no scope access:services!service={hub.config.name}")
        self.set_cookie(
            services.auth.cookie_name,
            policy.user_cookie(token),
            path=services.base_url,
            httponly=True,
            secure=hub.is_https(self.request),
            samesite="Lax",
        )
        self.redirect(safe_target(login.target, services.base_url))

    def _text(self, name: str) -> str:
        try:
            return str(self.get_argument(name, ""))
        except HTTPError:  # not UTF-8
            return ""

    def _forget_logins(self) -> None:
        """Remove the cookies of all logins that this browser has begun."""
        for name in self.cookies:
            if name.startswith(_cookie_name(self)):
                self.clear_cookie(name, path=self.services.base_url)
