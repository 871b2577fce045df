"""Every route of the server, in one table."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from tornado import httputil, web

from kbridge.server import (
    kernel_routes,
    kernelspec_routes,
    login,
    page,
    session_routes,
    status_routes,
)
from kbridge.server.handlers import BaseHandler, NotFoundHandler, SlashHandler
from kbridge.server.logs import log_request
from kbridge.server.services import Services

__all__ = ["make_application"]

_ID = r"([^/]+)"

ROUTES: tuple[tuple[str, type[web.RequestHandler]], ...] = (
    (r"/", page.PageHandler),
    (r"/tree", page.PageHandler),
    (r"/login", login.LoginHandler),
    (r"/logout", login.LogoutHandler),
    (r"/favicon.ico", page.FaviconHandler),
    (r"/readme", page.ReadmeHandler),
    (r"/api/?", status_routes.VersionHandler),
    (r"/api/status", status_routes.StatusHandler),
    (r"/api/me", status_routes.MeHandler),
    (r"/api/shutdown", status_routes.ShutdownHandler),
    (r"/api/spec.yaml", status_routes.YamlDescriptionHandler),
    (r"/api/swagger.yaml", status_routes.YamlDescriptionHandler),
    (r"/api/swagger.json", status_routes.JsonDescriptionHandler),
    (r"/api/kernelspecs", kernelspec_routes.KernelspecsHandler),
    (rf"/api/kernelspecs/{_ID}", kernelspec_routes.KernelspecHandler),
    (rf"/kernelspecs/{_ID}/(.+)", kernelspec_routes.ResourceHandler),
    (r"/api/kernels", kernel_routes.KernelsHandler),
    (rf"/api/kernels/{_ID}", kernel_routes.KernelHandler),
    (rf"/api/kernels/{_ID}/interrupt", kernel_routes.InterruptHandler),
    (rf"/api/kernels/{_ID}/restart", kernel_routes.RestartHandler),
    (r"/api/sessions", session_routes.SessionsHandler),
    (rf"/api/sessions/{_ID}", session_routes.SessionHandler),
)


class Application(web.Application):
    """Tornado's, for which `base_url` is the same however a client has encoded it."""

    def find_handler(self, request: httputil.HTTPServerRequest, **kwargs: Any) -> Any:
        """Find what answers a request."""
        request.path = normal_path(request.path, self.settings["services"].base_url)
        return super().find_handler(request, **kwargs)


def normal_path(path: str, base_url: str) -> str:
    """Return a path with `base_url` in the form that the routes have, if it is below it."""
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
    """Put the server together.

    Parameters
    ----------
    services : Services
        What the handlers share.
    channels : type
        The handler of `/api/kernels/{id}/channels`.
    **settings
        Tornado's own settings, and those of `channels`.
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
