"""The API of JupyterHub that kbridge uses, with answers from a table."""

from __future__ import annotations

import json
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler

from kbridge.server.auth.jupyterhub import HubConfig

__all__ = ["MODELS", "FakeHub"]

ACCESS = "access:services!service=kbridge"
MODELS: dict[str, dict[str, Any]] = {
    "alice's": {"name": "alice", "kind": "user", "scopes": [ACCESS]},
    "everything": {"name": "root", "kind": "user", "scopes": ["access:services", "custom:admins"]},
    "a service's": {"name": "alice", "kind": "service", "scopes": [ACCESS, "custom:admins"]},
    "of no use": {"name": "bob", "kind": "user", "scopes": ["access:services!service=other"]},
    "carol's": {"name": "carol", "kind": "user", "scopes": [ACCESS]},
}


class FakeHub:
    """A server in the event loop of the test. Only `MODELS` have tokens.

    Attributes
    ----------
    reports : list of (str, object, str)
        Path, body and Authorization of the reports of activity.
    status : int
        The status of the answers.
    withdrawn : set of str
        Tokens of `MODELS` that are not valid any longer.
    """

    def __init__(self) -> None:
        self.reports: list[tuple[str, Any, str]] = []
        self.status = 200
        self.withdrawn: set[str] = set()
        sock, self.port = bind_unused_port()
        hub = self

        class Handler(RequestHandler):
            def get(self) -> None:
                _, _, token = self.request.headers["Authorization"].partition(" ")
                if hub.status != 200:
                    self.send_error(hub.status)
                elif token in MODELS and token not in hub.withdrawn:
                    self.finish(json.dumps(MODELS[token]))
                else:
                    self.send_error(403)

            def post(self, *_: str) -> None:
                if self.request.path.endswith("/oauth2/token"):
                    valid = self.get_argument("code") == "good"
                    self.set_status(200 if valid else 400)
                    self.finish(
                        {"access_token": "alice's"} if valid else {"error": "invalid_grant"}
                    )
                    return
                body = json.loads(self.request.body)
                hub.reports.append((self.request.path, body, self.request.headers["Authorization"]))
                self.set_status(hub.status)

        routes = [(r"/hub/api/user", Handler), (r"/hub/api/(.+)", Handler)]
        self.server = HTTPServer(Application(routes))
        self.server.add_socket(sock)

    @property
    def config(self) -> HubConfig:
        return HubConfig(
            name="kbridge",
            api_url=f"http://127.0.0.1:{self.port}/hub/api",
            api_token="the service's",
            client_id="service-kbridge",
            callback="/services/kbridge/oauth_callback",
            admin_scope="custom:admins",
        )

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a service."""
        config = self.config
        return {
            "JUPYTERHUB_SERVICE_NAME": config.name,
            "JUPYTERHUB_API_TOKEN": config.api_token,
            "JUPYTERHUB_API_URL": config.api_url,
            "JUPYTERHUB_SERVICE_PREFIX": "/services/kbridge/",
            "KBRIDGE_HUB_ADMIN_SCOPE": config.admin_scope,
        }

    async def aclose(self) -> None:
        self.server.stop()
        await self.server.close_all_connections()
