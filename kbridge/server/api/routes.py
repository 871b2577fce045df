"""Every route of the server, in one table."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from tornado import httputil, web

from kbridge.server.api import (
    client_module,
    descriptions,
    executions,
    health,
    login,
    metrics,
    oauth,
    page,
    rest,
)
from kbridge.server.api.access import BaseHandler, NotFoundHandler, SlashHandler
from kbridge.server.api.services import Services
from kbridge.server.safe_log import log_request

__all__ = ["make_application"]

_ID = r"([^/]+)"

ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    (r"/", page.PageHandler),
    (r"/tree", page.PageHandler),
    (r"/console", page.ConsoleHandler),
    (r"/page/(.+)", page.StaticHandler),
    (r"/login", login.LoginHandler),
    (r"/logout", login.LogoutHandler),
    (r"/oauth_callback", oauth.CallbackHandler),
    (r"/favicon.ico", page.FaviconHandler),
    (r"/readme", page.ReadmeHandler),
    (r"/metrics", metrics.MetricsHandler),
    (r"/healthz", health.HealthHandler),
    (r"/readyz", health.ReadyHandler),
    (r"/kbridge.js", client_module.ClientModuleHandler),
    (r"/api/?", rest.VersionHandler),
    (r"/api/status", rest.StatusHandler),
    (r"/api/live", page.LiveHandler),
    (r"/api/me", rest.MeHandler),
    (r"/api/shutdown", rest.ShutdownHandler),
    (r"/api/restart", rest.ServerRestartHandler),
    (r"/api/openapi.json", descriptions.OpenApiHandler),
    (r"/api/spec.yaml", descriptions.YamlDescriptionHandler),
    (r"/api/swagger.yaml", descriptions.YamlDescriptionHandler),
    (r"/api/swagger.json", descriptions.JsonDescriptionHandler),
    (r"/api/kernelspecs", rest.KernelspecsHandler),
    (rf"/api/kernelspecs/{_ID}", rest.KernelspecHandler),
    (rf"/kernelspecs/{_ID}/(.+)", rest.ResourceHandler),
    (r"/api/kernels", rest.KernelsHandler),
    (rf"/api/kernels/{_ID}", rest.KernelHandler),
    (rf"/api/kernels/{_ID}/interrupt", rest.InterruptHandler),
    (rf"/api/kernels/{_ID}/restart", rest.RestartHandler),
    (rf"/api/kernels/{_ID}/executions", executions.ExecutionsHandler),
    (rf"/api/kernels/{_ID}/executions/{_ID}", executions.ExecutionHandler),
    (r"/api/sessions", rest.SessionsHandler),
    (rf"/api/sessions/{_ID}", rest.SessionHandler),
)


class Application(web.Application):
    """Accepts `base_url` in any percent-encoding."""

    def find_handler(self, request: httputil.HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of a request."""
        request.path = normal_path(request.path, self.settings["services"].base_url)
        return super().find_handler(request, **kwargs)


def normal_path(path: str, base_url: str) -> str:
    """Return `path` with `base_url` encoded as in the routes, if it begins with `base_url`."""
    base = base_url.rstrip("/")
    if path.startswith(base):
        return path
    parts = path.split("/")
    count = base.count("/") + 1
    same = [unquote(part) for part in parts[:count]] == [unquote(p) for p in base.split("/")]
    return "/".join([base, *parts[count:]]) if same else path


def make_application(
    services: Services, channels: type[web.RequestHandler], **settings: Any
) -> web.Application:
    """Return the application with all routes.

    Parameters
    ----------
    services : Services
        The objects that the handlers share.
    channels : type
        The handler of `/api/kernels/{id}/channels`.
    **settings
        Settings of Tornado and of `channels`.
    """
    base = re.escape(services.base_url.rstrip("/"))
    routes: list[Any] = [
        (base + pattern, handler)
        for pattern, handler in (*ROUTES, (rf"/api/kernels/{_ID}/channels", channels))
    ]
    routes.append((base + r"/api/.+/", SlashHandler))
    if base:
        routes.append((base, BaseHandler))
    return Application(
        routes,
        default_handler_class=NotFoundHandler,
        log_function=log_request,
        services=services,
        websockets=services.websockets,
        **settings,
    )
