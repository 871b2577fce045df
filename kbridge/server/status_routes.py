"""`/api` itself, the state of the server, who asks, and the description of the API."""

from __future__ import annotations

import json

from tornado.log import app_log

from kbridge._version import __version__
from kbridge.errors import InvalidRequest, NotSupported
from kbridge.server.handlers import ApiHandler
from kbridge.server.openapi import describe
from kbridge.server.services import timestamp

__all__ = [
    "JsonDescriptionHandler",
    "MeHandler",
    "ShutdownHandler",
    "StatusHandler",
    "VersionHandler",
    "YamlDescriptionHandler",
]

# There is one token, and no name behind it. The fields are those of Jupyter Server.
_IDENTITY = {
    "username": "anonymous",
    "name": "Anonymous",
    "display_name": "Anonymous",
    "initials": "A",
    "avatar_url": None,
    "color": None,
}


class VersionHandler(ApiHandler):
    """`/api`: the version; open to all, as in Jupyter Server, so that it serves for health."""

    public = True
    activity = False

    def get(self) -> None:
        """Answer `{"version"}`."""
        self.reply({"version": __version__})

    def head(self) -> None:
        """Answer like `get`, without the body."""
        self.get()


class StatusHandler(ApiHandler):
    """`/api/status`."""

    activity = False

    def get(self) -> None:
        """Return the status of the server; the request does not count as activity.

        With `?statistics=1`, include the counters of each kernel's hub; the kernel's id only if
        kernels may be listed.
        """
        services = self.services
        models = services.kernels.models()
        status = {
            "connections": sum(int(model["connections"]) for model in models),
            "kernels": len(models),
            # One format, so that the latest is also the last in order.
            "last_activity": max(
                [timestamp(services.last_request), *(str(m["last_activity"]) for m in models)]
            ),
            "started": timestamp(services.started),
        }
        if self.get_query_argument("statistics", "0") not in ("", "0", "false"):
            named = services.list_kernels
            status["hubs"] = [
                {**({"kernel_id": kernel_id} if named else {}), **statistics}
                for kernel_id, statistics in services.hubs.statistics().items()
            ]
        self.reply(status)


class MeHandler(ApiHandler):
    """`/api/me`: the identity of the client, and which of some permissions it has."""

    activity = False

    def get(self) -> None:
        """Answer `{"identity", "permissions"}`; with the token everything is permitted."""
        try:
            wanted = json.loads(self.get_argument("permissions", "{}"))
        except (ValueError, RecursionError):
            raise InvalidRequest("permissions is not JSON") from None
        if not isinstance(wanted, dict) or not all(
            isinstance(actions, list) and all(isinstance(action, str) for action in actions)
            for actions in wanted.values()
        ):
            raise InvalidRequest("permissions is not an object of lists of strings")
        self.reply({"identity": _IDENTITY, "permissions": wanted})


class ShutdownHandler(ApiHandler):
    """`/api/shutdown`: ends the server, as `kbridge stop` and SIGTERM do."""

    def post(self) -> None:
        """Answer, then begin to end."""
        shutdown = self.services.shutdown
        if shutdown is None:
            raise NotSupported("this server cannot be ended by a request")
        app_log.info("%s asks the server to end", self.request.remote_ip)
        self.reply({"message": "the server is shutting down"})
        shutdown()


class JsonDescriptionHandler(ApiHandler):
    """`/api/swagger.json`."""

    activity = False

    def get(self) -> None:
        """Describe the API."""
        self.reply(describe(self.services.base_url))


class YamlDescriptionHandler(ApiHandler):
    """`/api/spec.yaml` and `/api/swagger.yaml`."""

    activity = False

    def get(self) -> None:
        """Describe the API: JSON is YAML, too."""
        self.set_header("Content-Type", "text/x-yaml; charset=utf-8")
        self.finish(json.dumps(describe(self.services.base_url), indent=2))
