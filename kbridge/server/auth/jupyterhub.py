"""Asks JupyterHub for users, logs browsers in there, and reports the activity of users.

JupyterHub's package takes a second to import, so it is imported when it is first needed: nothing
here is needed before the server listens. All requests have a time limit, and errors of the package
leave this module as `UsersUnavailable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from urllib.parse import quote

from tornado.httputil import HTTPServerRequest, url_concat
from tornado.log import app_log
from tornado.web import HTTPError

from kbridge.errors import Forbidden, KbridgeError, UsersUnavailable
from kbridge.hub.clock import timestamp
from kbridge.kernels.users import User
from kbridge.server.auth.users import Credential

__all__ = ["MODULES", "HubConfig", "JupyterHub", "LoginRequest"]

MODULES: Final = (*("aiohttp", "sqlalchemy.orm", "jupyterhub.scopes"), "jupyterhub.services.auth")
"""Modules that the first request to JupyterHub needs, for `kbridge.kernels.preload`."""

_SECONDS: Final = 10.0
_LONGEST_TOKEN: Final = 4096
# Names of users have no slash: JupyterHub refuses it.
_SERVICES: Final = "services/"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """JupyterHub, and this server as one of its services.

    Attributes
    ----------
    name : str
        The name of the service.
    api_url : str
        The URL of the API, ending in `/hub/api`.
    api_token : str
        The token of the service.
    client_id : str
        The OAuth client of the service.
    callback : str
        The URL, or the path, to which JupyterHub sends browsers after a login.
    admin_scope : str
        The scope of administrators; empty for none.
    fresh, outage : float
        See `kbridge.server.auth.users.Users`.
    activity : float
        Seconds between two reports of the activity of users; 0 for none.
    """

    name: str
    api_url: str
    api_token: str = field(repr=False)
    client_id: str
    callback: str
    admin_scope: str = ""
    fresh: float = 60.0
    outage: float = 900.0
    activity: float = 300.0


@dataclass(frozen=True, slots=True)
class LoginRequest:
    """A login at JupyterHub: the URL for the browser, and the secret that proves it afterwards."""

    url: str
    verifier: str = field(repr=False)


class JupyterHub:
    """JupyterHub, as its service sees it.

    Parameters
    ----------
    config : HubConfig
        The settings.
    """

    def __init__(self, config: HubConfig) -> None:
        self.config = config
        self._used = False
        self._no_scope: set[str] = set()  # users that the log has named

    @cached_property
    def _hub(self) -> Any:
        from jupyterhub.services.auth import HubOAuth

        self._used = True
        config = self.config
        return HubOAuth(
            api_url=config.api_url,
            api_token=config.api_token,
            oauth_client_id=config.client_id,
            oauth_redirect_uri=config.callback,
        )

    async def user_of(self, credential: Credential) -> User | None:
        """Return the user, or the service, of a token; None if it may not use this server.

        Raises
        ------
        UsersUnavailable
            If JupyterHub does not answer, or its answer has an error.
        """
        token = credential.token
        if not token.isascii() or not token.isprintable() or len(token) > _LONGEST_TOKEN:
            return None  # no header can have it
        with self._errors():
            async with asyncio.timeout(_SECONDS):
                model = await self._hub.user_for_token(token, use_cache=False, sync=False)
            return None if model is None else self._user(model)

    def _user(self, model: dict[str, Any]) -> User | None:
        name, scopes = str(model["name"]), set(model["scopes"])
        if model.get("kind") == "service":
            name = _SERVICES + name
        if not self._hub.check_scopes(self._access_scopes(), model):
            if name not in self._no_scope and len(self._no_scope) < 1000:
                self._no_scope.add(name)
                app_log.warning(
                    "%s has no scope %s for this token and is refused",
                    *(name, f"access:services!service={self.config.name}"),
                )
            return None
        return User(name, admin=bool(self.config.admin_scope) and self.config.admin_scope in scopes)

    def _access_scopes(self) -> set[str]:
        scopes: set[str] = self._hub.access_scopes
        return scopes or {f"access:services!service={self.config.name}"}

    # -- logins of browsers -------------------------------------------------------------------

    def begin_login(self, state: str) -> LoginRequest:
        """Return where a browser logs in.

        Parameters
        ----------
        state : str
            A random text that JupyterHub repeats to the callback.
        """
        hub = self._hub
        verifier, challenge, method = hub.generate_pkce_code_challenge()
        more = {"state": state, "code_challenge": challenge, "code_challenge_method": method}
        return LoginRequest(url_concat(hub.login_url, more), verifier)

    async def end_login(self, code: str, verifier: str) -> str:
        """Return the token of the user who has logged in.

        Parameters
        ----------
        code : str
            The code that JupyterHub has given the browser.
        verifier : str
            That of the `LoginRequest`.

        Raises
        ------
        Forbidden
            If the code is not valid, or was used before.
        UsersUnavailable
            As `user_of`.
        """
        with self._errors():
            try:
                async with asyncio.timeout(_SECONDS):
                    token = await self._hub.token_for_code(code, code_verifier=verifier, sync=False)
            except HTTPError as error:
                if "invalid" in str(error.log_message).lower():  # the package has no other sign
                    reason = "JupyterHub does not accept this login; log in again"
                    raise Forbidden(reason) from None
                raise
            return str(token)

    def logout_url(self) -> str:
        """Return where a browser logs out of JupyterHub, and so of all its services."""
        return f"{self._hub.hub_host}{self._hub.hub_prefix}logout"

    def is_https(self, request: HTTPServerRequest) -> bool:
        """Return True if the browser speaks https, with a proxy in front of JupyterHub or not."""
        from jupyterhub.utils import get_browser_protocol

        return bool(get_browser_protocol(request) == "https")

    # -- activity -----------------------------------------------------------------------------

    async def report_activity(self, name: str, last: float) -> int:
        """Report when a user was last active; return the HTTP status of the answer.

        Parameters
        ----------
        name : str
            The user; for a service, nothing is reported.
        last : float
            Unix seconds.

        Raises
        ------
        UsersUnavailable
            As `user_of`.
        """
        if name.startswith(_SERVICES):
            return 200
        from jupyterhub.httpclient import fetch
        from jupyterhub.utils import make_ssl_context

        hub, more = self._hub, {}
        if hub.certfile or hub.keyfile:
            more["ssl"] = make_ssl_context(hub.keyfile, hub.certfile, cafile=hub.client_ca)
        with self._errors():
            async with asyncio.timeout(_SECONDS):
                reply = await fetch(
                    f"{self.config.api_url.rstrip('/')}/users/{quote(name, safe='@~')}/activity",
                    method="POST",
                    raise_for_status=False,
                    json={"last_activity": timestamp(last)},
                    headers={"Authorization": f"token {self.config.api_token}"},
                    **more,
                )
                await reply.read()
        return int(reply.status)

    async def aclose(self) -> None:
        """Close the connections to JupyterHub; may be called twice."""
        if self._used:
            from jupyterhub.httpclient import JupyterHubHTTPClient

            self._used = False
            await JupyterHubHTTPClient.loop_instance().close()

    # -- errors -------------------------------------------------------------------------------

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except KbridgeError:
            raise
        except Exception as error:  # noqa: BLE001 - an answer may break the package in any way
            raise self._unavailable(error) from None

    def _unavailable(self, error: Exception) -> UsersUnavailable:
        reason = str(error) or type(error).__name__
        if isinstance(error, HTTPError):
            reason = error.log_message or reason
        if isinstance(error, TimeoutError):
            reason = f"no answer within {_SECONDS:g} s"
        app_log.warning("JupyterHub at %s cannot be used: %s", self.config.api_url, reason)
        # Clients that nobody knows read this.
        return UsersUnavailable("JupyterHub cannot be asked who you are; try again later")
