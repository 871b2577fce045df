"""`/api` and `/api/status`."""

from __future__ import annotations

from kbridge._version import __version__
from kbridge.server.handlers import ApiHandler
from kbridge.server.services import timestamp

__all__ = ["StatusHandler", "VersionHandler"]


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
        """Answer what goes on; looking at it is no activity."""
        services = self.services
        models = services.kernels.models()
        self.reply(
            {
                "connections": sum(int(model["connections"]) for model in models),
                "kernels": len(models),
                # One format, so that the latest is also the last in order.
                "last_activity": max(
                    [timestamp(services.last_request), *(str(m["last_activity"]) for m in models)]
                ),
                "started": timestamp(services.started),
            }
        )
